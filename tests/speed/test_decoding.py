import pandas as pd
import pytest
import torch

from keepset.calibrate import activations
from keepset.errors import KeepsetError
from keepset.kernels.selection import Selection
from keepset.rules.rule import Rule
from keepset.settings import Benchmark
from keepset.settings.grid import benchmark_rules
from keepset.sites.ffn import find_ffn_sites
from keepset.speed import decoding, timing

MACHINE = timing.Machine(torch.device("cpu"), 1 << 14, 1e9)
SETTING = Benchmark(corpus="letters", sparsities=[0.5], sparsity=0.5, windows=[1, 4], tokens=6)


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama")


def prompt(tokens=8):
    return torch.randint(4, 260, (1, tokens), generator=torch.Generator().manual_seed(1))


def test_every_rule_is_timed_over_whole_windows(model):
    sums = activations.collect_moments(
        model, find_ffn_sites(model), prompt(32), gradients=False, batch_tokens=64
    )
    rules = benchmark_rules(SETTING)
    held = Selection(forced=["held"])
    timed = decoding.time_decoding(model, prompt(), rules, 6, MACHINE, sums, held)
    rows = pd.DataFrame(list(timed))
    cells = rows.set_index(["method", "window", "choice"])
    assert list(cells.index) == [
        ("dynamic", "1", "oracle"),
        ("static", "corpus", "none"),
        ("windowed", "1", "causal"),
        ("windowed", "4", "causal"),
        ("windowed", "4", "oracle"),
    ]
    assert cells["rounds"].tolist() == [6, 6, 6, 2, 2]  # tokens, or windows of four
    assert cells["path"].loc["windowed"].eq("held").all()
    layer = 3 * 48 * 32 * 4  # gate, up and down, float32
    body = cells["bytes"].loc[[("dynamic", "1", "oracle"), ("static", "corpus", "none")]]
    assert body.diff().iloc[1] == -2 * (layer // 3)  # 2 layers x half of gate and up


def test_a_wrong_token_is_not_timed(model, monkeypatch):
    def wrong(*arguments, **options):
        dense, sparse = compare(*arguments, **options)
        sparse.tokens[2] = (sparse.tokens[2] + 1) % 260
        return dense, sparse

    compare = decoding.compare
    monkeypatch.setattr(decoding, "compare", wrong)
    for rule in (Rule("magnitude", 0.5, 1), Rule("magnitude", 0.5, 4)):
        with pytest.raises(KeepsetError, match="no time is reported"):
            list(decoding.time_decoding(model, prompt(), [rule], 6, MACHINE, None, Selection()))
