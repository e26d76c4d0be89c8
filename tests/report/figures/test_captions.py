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


def test_a_figure_without_rows_needs_a_sentence():
    assert all(figure.absent.endswith(".") for figure in FIGURES.values())


def test_the_embedded_study_draws_every_figure(config):
    figures = [*drawn(config), *drawn(config, "benchmarks"), *drawn(config, "training")]
    assert {figure.name for figure in figures} == set(FIGURES)


@pytest.mark.parametrize("name", ["tables", "workflow"])
def test_renders_as_the_report_does(config, name):
    rendered(ROOT / f"workflow/report/{name}.rst", config=config.model_dump())
