"""From a budget to a recipe, a checkpoint and a report, end to end on tiny models."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

from keepset.decode import sparse_decoding
from keepset.decode.generate import compare, disagreement
from keepset.errors import KeepsetError, ModelError, TextError
from keepset.hold.cut import load_pruned, prune_states, save_pruned
from keepset.kinds import find_sites
from keepset.kinds.recipes import kept_masks
from keepset.measure.runner import Runner
from keepset.models import still_to_do
from keepset.models.anywhere import load
from keepset.rules.recipe import Recipe
from keepset.rules.rule import Rule
from keepset.settings.recipes import read_recipe
from keepset.slim.quality import Quality
from keepset.slim.settings import Budget
from keepset.slim.slimming import Model, slim
from keepset.slim.texts import Texts, split_texts
from keepset.text import Encoded

BLOCKS = torch.randint(4, 260, (36, 16), generator=torch.Generator().manual_seed(1))
DOCUMENTS = torch.arange(36) // 2
PROMPT = BLOCKS[:1, :7]
STATE = Rule("ghost", 0.5, "corpus", site="state", access="both")


def texts(items: int = 0) -> Texts:
    encoded = [Encoded(row.tolist(), 12, number) for number, row in enumerate(BLOCKS)] * 8
    return split_texts(BLOCKS, DOCUMENTS, 96, encoded[:items])


def run(model, tiny_tokenizer, folder, budget, **options):
    said = []
    outcome = slim(
        Model(model, tiny_tokenizer, "tiny", options.pop("bos", None)),
        options.pop("texts", texts()),
        budget,
        folder,
        say=said.append,
        tokens=4,
        **options,
    )
    return outcome, said


def test_parts_of_text_share_no_block():
    parts = texts(48)
    rows = [
        {tuple(row.tolist()) for row in blocks}
        for blocks in (parts.calibration, parts.search.blocks, parts.report.blocks)
    ]
    assert sum(map(len, rows)) == len(set.union(*rows)) == 36
    assert len(rows[0]) == 6
    assert len(parts.search.items) == len(parts.report.items) == 24
    # All of the text is in every part.
    assert parts.report.documents.min() < 3
    assert parts.report.documents.max() > 14
    with pytest.raises(TextError, match="256 tokens are needed"):
        split_texts(BLOCKS[:15], DOCUMENTS[:15], 96)


@pytest.mark.parametrize(("family", "bos"), [("llama", None), ("opt", 1)])
def test_speed(tiny_model, tiny_tokenizer, tmp_path, family, bos):
    model = tiny_model(family)
    dense = {name: value.clone() for name, value in model.state_dict().items()}
    outcome, said = run(model, tiny_tokenizer, tmp_path, Budget(0.05), bos=bos)
    quality = outcome.trial.quality
    assert quality.ratio_high <= 1.05
    assert 0 < outcome.trial.saved < 1
    assert any("best so far" in line and "left" in line for line in said)
    # Nothing is cut for good: the checkpoint is the dense one.
    again = load_pruned(tmp_path / "model")
    assert all(torch.equal(value, dense[name]) for name, value in again.state_dict().items())
    recipe = read_recipe(tmp_path)
    assert recipe == outcome.recipe
    assert recipe.cut is None
    # The report's quality is that of the recipe as it was written, on the checkpoint as it is.
    report = texts().report
    runner = Runner(again, find_sites(again), bos=bos)
    change = runner.block_nll(report.blocks, still_to_do(again, recipe)).sum()
    change -= runner.block_nll(report.blocks).sum()
    assert math.exp(change / runner.n_predicted(report.blocks)) == pytest.approx(
        quality.ratio, rel=1e-5
    )
    assert recipe.found["quality"]["ratio"] == pytest.approx(quality.ratio, abs=1e-6)
    # What is decoded is what the masked reference says.
    _, sparse = compare(again, PROMPT, 6, recipe, bos=bos)
    assert disagreement(again, PROMPT, sparse.tokens, recipe, bos=bos) is None
    page = (tmp_path / "report.html").read_text()
    assert "5% above dense" in page
    assert f"{quality.ratio:.4f}" in page
    assert (tmp_path / "report.png").stat().st_size > 10_000
    table = pd.read_parquet(tmp_path / "frontier.parquet")
    assert table["chosen"].sum() == 1
    assert "equal shares" in set(table["candidate"])
    assert ("gate (CATS)" in set(table["candidate"])) <= (family == "llama")


def test_a_stopped_run_goes_on(tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    stops = iter(range(100))
    measured = Runner.block_nll

    def until_stopped(self, *args, **options):
        if next(stops) == 4:
            raise KeyboardInterrupt
        return measured(self, *args, **options)

    monkeypatch.setattr(Runner, "block_nll", until_stopped)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model("llama"), tiny_tokenizer, tmp_path, Budget(0.05), comparisons=False)
    monkeypatch.undo()
    again, said = run(
        tiny_model("llama"), tiny_tokenizer, tmp_path, Budget(0.05), comparisons=False
    )
    assert any("remembered from a run before" in line for line in said)
    fresh, _ = run(
        tiny_model("llama"), tiny_tokenizer, tmp_path / "fresh", Budget(0.05), comparisons=False
    )
    assert again.recipe.rules == fresh.recipe.rules


def test_memory_is_cut_for_good(tiny_model, tiny_tokenizer, tmp_path):
    model = tiny_model("mamba2")
    before = model.num_parameters()
    budget = Budget(0.2, 20.0, save="memory")
    outcome, _ = run(model, tiny_tokenizer, tmp_path, budget, texts=texts(96))
    again = load_pruned(tmp_path / "model")
    assert again.num_parameters() < before
    recipe = read_recipe(tmp_path)
    assert recipe.cut is not None
    assert {rule.method for rule in recipe.rules.values()} == {"static"}
    assert still_to_do(again, recipe).rules == {}
    dense = tiny_model("mamba2")
    blocks = texts().report.blocks
    masked = Runner(dense, find_sites(dense)).block_nll(blocks, still_to_do(dense, recipe))
    cut = Runner(again, find_sites(again)).block_nll(blocks)
    assert cut.tolist() == pytest.approx(masked.tolist(), rel=1e-4)
    assert outcome.trial.quality.lost_high <= 20
    # Its recipe decodes on the dense one, by masks, and on the cut one, as it is.
    for network in (dense, again):
        with sparse_decoding(network, recipe):
            assert network.generate(PROMPT, max_new_tokens=3, do_sample=False).shape == (1, 10)


def test_layers_of_unlike_sizes_load_everywhere(tiny_model, tiny_tokenizer, tmp_path):
    model = tiny_model("mamba2")
    sites = {site.key: site for site in find_sites(model, ["state"])}
    keep = {key: [list(range(2 + 3 * n))] for n, key in enumerate(sites)}
    masks = kept_masks(sites, Recipe(dict.fromkeys(keep, STATE), kept=keep))
    expected = Runner(model, find_sites(model)).block_nll
    prune_states(model, masks)
    save_pruned(model, tiny_tokenizer, tmp_path / "model")
    (tmp_path / "recipe.yaml").touch()
    for folder in (tmp_path, tmp_path / "model"):
        again, _ = load(folder, dtype="float32")
        found = Runner(again, find_sites(again)).block_nll(BLOCKS)
        assert found.tolist() == pytest.approx(expected(BLOCKS).tolist(), rel=1e-6)


def test_experts_are_cut_for_size(tiny_model, tiny_tokenizer, tmp_path):
    model = tiny_model("qwen3_moe")
    before = model.num_parameters()
    outcome, _ = run(model, tiny_tokenizer, tmp_path, Budget(0.5, save="size"))
    again = load_pruned(tmp_path / "model")
    assert again.num_parameters() < before
    saved = 1 - again.num_parameters() / before
    # Rows of the router go with the experts, and are not counted.
    assert outcome.trial.saved == pytest.approx(saved, abs=0.01)


@pytest.mark.parametrize(
    ("family", "save", "message"),
    [
        ("llama", "memory", "has no bytes of recurrent states"),
        ("llama", "size", "neither experts nor a recurrent state"),
    ],
)
def test_a_model_without_such_parts_is_refused(
    tiny_model, tiny_tokenizer, tmp_path, family, save, message
):
    with pytest.raises(KeepsetError, match=message):
        run(tiny_model(family), tiny_tokenizer, tmp_path, Budget(save=save))


def test_a_budget_that_nothing_meets_says_what_the_best_was(
    tiny_model, tiny_tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(Quality, "within", lambda *_: False)
    with pytest.raises(
        KeepsetError, match=r"nothing meets the budget .*: the least that was tried, .*perplexity x"
    ):
        run(tiny_model("llama"), tiny_tokenizer, tmp_path, Budget(0.01))


def test_a_recipe_of_another_model_is_refused(tiny_model, tiny_tokenizer, tmp_path):
    run(tiny_model("llama"), tiny_tokenizer, tmp_path, Budget(0.05), comparisons=False)
    recipe = read_recipe(tmp_path)
    with (
        pytest.raises(ModelError, match=r"belongs to tiny \(a llama model"),
        sparse_decoding(tiny_model("opt"), recipe),
    ):
        pass
