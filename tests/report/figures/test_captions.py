from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import jinja2
import pytest
from docutils.core import publish_string

from keepset import settings
from keepset.settings.figures import FIGURES, drawn

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def config():
    return settings.load(ROOT / "config.yaml")


def rendered(path, **snakemake):
    """The HTML of a caption, as the report has it."""
    template = jinja2.Template(path.read_text(), undefined=jinja2.StrictUndefined)
    text = template.render(snakemake=SimpleNamespace(**snakemake))
    assert "{{" not in text
    # Halts at the first warning: markup that a reader would see as an error in the report.
    return publish_string(text, writer="html", settings_overrides={"halt_level": 2})


def test_every_figure_is_registered():
    modules = {path.stem for path in (ROOT / "src/keepset/report/figures").glob("*.py")}
    assert modules - {"__init__", "layout", "score_lines", "style"} == set(FIGURES)


@pytest.mark.parametrize("figure", FIGURES.values(), ids=lambda figure: figure.name)
def test_the_report_shows_its_caption(config, figure):
    captions = {"draw": figure.caption(config)}
    path = ROOT / "workflow/report/caption.rst"
    page = rendered(path, config={"captions": captions}, rule="draw")
    assert "{" not in captions["draw"]
    assert b"<strong>" in page


def test_captions_say_what_intervals_cover_and_which_token_is_dense(config):
    for name in ("static_dynamic", "scores", "dial", "memory_dial", "side_by_side", "frontier"):
        caption = FIGURES[name].caption(config)
        assert "95% t intervals over the documents" in caption
        assert "The first token of a context is run dense under every rule on neurons" in caption
    assert not [name for name, one in FIGURES.items() if "bootstrap" in one.caption(config)]


def test_rounding_is_spoken_of_where_it_was_measured(config):
    statistics = config.statistics.model_copy(update={"rounding_draws": 0})
    without = config.model_copy(update={"statistics": statistics})
    caption = FIGURES["static_dynamic"].caption
    draws = config.statistics.rounding_draws
    assert f"over {draws} runs with noise in the last bit" in caption(config)
    assert "Rounding was not measured." in caption(without)


def test_what_predicts_a_loss_is_drawn_where_units_are_ablated(config):
    assert "predicting" in {figure.name for figure in drawn(config)}
    corpora = {
        name: corpus.model_copy(update={"ablation": False})
        for name, corpus in config.corpora.items()
    }
    without = config.model_copy(update={"corpora": corpora})
    assert "predicting" not in {figure.name for figure in drawn(without)}


def test_a_figure_without_rows_needs_a_sentence():
    assert all(figure.absent.endswith(".") for figure in FIGURES.values())


def test_the_embedded_study_draws_every_figure(config):
    targets = ("figures", "benchmarks", "slim", "training")
    figures = [figure for target in targets for figure in drawn(config, target)]
    assert {figure.name for figure in figures} == set(FIGURES)


@pytest.mark.parametrize("name", ["tables", "workflow"])
def test_renders_as_the_report_does(config, name):
    rendered(ROOT / f"workflow/report/{name}.rst", config=config.model_dump())
