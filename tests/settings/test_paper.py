"""config/paper.yaml: the paper's models and corpora, pinned."""

import re
from pathlib import Path

import pytest

from keepset import settings
from keepset.settings import steps

PAPER = Path(__file__).parents[2] / "config/paper.yaml"


@pytest.fixture(scope="module")
def config():
    return settings.load(PAPER)


def test_it_has_the_papers_models_and_corpora(config):
    assert set(config.active_models()) == {
        *("qwen2.5-0.5b", "qwen2.5-1.5b", "opt-350m", "opt-1.3b", "opt-2.7b", "zamba2-1.2b"),
        *(f"mamba2-{size}" for size in ("130m", "370m", "780m", "1.3b", "2.7b")),
    }
    assert config.text.calibration_tokens // config.text.block == 128
    assert set(config.corpora) == {"wikitext2", "c4", "pile"}
    assert set(config.tasks) == {"lambada", "lambada-300", "recall"}


def test_the_studys_300_items_are_the_first_of_all(config):
    """They are run for themselves, and are no second witness in the ledger."""
    whole, first = config.tasks["lambada"], config.tasks["lambada-300"]
    assert (whole.items, first.items) == (5153, 300)
    assert first.source == whole.source
    judged = steps.all_steps()["judge_claims"].given(config, {})["settings"]["tasks"]
    assert judged == {"lambada": "lambada", "recall": "recall"}


def test_windows_go_to_the_studys_longest(config):
    dials = [config.corpus_grid(corpus).windowed for corpus in config.corpora]
    for dial in (*dials, config.state.windowed):
        assert max(w if w != "sequence" else config.text.block for w in dial.windows) == 1024


def test_every_revision_is_a_commit_or_is_said_not_to_be(config):
    corpora = [
        source
        for corpus in config.corpora.values()
        for source in (corpus.text, corpus.calibration, corpus.evaluation, corpus.heldout)
    ]
    sources = [*config.models.values(), *corpora, *(task.source for task in config.tasks.values())]
    floating = {
        source.hub
        for source in sources
        if source is not None and not re.fullmatch("[0-9a-f]{40}", source.revision or "")
    }
    mamba = {f"state-spaces/mamba2-{size}" for size in ("130m", "370m", "780m", "1.3b", "2.7b")}
    assert floating == mamba


def test_calibration_and_evaluation_are_different_text(config):
    for corpus in config.corpora.values():
        assert corpus.text is not None or corpus.calibration.split != corpus.evaluation.split
