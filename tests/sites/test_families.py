"""A family of models is one record."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from keepset.analyse.claims.evidence import traits
from keepset.errors import ConfigError, ModelError
from keepset.hold.cut import prune_states
from keepset.measure.runner import Runner
from keepset.plan.sizes import from_config
from keepset.rules.rule import Rule
from keepset.settings import find_specimens
from keepset.sites.families import FAMILIES, Family, Layout, register
from keepset.sites.ffn import find_ffn_sites
from keepset.sites.size_formulas import Size
from keepset.sites.state import find_state_sites
from keepset.train.induction import start_induction

Factory = Callable[..., PreTrainedModel]

started: list[str] = []


def start_made_up(_body: Any, config: Any, _generator: torch.Generator) -> None:
    started.append(config.model_type)


MADE_UP = Family(
    "lfm2 made_up",
    Layout("feed_forward.w2", ("feed_forward.w1", "feed_forward.w3"), gated=True),
    activation="silu",
    architecture="hybrid",
    state_size_key="columns",
    memory="mamba2",
    size=lambda content: Size(content["n"], content["n"], d_model=1, vocabulary=1),
    start=f"{__name__}:start_made_up",
)


@pytest.fixture
def _made_up() -> Iterator[None]:
    before = dict(FAMILIES)
    register(MADE_UP)
    yield
    FAMILIES.clear()
    FAMILIES.update(before)


def named(model: PreTrainedModel, model_type: str) -> PreTrainedModel:
    """The same model, of another family as far as its configuration says."""
    model.config.model_type = model_type
    return model


@pytest.mark.usefixtures("_made_up")
def test_its_sites_are_found(tiny_model: Factory) -> None:
    sites = find_ffn_sites(tiny_model("lfm2"))
    assert [(site.layer, site.gated, site.activation) for site in sites] == [
        (0, True, "silu"),
        (1, True, "silu"),
    ]


@pytest.mark.usefixtures("_made_up")
def test_its_states_can_be_cut(tiny_model: Factory) -> None:
    model = named(tiny_model("mamba2"), "made_up")
    kept = {
        site.key: (torch.arange(site.n_state) < 3).expand(site.n_groups, -1)
        for site in find_state_sites(model)
    }
    prune_states(model, kept)
    assert model.config.columns == 3


@pytest.mark.usefixtures("_made_up")
def test_plan_claims_and_configuration_know_it(tmp_path: Path) -> None:
    assert from_config({"model_type": "made_up", "n": 7}) == Size(7, 7, 1, 1)
    info = {"name": "m", "origin": "pretrained", "model_type": "made_up", "activation": "silu"}
    assert traits(info)["architecture"] == "hybrid"
    (tmp_path / "m").mkdir()
    (tmp_path / "m/config.json").write_text(json.dumps({"model_type": "made_up"}))
    assert find_specimens(str(tmp_path))["m"].sites == ["ffn", "input", "state"]


@pytest.mark.usefixtures("_made_up")
def test_its_training_starts_where_the_record_says(tiny_model: Factory) -> None:
    start_induction(named(tiny_model("llama"), "made_up"), seed=0)
    assert started == ["made_up"]


def test_messages_say_where_to_add_a_family(
    tiny_model: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("lfm2", "lfm2_moe", "lfm3"):
        monkeypatch.delitem(FAMILIES, name)
    with pytest.raises(ModelError, match=r"a record in keepset/sites/families\.py"):
        find_ffn_sites(tiny_model("lfm2"))
    mamba = named(tiny_model("mamba2"), "made_up")
    kept = {
        site.key: torch.ones(site.n_groups, site.n_state, dtype=torch.bool)
        for site in find_state_sites(mamba)
    }
    with pytest.raises(ModelError, match=r"state_size_key .* keepset/sites/families\.py"):
        prune_states(mamba, kept)
    with pytest.raises(
        ConfigError, match="known for mamba2, opt, qwen2, qwen3_5_text, qwen3_moe, zamba2"
    ):
        start_induction(mamba, seed=0)


def test_every_training_start_is_there() -> None:
    from pkgutil import resolve_name

    assert all(callable(resolve_name(f.start)) for f in FAMILIES.values() if f.start)


@pytest.mark.parametrize(
    ("model_type", "architecture", "sites"),
    [
        ("llama", "transformer", ("ffn", "input")),
        ("zamba2", "hybrid", ("ffn", "input", "state")),
        ("jamba", "hybrid", ("ffn", "input", "expert", "state")),
        ("gpt_oss", "transformer", ("ffn", "input", "expert")),
        ("mamba2", "recurrent", ("input", "state")),
    ],
)
def test_kinds_of_families(model_type: str, architecture: str, sites: tuple[str, ...]) -> None:
    family = FAMILIES[model_type]
    assert (family.architecture, family.sites) == (architecture, sites)


@pytest.mark.parametrize(
    ("family", "message"),
    [("rwkv", "no state channels: .* quotient"), ("llama", "no state channels$")],
)
def test_a_rule_on_what_a_family_has_not_says_why(
    tiny_model: Factory, family: str, message: str
) -> None:
    model = tiny_model(family)
    assert find_state_sites(model) == []
    rule = Rule("impact", 0.5, 4, site="state", access="read")
    with pytest.raises(ModelError, match=message), Runner(model, []).holding(rule):
        pass


def test_the_records_need_no_torch() -> None:
    code = "import sys, keepset.sites.families; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
