"""Made-up result tables with the shape of the study's, from a fixed seed."""

from __future__ import annotations

import numpy as np
import pandas as pd

SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98)
WINDOWS = ("1", "2", "4", "8", "16", "32", "64", "128", "sequence")
MODELS = {
    "smollm2-135m": "pretrained",
    "relu": "specimen",
    "swiglu": "specimen",
    "opt-2.7b": "pretrained",
    "qwen2.5-1.5b": "pretrained",
    "qwen2.5-0.5b": "pretrained",
    "opt-1.3b": "pretrained",
    "zamba2-hybrid": "specimen",
}
SCORE_COST = {"magnitude": 1.0, "impact": 0.9, "taylor": 1.1, "weight": 1.6, "random": 2.2}
LOSS_SCORES = ["magnitude", "output", "taylor", "weight"]
LOSS_SCORES += [f"{name}_other" for name in LOSS_SCORES[:3]]
DENSE = {"method": "dense", "score": "none", "seed": 0, "sparsity": 0.0}
DENSE |= {"window": "none", "choice": "none"}


def _setting(method, score, sparsity, window, choice, seed=2026):
    names = ("method", "score", "sparsity", "window", "choice", "seed")
    return dict(zip(names, (method, score, sparsity, window, choice, seed), strict=True))


def _settings(scores, sparsities):
    for score in scores:
        for seed in range(2026, 2031 if score == "random" else 2027):
            for sparsity in sparsities:
                yield _setting("static", score, sparsity, "corpus", "none", seed)
                if score in ("magnitude", "impact", "random"):
                    yield _setting("dynamic", score, sparsity, "1", "oracle", seed)


def _dial(sparsities, windows):
    for sparsity in sparsities:
        for choice in ("oracle", "causal"):
            for window in windows:
                if (window, choice) != ("1", "oracle"):
                    yield _setting("windowed", "magnitude", sparsity, window, choice)


def _cost(setting, tough):
    """Nats per token that a setting costs."""
    if setting["method"] == "dense":
        return 0.0
    hold = {"sequence": 8.0, "corpus": 10.0}.get(setting["window"])
    hold = np.log2(float(setting["window"])) if hold is None else hold
    hold += 1.5 * (setting["choice"] == "causal")
    push = setting["sparsity"] ** 4 * SCORE_COST[setting["score"]]
    return push * (0.25 + 0.7 * hold) * tough


def perplexity(models=None, corpora=("wiki", "speeches", "docs"), blocks=8, seed=0):
    """The `perplexity` table: all scores on the first corpus, magnitude on the others."""
    rng = np.random.default_rng(seed)
    models = models or list(MODELS)[:3]
    parts = []
    for model in models:
        tough = 0.2 if model.startswith(("relu", "opt")) else 1.0
        for at, corpus in enumerate(corpora):
            scores = list(SCORE_COST) if at == 0 else ["magnitude"]
            sparsities = SPARSITIES if at == 0 else (0.9,)
            base = rng.normal(3.0, 0.2, size=blocks)
            grid = [DENSE, *_settings(scores, SPARSITIES), *_dial(sparsities, WINDOWS)]
            for setting in grid:
                cost = _cost(setting, tough)
                noise = rng.normal(0, 0.12, size=blocks) * cost
                columns = {"study": "made-up", "model": model, "origin": MODELS[model]}
                columns |= {"corpus": corpus, "site": "ffn", **setting, "block": range(blocks)}
                columns |= {"document": range(blocks)}
                columns |= {"nll": 255 * (base + cost + noise), "n_tokens": 255}
                parts.append(pd.DataFrame(columns | {"n_words": 190, "n_bytes": 1130}))
    return pd.concat(parts, ignore_index=True)


def capability(models=None, tasks=("last-word",), items=300, seed=0):
    """The `capability` table: dense, static, dynamic and windowed at one sparsity."""
    rng = np.random.default_rng(seed)
    models = models or list(MODELS)[:3]
    grid = [
        (DENSE, 0.0),
        (_setting("static", "magnitude", 0.9, "corpus", "none"), 0.95),
        (_setting("dynamic", "magnitude", 0.9, "1", "oracle"), 0.3),
        (_setting("windowed", "magnitude", 0.9, "32", "oracle"), 0.6),
        (_setting("windowed", "magnitude", 0.9, "32", "causal"), 0.8),
    ]
    parts = []
    for model in models:
        tough = 0.05 if model.startswith(("relu", "opt")) else 1.0
        for task in tasks:
            dense = rng.random(items) < 0.62
            for setting, cost in grid:
                correct = dense & (rng.random(items) > cost * tough)
                columns = {"study": "made-up", "model": model, "origin": MODELS[model]}
                columns |= {"task": task, "site": "ffn", **setting, "item": range(items)}
                columns |= {"correct": correct, "logprob": -rng.exponential(3, size=items)}
                parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def correlation(models=None, corpora=("wiki", "speeches", "docs"), layers=12, seed=0):
    """The `correlation` table: the loss was measured on the first corpus only."""
    rng = np.random.default_rng(seed)
    rows = []
    for model in models or list(MODELS)[:3]:
        tough = rng.normal(0, 0.1)
        for at, corpus in enumerate(corpora):
            levels = {"weight": -0.1, "output": 0.9, "taylor": 0.55}
            levels |= {"loss": 0.35} if at == 0 else {}
            sizes = {"loss": LOSS_SCORES} if at == 0 else {}
            pairs = [(size, i) for i in levels for size in sizes.get(i, ("magnitude",))]
            for size, impact in pairs:
                level, spread = levels[impact], 0.08 if impact == "output" else 0.2
                values = np.clip(rng.normal(level + tough, spread, size=layers), -0.99, 0.99)
                for layer, value in enumerate([*values, values.mean()]):
                    pooled = layer == layers
                    half = 0.08 if pooled else 0.05
                    columns = {"study": "made-up", "model": model, "origin": MODELS[model]}
                    columns |= {"corpus": corpus, "site": "ffn", "layer": -1 if pooled else layer}
                    columns |= {"left_out": -1}
                    columns |= {"size": size, "impact": impact, "pearson": value}
                    columns |= {"spearman": value, "kendall": value * 0.7}
                    columns |= {"ci_low": value - half, "ci_high": min(value + half, 1.0)}
                    rows.append(columns | {"n_units": 1536 * (layers if pooled else 1)})
    return pd.DataFrame(rows)


def kernels(models=None, windows=WINDOWS[:-1:2], sparsity=0.9, seed=0):
    """The `kernels` table: two shapes, and whole models at every sparsity and window."""
    rng = np.random.default_rng(seed)
    rows = []

    def add(name, level, path, setting, gain, batch=1):
        ms = 10 / gain
        columns = {"study": "made-up", "model": name, "level": level, "kernel": level}
        columns |= {"path": path, "device": "a CPU", "shape": "1x1", "dtype": "float32"}
        columns |= {"threads": 1, **setting, "batch": batch, "rounds": 9, "ms_p20": 0.9 * ms}
        columns |= {"ms_p50": ms, "ms_p80": 1.1 * ms, "dense_ms_p50": 10, "bytes": 1}
        columns |= {"speedup_p20": 0.9 * gain, "speedup_p50": gain, "speedup_p80": 1.1 * gain}
        rows.append(columns | {"roofline_ms": 0.1})

    def noise():
        return 1 + 0.05 * rng.normal()

    for kappa in SPARSITIES:
        dynamic = _setting("dynamic", "magnitude", kappa, "1", "oracle")
        static = _setting("static", "magnitude", kappa, "corpus", "none")
        for name in ("opt-1.3b", "qwen2.5-1.5b"):
            for path, share in (("bag", 0.7), ("select", 0.4), ("masked", 0.0)):
                gain = 1 + share * (1 / (1 - kappa) - 1)
                add(name, "kernel", path, dynamic, noise() * gain)
            add(name, "ffn", "bag", dynamic, noise() / (1 - 0.4 * kappa))
            add(name, "ffn", "held", static, noise() / (1 - 0.97 * kappa))
            add(name, "ffn", "held", static, 0.1, batch=256)
        for name in models or list(MODELS)[:3]:
            add(name, "model", "bag", dynamic, noise() / (1 - 0.1 * kappa))
            add(name, "model", "sliced", static, noise() / (1 - 0.5 * kappa))
    for name in models or list(MODELS)[:3]:
        for window in windows:
            for choice in ("causal", "oracle"):
                if (window, choice) != ("1", "oracle"):
                    setting = _setting("windowed", "magnitude", sparsity, window, choice)
                    cost = (1 + (choice == "causal")) / float(window)
                    add(name, "model", "held", setting, noise() * 2 / (1 + cost))
    return pd.DataFrame(rows).drop(columns="seed")
