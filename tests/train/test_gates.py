"""Gates: measured on a specimen, and judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from keepset.errors import TextError
from keepset.measure.runner import Runner, perplexity
from keepset.text import Item
from keepset.train.gates import Measurement, check_gates, gates_text, measure_specimen

GOOD = Measurement(10, 20.0, 20.001, {"1": 1.0, "2": 0.9, "4": 0.8, "8": 0.1})
MEMORY = replace(GOOD, perplexity_without_state=27.0, recall_without_state=0.3)
ALL = {
    "relu": replace(GOOD, zeros={"ffn.000": 0.7, "ffn.001": 0.95}),
    "relu-l1": replace(GOOD, perplexity=20.5, perplexity_float16=20.5, zeros={"ffn.000": 0.96}),
    "swiglu": replace(GOOD, perplexity=19.0, perplexity_float16=19.0, zeros={"ffn.000": 0.0}),
    "mamba2": MEMORY,
    "moe": replace(GOOD, perplexity_without_ffn=31.0, experts={"ffn.000": [0.5, 0.02, 0.48]}),
}


def failed(**changes: Measurement) -> set[tuple[str, str]]:
    gates = check_gates({**ALL, **{name.replace("_", "-"): own for name, own in changes.items()}})
    return {(gate.specimen, gate.name) for gate in gates if not gate.passed}


def test_good_specimens_pass() -> None:
    assert failed() == set()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"relu": replace(ALL["relu"], recall={"1": 1.0, "2": 0.7, "4": 0.6, "8": 1.0})},
            {("relu", "recall with 1 to 4 facts")},
        ),
        (
            {"mamba2": replace(MEMORY, perplexity_float16=20.1)},
            {("mamba2", "float16 changes perplexity by")},
        ),
        (
            {"swiglu": replace(ALL["swiglu"], perplexity=15.0, perplexity_float16=15.0)},
            {
                ("relu", "perplexity over the best FFN specimen's"),
                ("relu-l1", "perplexity over the best FFN specimen's"),
                ("moe", "perplexity over the best FFN specimen's"),
            },
        ),
        (
            {"relu": replace(ALL["relu"], zeros={"ffn.000": 0.7, "ffn.001": 0.8})},
            {("relu", "natural zeros, mean over layers")},
        ),
        (
            {"relu_l1": replace(ALL["relu-l1"], zeros={"ffn.000": 0.94, "ffn.001": 1.0})},
            {("relu-l1", "natural zeros, smallest layer")},
        ),
        (
            {"relu_l1": replace(ALL["relu-l1"], perplexity=21.5, perplexity_float16=21.5)},
            {("relu-l1", "perplexity over relu's")},
        ),
        (
            {"mamba2": replace(MEMORY, perplexity_without_state=21.0)},
            {("mamba2", "perplexity without the state"), ("mamba2", "recall without the state")},
        ),
        (
            {"mamba2": replace(MEMORY, perplexity_without_state=21.0, recall_without_state=0.02)},
            set(),
        ),
        (
            {"moe": replace(ALL["moe"], perplexity=23.0, perplexity_float16=23.0)},
            {
                ("moe", "perplexity over the best FFN specimen's"),
                ("moe", "perplexity without the FFN"),
            },
        ),
        ({"moe": replace(ALL["moe"], perplexity=15.0, perplexity_float16=15.0)}, set()),
        (
            {"moe": replace(ALL["moe"], experts={"ffn.000": [1.0, 1.0], "ffn.001": [1.0, 0.01]})},
            {("moe", "tokens of the expert used least")},
        ),
    ],
)
def test_each_gate_fails_on_its_own(changes: dict[str, Measurement], expected: set[str]) -> None:
    assert failed(**changes) == expected


def test_the_report_counts() -> None:
    text = gates_text(check_gates({"relu": replace(ALL["relu"], recall={"1": 0.0})}))
    assert "FAIL  relu      recall with 1 to 4 facts: 0 (at least 0.8)" in text
    assert text.endswith("3 passed, 1 failed")


def test_items_without_facts_are_refused(
    tiny_model: Callable[..., PreTrainedModel], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = torch.zeros(1, 8, dtype=torch.long)
    for facts in (None, 8):
        with pytest.raises(TextError, match="some with 1 to 4 facts"):
            measure_specimen(
                tiny_model("opt"), tiny_tokenizer, rows, [Item(0, "a", "b", " c", facts, 0)]
            )


@pytest.mark.parametrize("family", ["opt", "mamba2", "zamba2", "qwen3_5_text", "qwen3_moe"])
def test_a_specimen_is_measured(
    tiny_model: Callable[..., PreTrainedModel],
    tiny_tokenizer: PreTrainedTokenizerFast,
    family: str,
) -> None:
    model = tiny_model(family)
    rows = torch.randint(4, 260, (3, 20), generator=torch.Generator().manual_seed(0))
    items = [Item(at, "t", "Anna ring, Paul key. Paul", "key", at % 2 + 1, 0) for at in range(4)]
    found = measure_specimen(model, tiny_tokenizer, rows, items)
    with torch.no_grad():
        loss = model(input_ids=rows, labels=rows).loss
    assert found.perplexity == pytest.approx(float(loss.exp()), rel=1e-4)
    assert found.perplexity_float16 != found.perplexity
    assert set(found.recall) == {"1", "2"}
    assert bool(found.zeros) == (family not in ("mamba2", "qwen3_moe"))
    if family == "opt":
        assert all(0.1 < share < 0.9 for share in found.zeros.values())
    assert (found.perplexity_without_state is None) == (family in ("opt", "qwen3_moe"))
    assert found.perplexity_without_state != found.perplexity
    assert (found.perplexity_without_ffn is None) == (family == "mamba2")
    assert set(found.experts) == ({"expert.000", "expert.001"} if family == "qwen3_moe" else set())


@pytest.mark.parametrize("family", ["qwen2", "qwen3_moe"])
@torch.no_grad()
def test_without_its_ffn_a_model_is_one_whose_down_projections_are_zero(
    tiny_model: Callable[..., PreTrainedModel],
    tiny_tokenizer: PreTrainedTokenizerFast,
    family: str,
) -> None:
    model = tiny_model(family)
    rows = torch.randint(4, 260, (3, 20), generator=torch.Generator().manual_seed(0))
    items = [Item(0, "t", "Anna ring. Anna", "ring", 1, 0)]
    measured = measure_specimen(model, tiny_tokenizer, rows, items)
    for name, parameter in model.named_parameters():
        if "down_proj" in name:
            parameter.zero_()
    plain = perplexity(Runner(model, []), rows)
    assert measured.perplexity_without_ffn == pytest.approx(plain, rel=1e-6)
    assert measured.perplexity != pytest.approx(plain, rel=1e-3)


@torch.no_grad()
def test_an_experts_share_is_of_the_tokens_that_its_router_sends_it(
    tiny_model: Callable[..., PreTrainedModel], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny_model("qwen3_moe")
    rows = torch.randint(4, 260, (3, 20), generator=torch.Generator().manual_seed(0))
    items = [Item(0, "t", "Anna ring. Anna", "ring", 1, 0)]
    shares = measure_specimen(model, tiny_tokenizer, rows, items).experts
    for logits, layer in zip(
        model(input_ids=rows, output_router_logits=True).router_logits, shares.values(), strict=True
    ):
        chosen = logits.topk(model.config.num_experts_per_tok).indices
        expected = [float((chosen == expert).any(dim=1).float().mean()) for expert in range(4)]
        assert layer == pytest.approx(expected)
