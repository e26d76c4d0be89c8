"""Made-up tables in which every claim holds, and edits after which one of them does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd

from keepset.analyse.claims import Evidence
from keepset.settings import Statistics

CORPORA = ("wiki", "docs")
TASKS = {"last-word": "built", "recall": "recall"}
BLOCKS, TOKENS, ITEMS, LAYERS = 24, 127, 600, 12
DOCUMENTS = 16
"""Some have two blocks among the first BLOCKS, which all rules run on."""
GROUPS = 8
"""Of calibration documents, each of which is left out once."""
COEFFICIENTS = ("pearson", "spearman", "kendall")
MORE_BLOCKS = 36
"""What dense and dynamic rules run on."""
DRAWS = 3
WINDOWS = ("8", "64", "sequence")
NAMES = {
    "pretrained": (
        *("opt-1.3b", "opt-l1", "qwen2.5-1.5b", "mamba2-1.3b", "zamba2-1.2b"),
        *("olmoe-1b-7b", "qwen3.5-0.8b"),
    ),
    "specimen": ("relu", "relu-l1", "swiglu", "mamba2", "hybrid", "moe", "deltanet"),
}
KINDS = ("relu", "l1", "swiglu", "mamba", "hybrid", "moe", "delta")
WITH_STATE = ("mamba", "hybrid", "delta")
TRAITS = {
    "relu": ("transformer", "relu", "none", False),
    "l1": ("transformer", "relu", "none", True),
    "swiglu": ("transformer", "swiglu", "none", False),
    "mamba": ("recurrent", "none", "mamba2", False),
    "hybrid": ("hybrid", "other", "mamba2", False),
    "moe": ("transformer", "experts", "none", False),
    "delta": ("hybrid", "swiglu", "delta", False),
}
# Nats per token that a setting costs, by kind of model.
STATIC = {0.5: 2.0, 0.9: np.log(300)}
DYNAMIC = {
    "relu": {0.5: 0.0, 0.9: 0.0, 0.95: 0.0, 0.99: 1.0},
    "l1": {0.5: 0.0, 0.9: 0.0, 0.95: 0.0, 0.99: 0.0},
    "swiglu": {0.5: 0.1, 0.9: 0.8, 0.95: 2.5, 0.99: 4.0},
    "hybrid": {0.5: 0.02, 0.9: 0.1, 0.95: 0.15, 0.99: 0.5},
    "moe": {0.5: 0.1, 0.9: 0.8, 0.95: 2.5, 0.99: 4.0},
    "delta": {0.5: 0.02, 0.9: 0.1, 0.95: 0.15, 0.99: 0.5},
}
GHOST = {0.5: 0.05, 0.7: 0.2, 0.9: 0.6}
RIVALS = {"magnitude": 2.0, "random": 3.0}


def models(origin: str) -> pd.DataFrame:
    rows = [(name, origin, *TRAITS[kind]) for name, kind in zip(NAMES[origin], KINDS, strict=True)]
    table = pd.DataFrame(rows, columns=["model", "origin", "architecture", "ffn", "state", "l1"])
    return table.assign(induction=False, experts=table["ffn"] == "experts")


def _ffn(kind: str):
    """(setting, nats) of every FFN run."""
    static = {0.5: 0.1, 0.9: 0.3} if kind in ("hybrid", "delta") else STATIC
    for sparsity, nats in DYNAMIC[kind].items():
        yield ("dynamic", "magnitude", sparsity, "1", "oracle"), nats
    for sparsity, nats in static.items():
        yield ("static", "magnitude", sparsity, "corpus", "none"), nats
        low = DYNAMIC[kind][sparsity]
        for step, window in enumerate(WINDOWS, start=1):
            held = low + (nats - low) * step / 4
            yield ("windowed", "magnitude", sparsity, window, "oracle"), held
            yield ("windowed", "magnitude", sparsity, window, "causal"), held + 0.4
    yield ("static", "taylor", 0.9, "corpus", "none"), static[0.9] + 0.2 + DYNAMIC[kind][0.9]


def _state():
    for sparsity, nats in GHOST.items():
        yield ("static", "ghost", sparsity, "corpus", "none", "both"), nats
        for rival, factor in RIVALS.items():
            yield ("static", rival, sparsity, "corpus", "none", "both"), factor * nats
    for score in ("magnitude", "impact"):
        yield ("dynamic", score, 0.9, "1", "oracle", "read"), 0.3
        yield ("dynamic", score, 0.9, "1", "oracle", "write"), 1.5


def _inputs():
    yield ("dynamic", "magnitude", 0.9, "1", "oracle", "none"), 0.8
    yield ("static", "magnitude", 0.9, "corpus", "none", "none"), 2.0


def _experts():
    for sparsity, nats in ((0.5, 0.0), (0.875, 0.2)):
        yield ("dynamic", "magnitude", sparsity, "1", "oracle", "none"), nats
        for score in ("magnitude", "impact"):
            yield ("static", score, sparsity, "corpus", "none", "none"), 1.0 + nats


def _runs(kind: str):
    yield "none", ("dense", "none", 0.0, "none", "none", "none"), 0.0, 0
    if kind != "mamba":
        yield from (("ffn", (*setting, "none"), nats, 0) for setting, nats in _ffn(kind))
    if kind == "mamba":
        yield from (("input", setting, nats, 0) for setting, nats in _inputs())
    if kind == "moe":
        yield from (("expert", setting, nats, 0) for setting, nats in _experts())
    if kind in WITH_STATE:
        for setting, nats in _state():
            for seed in range(3 if setting[1] == "random" else 1):
                yield "state", setting, nats * (1 + 0.1 * seed), seed


def perplexity(origin: str, noise: float = 0.002, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    heads, losses = [], []
    for name, kind in zip(NAMES[origin], KINDS, strict=True):
        for corpus in CORPORA:
            base = rng.normal(3.0, 0.2, size=MORE_BLOCKS)
            for site, setting, nats, number in _runs(kind):
                blocks = MORE_BLOCKS if setting[0] in ("dense", "dynamic") else BLOCKS
                spread = (noise + 0.05 * nats) * (setting[0] != "dense")
                losses.append(base[:blocks] + nats + rng.normal(0, spread, size=blocks))
                heads.append(("made-up", name, origin, corpus, site, number, *setting))
    columns = ["study", "model", "origin", "corpus", "site", "seed", *SETTING]
    lengths = [len(loss) for loss in losses]
    table = pd.DataFrame(heads, columns=columns)
    table = table.loc[np.repeat(table.index, lengths)].reset_index(drop=True)
    block = np.concatenate([np.arange(length) for length in lengths])
    return table.assign(
        block=block,
        document=block * DOCUMENTS // BLOCKS,
        nll=TOKENS * np.concatenate(losses),
        n_tokens=TOKENS,
        n_words=90,
        n_bytes=500,
    )


def rounding(table: pd.DataFrame, noise: float = 0.002, seed: int = 5) -> pd.DataFrame:
    """The dynamic rules of a perplexity table, DRAWS times with noise."""
    rng = np.random.default_rng(seed)
    dynamic = table[table["method"] == "dynamic"]
    draws = [dynamic.assign(draw=draw) for draw in range(1, DRAWS + 1)]
    again = pd.concat(draws, ignore_index=True)
    return again.assign(nll=again["nll"] + TOKENS * rng.normal(0, noise, size=len(again)))


SETTING = ("method", "score", "sparsity", "window", "choice", "access")
# Share of the items right dense that a setting gets wrong.
LOST = {"relu": 0.005, "l1": 0.005, "swiglu": 0.4, "hybrid": 0.1, "moe": 0.4, "delta": 0.1}


def capability(origin: str, seed: int = 1) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    parts = []
    for name, kind in zip(NAMES[origin], KINDS, strict=True):
        for task in TASKS:
            dense = rng.random(ITEMS) < 0.7
            runs = [("none", ("dense", "none", 0.0, "none", "none", "none"), 0.0)]
            if kind != "mamba":
                setting = ("dynamic", "magnitude", 0.9, "1", "oracle", "none")
                runs += [("ffn", setting, LOST[kind])]
            if kind in WITH_STATE:
                held = [("static", "ghost", s, "corpus", "none", "both") for s in (0.5, 0.9)]
                runs += [("state", setting, 0.2) for setting in held]
            for site, setting, lost in runs:
                correct = dense & (rng.random(ITEMS) >= lost)
                columns = {"study": "made-up", "model": name, "origin": origin, "task": task}
                columns |= {"site": site, "seed": 0, **dict(zip(SETTING, setting, strict=True))}
                columns |= {"item": range(ITEMS), "correct": correct, "logprob": -1.0}
                parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def correlation(origin: str, seed: int = 2) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for name, kind in zip(NAMES[origin], KINDS, strict=True):
        sites = [] if kind == "mamba" else [("ffn", "weight", 0.2)]
        sites += [("state", "ghost", -0.25)] if kind in WITH_STATE else []
        for site, impact, level in sites:
            own = level + rng.normal(0, 0.05, size=LAYERS)
            for corpus in CORPORA:
                whole = own + rng.normal(0, 0.01, size=LAYERS)
                columns = {"study": "made-up", "model": name, "origin": origin, "corpus": corpus}
                columns |= {"site": site, "size": "magnitude", "impact": impact}
                columns |= {"ci_low": -1.0, "ci_high": 1.0, "n_units": 100, "n_documents": 20}
                for left_out in range(-1, GROUPS):
                    here = whole + rng.normal(0, 0.01, size=LAYERS) * (left_out >= 0)
                    part = pd.DataFrame({"layer": [*range(LAYERS), -1], **columns})
                    values = {name: [*here, here.mean()] for name in COEFFICIENTS}
                    rows.append(part.assign(left_out=left_out, **values))
    return pd.concat(rows, ignore_index=True)


def ablations(origin: str, seed: int = 3) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    parts = []
    for name, kind in zip(NAMES[origin], KINDS, strict=True):
        if kind == "mamba":
            continue
        loss = rng.normal(size=64)
        columns = {"model": name, "origin": origin, "corpus": "wiki"}
        columns |= {"layer": np.repeat(np.arange(4), 16), "unit": range(64), "loss": loss}
        columns |= {"weight": rng.random(64), "n_documents": 20}
        for text in ("", "_other"):
            columns |= {notion + text: rng.random(64) for notion in ("magnitude", "output")}
            columns |= {f"taylor{text}": np.abs(loss) * rng.uniform(0.8, 1.2, size=64)}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


# How many of a layer's 100 channels are low or high in weight and in energy.
QUADRANTS = {("low", "high"): 20, ("high", "low"): 20, ("low", "low"): 30, ("high", "high"): 30}


def channels(origin: str, quadrants: dict = QUADRANTS, seed: int = 4) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    parts = []
    for name, kind in zip(NAMES[origin], KINDS, strict=True):
        if kind not in WITH_STATE:
            continue
        for layer in range(LAYERS):
            shift = int(rng.integers(-2, 3))
            counts = dict(quadrants)
            counts["low", "high"] += shift
            counts["low", "low"] -= shift
            counts["high", "low"] += shift
            counts["high", "high"] -= shift
            kinds = [kind for kind, count in counts.items() for _ in range(count)]
            columns = {"model": name, "origin": origin, "corpus": "wiki", "layer": layer}
            columns |= {"group": 0, "channel": range(100)}
            columns["n_documents"] = 20
            for at, column in enumerate(("magnitude", "energy")):
                high = np.array([kind[at] == "high" for kind in kinds])
                columns[column] = high + rng.random(100)
            for left_out in range(-1, GROUPS):
                noise = rng.normal(0, 0.1, size=100) * (left_out >= 0)
                part = pd.DataFrame(columns).assign(left_out=left_out)
                parts.append(part.assign(energy=part["energy"] + noise))
    return pd.concat(parts, ignore_index=True)


def memory(origin: str) -> pd.DataFrame:
    rows = [
        {"model": name, "origin": origin, "corpus": "wiki", "method": method, "n_tokens": 512}
        | {"peak_bytes": peak}
        for name, kind in zip(NAMES[origin], KINDS, strict=True)
        if kind in WITH_STATE
        for method, peak in (("forward", 14_000), ("ghost", 15_000), ("taylor", 50_000))
    ]
    return pd.DataFrame(rows)


def evidence(origin: str, noise: float = 0.002) -> Evidence:
    """A study in which every claim holds: of pretrained models, or of specimens alone."""
    losses = perplexity(origin, noise)
    return Evidence(
        models=models(origin),
        perplexity=losses,
        rounding=rounding(losses),
        capability=capability(origin),
        correlation=correlation(origin),
        ablations=ablations(origin),
        channels=channels(origin),
        memory=memory(origin),
        tasks=TASKS,
        statistics=Statistics(),
    )


def where(table: pd.DataFrame, **values: object) -> pd.Series:
    """Rows with these values; a list names alternatives."""
    keep = pd.Series(True, index=table.index)
    for column, value in values.items():
        keep &= table[column].isin(value if isinstance(value, list) else [value])
    return keep


def shift(found: Evidence, nats: float, **rows: object) -> Evidence:
    """Add nats per token to rows of the perplexity table."""
    table = found.perplexity.copy()
    table.loc[where(table, **rows), "nll"] += nats * TOKENS
    return replace(found, perplexity=table)


def correlate(found: Evidence, change: float, **rows: object) -> Evidence:
    """Add to coefficients."""
    table = found.correlation.copy()
    table.loc[where(table, **rows), "spearman"] += change
    return replace(found, correlation=table)


def answer(found: Evidence, correct: bool, share: float, **rows: object) -> Evidence:
    """Set the first `share` of the items to right or wrong."""
    table = found.capability.copy()
    table.loc[where(table, **rows) & (table["item"] < share * ITEMS), "correct"] = correct
    return replace(found, capability=table)


def named(found: Evidence, *kinds: str) -> list[str]:
    """The models of these kinds."""
    names = NAMES[found.models["origin"].iloc[0]]
    return [name for name, kind in zip(names, KINDS, strict=True) if kind in kinds]


def _quadrants(found: Evidence) -> Evidence:
    few = {("low", "high"): 4, ("high", "low"): 4, ("low", "low"): 46, ("high", "high"): 46}
    return replace(found, channels=channels(found.models["origin"].iloc[0], few))


def _swap_predictors(found: Evidence) -> Evidence:
    table = found.ablations
    swapped = {"taylor": table["weight"], "taylor_other": table["weight"]}
    return replace(found, ablations=table.assign(**swapped, weight=table["taylor"]))


DYN = {"site": "ffn", "method": "dynamic"}
DYN90 = {**DYN, "sparsity": 0.9}
OWN_STATE = {"site": "state", "sparsity": [0.5, 0.7, 0.9]}

BREAK: dict[str, Callable[[Evidence], Evidence]] = {
    "C1": lambda e: correlate(e, -0.4, site="ffn"),
    "C2": lambda e: correlate(e, 0.2, site="ffn", corpus="docs"),
    "C3": lambda e: correlate(e, 0.5, site="state"),
    "C4": lambda e: shift(e, -6.0, site="ffn", method="static", sparsity=0.9),
    "C5": lambda e: shift(e, 4.0, **DYN, sparsity=0.95, model=named(e, "relu")),
    "C6": lambda e: shift(e, -2.6, **DYN, sparsity=0.95, model=named(e, "swiglu")),
    "C7": lambda e: answer(e, False, 0.8, **DYN90, model=named(e, "relu")),
    "C8": lambda e: answer(e, True, 1.0, **DYN90, model=named(e, "swiglu")),
    "C9": lambda e: shift(e, 9.0, site="ffn", method="static", model=named(e, "hybrid")),
    "C10": lambda e: shift(e, 9.0, window="8", choice="oracle"),
    "C11": lambda e: shift(e, -9.0, score="taylor", method="static"),
    "C12": lambda e: shift(e, -1.5, score="magnitude", method="static", **OWN_STATE),
    "C13": lambda e: shift(e, 3.0, **DYN, sparsity=0.99, model=named(e, "l1")),
    "C14": _quadrants,
    "C15": lambda e: answer(e, True, 1.0, site="state", score="ghost"),
    "C16": lambda e: replace(
        e, memory=e.memory.assign(peak_bytes=e.memory["peak_bytes"].replace(15_000, 60_000))
    ),
    "D1": lambda e: shift(e, -1.4, site="state", method="dynamic", access="write"),
    "D2": lambda e: shift(e, 2.0, site="state", method="dynamic", access="read"),
    "D3": lambda e: shift(e, -0.9, method="windowed", choice="causal"),
    "D6": lambda e: shift(e, 4.0, **DYN, sparsity=0.95, model=named(e, "relu")),
    "D7": lambda e: shift(e, 3.0, **DYN, sparsity=0.99, model=named(e, "l1")),
    "D8": lambda e: answer(e, False, 0.8, **DYN90, model=named(e, "relu")),
    "E1": lambda e: shift(e, 2.0, site="expert", method="dynamic", sparsity=0.875),
    "E2": lambda e: correlate(e, 1.0, site="state", model=named(e, "delta")),
    "E3": lambda e: shift(e, 1.0, **DYN90, model=named(e, "delta")),
    "F1": lambda e: shift(e, 2.0, site="input", method="dynamic"),
    "D4": _swap_predictors,
    "D5": _swap_predictors,
}
