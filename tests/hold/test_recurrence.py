"""The recurrence that is scored is the one that transformers runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from keepset.hold.memories import scanning
from keepset.hold.recurrence import Scan
from keepset.kernels import naive
from keepset.sites.state import StateSite, find_state_sites
from state_models import FAMILIES, SELECTIVE, UNCUT, shape

Factory = Callable[..., PreTrainedModel]


class Collect:
    """Computes y by the recurrence, and keeps every scan."""

    def __init__(self, replace: bool = False) -> None:
        self.scans: dict[str, Scan] = {}
        self._replace = replace

    def scan(self, site: StateSite, scan: Scan) -> Scan | Tensor:
        self.scans[site.key] = scan
        if not self._replace:
            return scan
        recurrence = scan.recurrence()
        everything = torch.ones(recurrence.C.shape[0], site.n_groups, site.n_state)
        y = recurrence.read(recurrence.empty(), 0, recurrence.tokens, everything)
        return scan.with_skip(y)

    def step(self, site: StateSite) -> Tensor:
        return torch.ones(site.n_groups, site.n_state, dtype=torch.bool)


def logits(model: PreTrainedModel, ids: Tensor, **more: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False, **more).logits


@pytest.mark.parametrize("tokens", [1, 5, 16, 33])
@pytest.mark.parametrize(
    ("family", "groups"),
    [*((name, n) for name in FAMILIES for n in (1, 2)), *SELECTIVE.items(), *UNCUT.items()],
)
def test_recurrence_gives_transformers_logits(
    tiny_model: Factory, family: str, groups: int, tokens: int
) -> None:
    model = tiny_model(family, **shape(family, groups))
    ids = torch.randint(4, 260, (2, tokens), generator=torch.Generator().manual_seed(tokens))
    expected = logits(model, ids)
    with scanning(model, find_state_sites(model), Collect(replace=True)):
        found = logits(model, ids)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["mamba2", "falcon_mamba", "zamba", "minimax"])
def test_recurrence_agrees_with_padding_in_front(tiny_model: Factory, family: str) -> None:
    model = tiny_model(family)
    ids = torch.randint(4, 260, (2, 19))
    mask = torch.ones_like(ids)
    mask[0, :6] = 0
    expected = logits(model, ids, attention_mask=mask)
    with scanning(model, find_state_sites(model), Collect(replace=True)):
        found = logits(model, ids, attention_mask=mask)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_recurrence_agrees_with_decoding_step_by_step(tiny_model: Factory) -> None:
    model = tiny_model("mamba2", **shape("mamba2", 2))
    ids = torch.randint(4, 260, (2, 21))
    with scanning(model, find_state_sites(model), Collect(replace=True)):
        expected = logits(model, ids)
    rows, past = [], None
    with torch.no_grad():
        for t in range(ids.shape[1]):
            found = model(input_ids=ids[:, t : t + 1], cache_params=past, use_cache=True)
            past = found.cache_params
            rows.append(found.logits)
    torch.testing.assert_close(torch.cat(rows, dim=1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 4])
def test_sizes_are_those_of_the_plain_recurrence(tiny_model: Factory, groups: int) -> None:
    model = tiny_model("mamba2", **shape("mamba2", groups))
    sites, collect = find_state_sites(model), Collect()
    with scanning(model, sites, collect):
        logits(model, torch.randint(4, 260, (2, 13)))
    for site in sites:
        scan = collect.scans[site.key]
        step = naive.time_steps(scan.dt, scan.rest["dt_bias"], True, scan.rest["dt_limit"])
        states = naive.scan(scan.x, step, scan.A, scan.B, scan.C)[1]
        squares = states.square().sum(dim=3).unflatten(2, (groups, -1)).sum(dim=3)
        recurrence = scan.recurrence()
        state = recurrence.empty()
        first = recurrence.sizes(state, 0, 5)
        found = torch.cat([first, recurrence.sizes(state, 5, 13)], dim=1)
        torch.testing.assert_close(found, squares, rtol=1e-5, atol=1e-6)


def test_everything_is_put_back(tiny_model: Factory) -> None:
    model = tiny_model("mamba2")
    sites, ids = find_state_sites(model), torch.randint(4, 260, (1, 9))
    before = logits(model, ids)

    class Broken(Collect):
        def scan(self, site: StateSite, scan: Scan) -> Scan | Tensor:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"), scanning(model, sites, Broken()):
        logits(model, ids)
    assert all(not site.mixer._forward_pre_hooks for site in sites)
    assert torch.equal(logits(model, ids), before)
