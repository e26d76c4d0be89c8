"""Every decoder-only family of transformers: its sites, and that what they say is true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from keepset.hold.inputs import hold_windows, watching
from keepset.hold.static import MASKED, hold_static
from keepset.kernels.selection import Selection
from keepset.kinds import find_sites
from keepset.kinds.survey import EXCLUDED, Surveyed, families, markdown, survey
from keepset.rules.rule import Rule
from keepset.sites.expert_neurons import ExpertNeurons, holds_experts
from keepset.sites.ffn import Site
from keepset.sites.inputs import find_input_sites
from tiny_families import COMPOSITES, tiny_family

IDS = torch.randint(4, 60, (2, 6), generator=torch.Generator().manual_seed(1))
REFUSED = {
    "blt": "looked for one list",
    "cpmant": "tokens of its own",
    "dbrx": "cannot build it",
    "gemma3n": "cannot build it",
    "gemma4_assistant": "cannot build it",
    "gemma4_unified_assistant": "cannot build it",
    "hrm_text": "looked for one list",
    "inkling_text": "is not known",
    "jetmoe": "does not store its experts",
    "llama4": "does not store its experts",
    "llama4_text": "does not store its experts",
    "longcat_flash": "looked for one list",
}
"""Family -> a part of the message that says why it has no sites."""
RUN = [name for name in families() if name not in {*REFUSED, *COMPOSITES}]


@pytest.fixture(scope="module")
def rows() -> list[Surveyed]:
    return survey()


def test_the_page_is_what_the_command_prints(rows: list[Surveyed]) -> None:
    page = Path(__file__).parents[2] / "docs/FAMILIES.md"
    assert page.read_text(encoding="utf-8") == markdown(rows)


def test_who_is_refused_is_refused_by_name(rows: list[Surveyed]) -> None:
    refused = {row.family: row.refusal for row in rows if row.refusal is not None}
    assert refused.keys() == REFUSED.keys()
    for family, part in REFUSED.items():
        assert part in str(refused[family])
    assert len(rows) == 154
    assert len(rows) - len(refused) >= 140
    assert not {row.family for row in rows} & EXCLUDED.keys()


def test_models_around_a_text_model_have_its_sites(rows: list[Surveyed]) -> None:
    by_name = {row.family: row for row in rows}
    for composite, text in COMPOSITES.items():
        assert by_name[composite].sites.keys() == by_name[text].sites.keys()


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def column(site: Site, unit: int) -> Tensor:
    """The column of the down projection that a unit is multiplied with, as a view."""
    if isinstance(site, ExpertNeurons):
        module: Any = site.down
        expert, neuron = divmod(unit, site.n_units // site.n_experts)
        weight = module.down_proj[expert]
        return weight[neuron] if module.is_transposed else weight[:, neuron]
    return site.down_weight()[unit]


def unchanged_by_nothing(model: PreTrainedModel, sites: list[Site]) -> Tensor:
    """Dense logits: with nothing left out they are the very same numbers."""
    dense = logits(model)
    assert bool(dense.isfinite().all())
    with hold_windows(model, sites, Rule("magnitude", 0.0, 1)):
        assert torch.equal(logits(model), dense)
    return dense


@pytest.mark.parametrize("family", RUN)
def test_inputs_are_what_plain_torch_says(family: str) -> None:
    model = tiny_family(family)
    sites = find_input_sites(model)
    assert {site.layer for site in sites} == set(
        range(model.config.get_text_config().num_hidden_layers)
    )
    dense = unchanged_by_nothing(model, sites)
    for site in (sites[0], sites[-1]):
        # One unit left out is a column of zeros, in every map that reads it.
        seen: list[Tensor] = []
        with watching(model, [site], lambda _, h, seen=seen: seen.append(h.abs().sum(dim=(0, 1)))):
            logits(model)
        assert len(seen) == 1  # once, however many maps read it
        keep = torch.ones(site.n_units)
        unit = int(seen[0].argmax())
        keep[unit] = 0.0
        modules = {module for module, _ in site.readers}
        tied = [s for s in sites if modules & {module for module, _ in s.readers}]
        with watching(model, tied, lambda _, h, keep=keep: h * keep.to(h.dtype)):
            without = logits(model)
        before = [p.detach().clone() for p in model.parameters()]
        for module in dict.fromkeys(module for one in tied for module, _ in one.readers):
            zero_column(module, unit)
        torch.testing.assert_close(without, logits(model), rtol=1e-3, atol=1e-4)
        assert not torch.equal(without, dense)
        with torch.no_grad():
            for parameter, values in zip(model.parameters(), before, strict=True):
                parameter.copy_(values)


def zero_column(module: Any, unit: int) -> None:
    """Let a map, or all experts of a layer, read nothing of one of its inputs."""
    with torch.no_grad():
        if holds_experts(module):
            weight = module.gate_up_proj if module.has_gate else module.up_proj
            (weight[:, unit] if module.is_transposed else weight[:, :, unit]).zero_()
        else:
            (module.weight[unit] if isinstance(module, Conv1D) else module.weight[:, unit]).zero_()


@pytest.mark.parametrize("family", RUN)
def test_neurons_are_what_plain_torch_says(family: str) -> None:
    model = tiny_family(family)
    sites: list[Site] = find_sites(model, ["ffn"])
    if not sites:
        assert find_sites(model, ["state"])  # it has states alone
        return
    dense = unchanged_by_nothing(model, sites)
    # Cut where it can be cut, and masked.
    generator = torch.Generator().manual_seed(7)
    masks = {s.key: torch.rand(s.n_units, generator=generator) < 0.6 for s in sites}
    with hold_static(model, sites, masks):
        cut = logits(model)
    with hold_static(model, sites, masks, Selection(forced=[MASKED])):
        masked = logits(model)
    torch.testing.assert_close(cut, masked, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(masked, dense, rtol=1e-3, atol=1e-3)
    # One unit left out is a column of zeros.
    site = sites[-1]
    seen: list[Tensor] = []
    with watching(model, [site], lambda _, h: seen.append(h.abs().sum(dim=(0, 1)))):
        logits(model)
    unit = int(sum(seen).argmax())  # type: ignore[union-attr]
    keep = torch.ones(site.n_units)
    keep[unit] = 0.0
    weight = getattr(site.down, "weight", None)  # depths may share it
    tied = [s for s in sites if s is site or getattr(s.down, "weight", site) is weight]
    with watching(model, tied, lambda _, h: h * keep.to(h.dtype)):
        without = logits(model)
    column(site, unit).zero_()
    torch.testing.assert_close(without, logits(model), rtol=1e-3, atol=1e-4)
    assert not torch.equal(without, dense)
