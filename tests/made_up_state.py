"""Made-up result tables of recurrent states with the shape of the study's, from a fixed seed."""

from __future__ import annotations

import numpy as np
import pandas as pd

import made_up

MODELS = {
    "mamba2": "specimen",
    "hybrid": "specimen",
    "mamba2-1.3b": "pretrained",
    "zamba2-1.2b": "pretrained",
}
HYBRIDS = ("hybrid", "zamba2-1.2b")
SPARSITIES = (0.3, 0.5, 0.7, 0.9, 0.95)
WINDOWS = ("1", "4", "16", "64", "sequence")
COST = {
    "ghost": 1.0,
    "ghost-uniform": 1.15,
    "ghost-oneshot": 1.1,
    "ghost-separate": 1.6,
    "magnitude": 2.6,
    "magnitude-uniform": 2.3,
    "taylor": 1.4,
    "random": 3.2,
    "impact": 0.7,
}
SEEDS = range(2026, 2031)
TASK_SCORES = ("ghost", "magnitude", "taylor", "random")


def _rule(site, method, score, sparsity, window="corpus", choice="none", access="both", seed=2026):
    names = ("site", "method", "score", "sparsity", "window", "choice", "access", "seed")
    values = (site, method, score, sparsity, window, choice, access, seed)
    return dict(zip(names, values, strict=True))


DENSE = _rule("none", "dense", "none", 0.0, "none", "none", "none", 0)


def _static(scores):
    for score in scores:
        for seed in SEEDS if score == "random" else SEEDS[:1]:
            for sparsity in SPARSITIES:
                yield _rule("state", "static", score, sparsity, seed=seed)


def _held(scores=("impact", "magnitude"), sparsities=(0.5, 0.9), windows=WINDOWS):
    for access in ("read", "write"):
        for score in scores:
            for sparsity in sparsities:
                for window in windows:
                    for choice in ("oracle", "causal"):
                        dynamic = (window, choice) == ("1", "oracle")
                        method = "dynamic" if dynamic else "windowed"
                        yield _rule("state", method, score, sparsity, window, choice, access)


def _ffn():
    for sparsity in (0.5, 0.9):
        for score in ("magnitude", "impact"):
            yield _rule("ffn", "static", score, sparsity, access="none")
            yield _rule("ffn", "dynamic", score, sparsity, "1", "oracle", "none")
        for window in WINDOWS:
            for choice in ("oracle", "causal"):
                if (window, choice) != ("1", "oracle"):
                    yield _rule("ffn", "windowed", "magnitude", sparsity, window, choice, "none")


def _cost(rule):
    """Nats per token that a rule costs."""
    if rule["method"] == "dense":
        return 0.0
    hold = {"sequence": 7.0, "corpus": 7.5}.get(rule["window"])
    hold = np.log2(float(rule["window"])) if hold is None else hold
    hold += 1.5 * (rule["choice"] == "causal")
    if rule["site"] == "ffn":
        return rule["sparsity"] ** 4 * (0.25 + 0.7 * hold)
    forgets = 2.0 if rule["access"] == "write" else 1.0
    return 0.14 * rule["sparsity"] ** 3 * COST[rule["score"]] * forgets * (0.5 + 0.2 * hold)


def perplexity(models=None, corpora=("wiki",), blocks=8, seed=0):
    """The `perplexity` table; hybrids have FFN rows too."""
    rng = np.random.default_rng(seed)
    parts = []
    for model in models or list(MODELS)[:2]:
        grid = [DENSE, *_static(list(COST)[:-1]), *_held()]
        grid += list(_ffn()) if model in HYBRIDS else []
        for corpus in corpora:
            base = rng.normal(3.0, 0.2, size=blocks)
            for rule in grid:
                cost = _cost(rule)
                noise = rng.normal(0, 0.1, size=blocks) * cost
                columns = {"study": "made-up", "model": model, "origin": MODELS[model]}
                columns |= {"corpus": corpus, **rule, "block": range(blocks)}
                columns |= {"document": range(blocks)}
                columns |= {"nll": 127 * (base + cost + noise), "n_tokens": 127}
                parts.append(pd.DataFrame(columns | {"n_words": 95, "n_bytes": 560}))
    return pd.concat(parts, ignore_index=True)


def lengths(models=None, corpora=("wiki",), factors=(1, 2, 4), seed=0):
    """Joined `length` tables: four scores on joined blocks, word and byte counts unknown."""
    whole = perplexity(models, corpora, 16, seed).drop(columns=["n_words", "n_bytes"])
    whole = whole[whole["score"].isin([*TASK_SCORES, "none"])]
    whole = whole[whole["method"].isin(["dense", "static"]) & (whole["site"] != "ffn")]
    whole = whole[whole["sparsity"].isin([0.0, *SPARSITIES[2:]])]
    parts = []
    for factor in factors:
        longer = whole["block"] // factor
        part = whole.assign(block=longer, document=longer)
        drift = np.where(part["score"] == "magnitude", 1 + 0.02 * factor, 1)
        part["nll"] *= drift
        keys = [name for name in part if name not in ("nll", "n_tokens")]
        part = part.groupby(keys, sort=False, as_index=False)[["nll", "n_tokens"]].sum()
        parts.append(part.assign(length=128 * factor))
    return pd.concat(parts, ignore_index=True)


def recall(models=None, facts=(1, 2, 4, 8), distances=(0, 24, 48), each=10, seed=0):
    """The `capability` table of a recall task: state rules, and FFN rules where there is one."""
    rng = np.random.default_rng(seed)
    names = {**MODELS, **made_up.MODELS}
    kinds = [(n, d) for n in facts for d in distances for _ in range(each)]
    n_facts, distance = (np.array(values) for values in zip(*kinds, strict=True))
    parts = []
    for model in models or list(MODELS)[:2]:
        grid = [DENSE]
        if model in MODELS:
            grid += [*_static(TASK_SCORES), *_held(("impact",), (0.95,), ("1", "16"))]
        if model not in MODELS or model in HYBRIDS:
            grid += [r for r in _ffn() if r["sparsity"] == 0.9 and r["window"] not in WINDOWS[3:]]
            grid = [r for r in grid if (r["site"], r["score"]) != ("ffn", "impact")]
        draw = rng.random(len(kinds))
        for rule in grid:
            hardness = 0.02 * n_facts + 0.001 * distance + _cost(rule) * (0.5 + n_facts / 4)
            columns = {"study": "made-up", "model": model, "origin": names[model]}
            columns |= {"task": "recall", **rule, "item": range(len(kinds))}
            columns |= {"correct": draw > np.minimum(hardness, 0.98)}
            columns |= {"logprob": -rng.exponential(3, size=len(kinds))}
            parts.append(pd.DataFrame(columns | {"n_facts": n_facts, "distance": distance}))
    table = pd.concat(parts, ignore_index=True)
    return table.astype({"n_facts": "Int64", "distance": "Int64"})


def channels(models=None, corpora=("wiki",), layers=4, n=64, seed=0):
    """Joined `channels` tables; energy falls with weight, as in the paper."""
    rng = np.random.default_rng(seed)
    parts = []
    for model in models or list(MODELS)[:2]:
        for corpus in corpora:
            for layer in range(layers):
                weight = rng.normal(0, 0.3, size=n)
                energy = -0.5 * weight + rng.normal(0, 0.6, size=n) + layer / 4
                columns = {"study": "made-up", "model": model, "origin": MODELS[model]}
                columns |= {"corpus": corpus, "layer": layer, "group": 0, "channel": range(n)}
                columns |= {"left_out": -1, "n_documents": 16}
                columns |= {"magnitude": np.exp(weight), "energy": np.exp(2 * energy - 6)}
                columns |= {"controllability": np.exp(energy), "observability": 1.0}
                parts.append(pd.DataFrame(columns | {"taylor": np.exp(energy - 5)}))
    return pd.concat(parts, ignore_index=True)


def correlation(models=None, corpora=("wiki",), layers=7, seed=0):
    """The state's rows of the `correlation` table."""
    rng = np.random.default_rng(seed)
    rows = []
    for model in models or list(MODELS)[:2]:
        for corpus in corpora:
            for size, level in (("magnitude", -0.25), ("controllability", 0.6)):
                for impact in ("ghost", "observability", "taylor"):
                    values = np.clip(rng.normal(level, 0.15, size=layers), -0.99, 0.99)
                    for layer, value in enumerate([*values, values.mean()]):
                        columns = {"study": "made-up", "model": model, "origin": MODELS[model]}
                        columns |= {"corpus": corpus, "site": "state", "size": size}
                        columns |= {"impact": impact, "layer": -1 if layer == layers else layer}
                        columns |= {"left_out": -1}
                        columns |= {"pearson": value, "spearman": value, "kendall": value * 0.7}
                        columns |= {"ci_low": value - 0.1, "ci_high": value + 0.1}
                        rows.append(columns | {"n_units": 64})
    return pd.DataFrame(rows)


def losses(names=("relu", "swiglu", "mamba2"), steps=5000, every=50, seed=0):
    """Joined `losses` tables; early training rows are of recall alone, so that text is unknown."""
    rng = np.random.default_rng(seed)
    parts = []
    at = np.arange(every, steps + 1, every)
    for place, name in enumerate(names):
        fall = np.exp(-at / (800 + 200 * place))
        frame = pd.DataFrame({"specimen": name, "step": at, "tokens": at * 2048})
        frame["split"] = "training"
        frame["text_nll"] = np.where(at % 200 == 0, np.nan, 3.9 + 4 * fall)
        frame["text_nll"] += rng.normal(0, 0.25, size=len(at))
        frame["answer_nll"] = 0.8 + 5 * fall + rng.normal(0, 0.1, size=len(at))
        frame["answer_accuracy"] = np.clip(1 - fall - 0.1, 0, 1)
        zeros = 0.9 * (1 - fall) if name.startswith("relu") else 0.0
        frame["zeros_mean"], frame["zeros_min"] = zeros, zeros * 0.8
        frame["penalty"], frame["learning_rate"], frame["seconds"] = 0.0, 1e-3, at * 0.3
        held = frame[frame["step"] % 250 == 0].assign(split="heldout", text_nll=4 + 4 * fall[4::5])
        unknown = ["answer_nll", "answer_accuracy", "zeros_mean", "zeros_min", "penalty"]
        parts += [frame, held.assign(**dict.fromkeys(unknown, np.nan))]
    return pd.concat(parts, ignore_index=True)
