"""The worked examples of CONTRIBUTING.md do what the page says, each in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def example(title: str) -> str:
    """The Python of one section."""
    section = PAGE.partition(f"### {title}\n")[2].partition("\n### ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.S)
    assert blocks, f"no example under {title}"
    return "\n".join(blocks)


CHECKS = {
    "A score": """
import keepset.rules.scores as scores
scores.NEURON_SCORES["rms"] = RMS
from keepset import Rule, Runner, RankedSets, collect_moments, find_sites
from keepset.settings.grids import StaticGrid, DynamicGrid
assert StaticGrid(scores=["rms"], sparsities=[0.5]).scores == ["rms"]
assert DynamicGrid(scores=["rms"], sparsities=[0.5]).scores == ["rms"]
from conftest import build_model
model = build_model("llama")
sites = find_sites(model, ["ffn"])
blocks = torch.randint(4, 260, (2, 16))
runner = Runner(model, sites, keep_sets=RankedSets(collect_moments(model, sites, blocks)))
for window in (1, "corpus"):
    assert runner.block_nll(blocks, Rule("rms", 0.5, window)).isfinite().all()
from keepset.decode.score import SCORES
assert "rms" in SCORES
from keepset.report.figures import score_lines
assert "rms" in score_lines.looks("ffn")
""",
    "A model family": """
from keepset import find_sites
from transformers import AutoConfig, AutoModelForCausalLM
config = AutoConfig.for_model("helium", hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                              num_attention_heads=4, num_key_value_heads=4, head_dim=8,
                              vocab_size=260, pad_token_id=0)
sites = find_sites(AutoModelForCausalLM.from_config(config), ["ffn"])
assert [len(site.up) for site in sites] == [2, 2]
assert [site.n_units for site in sites] == [48, 48]
""",
    "A kind of site": """
import sys
sys.modules.setdefault("attention_kind", sys.modules[__name__])
from keepset import Rule, Runner, RankedSets, collect_moments, find_sites
from conftest import build_model
model = build_model("llama")
sites = find_sites(model)
assert [site.key for site in sites][-2:] == ["attention.000", "attention.001"]
blocks = torch.randint(4, 260, (2, 16))
moments = collect_moments(model, sites[-2:], blocks)
runner = Runner(model, sites, keep_sets=RankedSets(moments, "attention"))
for window in (1, 4, "corpus"):
    rule = Rule("magnitude", 0.5, window, site="attention")
    assert runner.block_nll(blocks, rule).isfinite().all()
""",
    "A figure": """
import pandas as pd
ratios = pd.DataFrame({"ratio": [1.2, 2.0], "ci_low": [1.1, 1.5], "ci_high": [1.3, 3.0]})
assert draw(ratios).axes[0].get_yscale() == "log"
from keepset import settings
assert ENTRY.caption(settings.load("config.yaml")).endswith("95% intervals.")
""",
    "A claim": """
from made_up_evidence import evidence
from keepset.analyse.claims import judge
rows, cases = judge(evidence("pretrained"), [CLAIM])
assert rows["claim"].tolist() == ["D9"]
assert rows["family"].tolist() == ["keepset"]
""",
}


@pytest.mark.parametrize("title", CHECKS)
def test_an_addition_is_what_the_page_says(title):
    paths = [ROOT / "src", ROOT / "tests", ROOT / "tests/analyse/claims"]
    code = f"import torch\n{example(title)}\n{CHECKS[title]}"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_every_section_is_checked():
    additions = PAGE.partition("\n## Add\n")[2]
    assert re.findall(r"^### (.+)$", additions, re.M) == list(CHECKS)
