from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import jinja2
import pytest
from docutils.core import publish_string

from keepset import settings

ROOT = Path(__file__).parents[3]
CAPTIONS = sorted((ROOT / "workflow" / "report").glob("*.rst"))


def test_every_figure_has_a_caption():
    drawn = {path.stem for path in (ROOT / "src/keepset/report/figures").glob("*.py")}
    assert drawn - {"__init__", "score_lines", "style"} <= {path.stem for path in CAPTIONS}


@pytest.mark.parametrize("path", CAPTIONS, ids=lambda path: path.stem)
def test_renders_as_the_report_does(path):
    config = settings.load(ROOT / "config.yaml").model_dump()
    template = jinja2.Template(path.read_text(), undefined=jinja2.StrictUndefined)
    text = template.render(snakemake=SimpleNamespace(config=config, wildcards={}))
    assert "{{" not in text
    # Halts at the first warning: markup that a reader would see as an error in the report.
    assert publish_string(text, writer="html", settings_overrides={"halt_level": 2})
