"""An outside script: intervals and p-values of the ledger's cases, from the stored tables alone.

It shares no code with keepset: numpy, scipy, and pandas to read tables. It reads what a case
compares from the words of its row, and what a claim asks from the row's bounds. On a finished
study: `python tests/analyse/claims/outside.py results/embedded`.
"""

from __future__ import annotations

import re
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from scipy import optimize, stats

WORDS = re.compile(
    r"(?P<method>static|dynamic|windowed) (?P<score>\S+) (?P<sparsity>[\d.]+)%"
    r"( W=(?P<window>\S+) (?P<choice>\S+))?( \((?P<access>\w+)\))?"
)


def own_rows(table, model, text, setting, site):
    """The rows of one run; `setting` None is dense."""
    if not len(table):
        return table
    rows = table[(table["model"] == model) & (table[text[0]] == text[1])]
    if setting is None:
        dense = rows[rows["method"] == "dense"]
        return dense[dense["site"] == dense["site"].iloc[0]] if len(dense) else dense
    rows = rows[(rows["site"] == site) & (rows["method"] == setting["method"])]
    rows = rows[(rows["score"] == setting["score"])]
    rows = rows[np.isclose(rows["sparsity"], float(setting["sparsity"]) / 100)]
    if setting["window"]:
        rows = rows[(rows["window"] == setting["window"]) & (rows["choice"] == setting["choice"])]
    return rows[rows["access"] == setting["access"]] if setting["access"] else rows


def pooled(table, model, text, unit, value, setting, site):
    """Values by block or item: the mean over seeds."""
    return own_rows(table, model, text, setting, site).groupby(unit)[value].mean()


def settings(words):
    """The settings named in a case's words; the oracle of the same window where only it is."""
    found = [match.groupdict() for match in WORDS.finditer(words)]
    if words.endswith("/ oracle"):
        first = found[0]
        oracle = {**first, "choice": "oracle"}
        if first["window"] == "1":
            oracle |= {"method": "dynamic", "window": None}
        found.append(oracle)
    return found if len(found) > 1 else [*found, None]


def one_sided(p_greater, p_less, low, high):
    """p for and against low < effect < high; an end that is NaN is open."""
    claim = [p_greater(low)] if not np.isnan(low) else []
    claim += [p_less(high)] if not np.isnan(high) else []
    other = [p_less(low)] if not np.isnan(low) else []
    other += [p_greater(high)] if not np.isnan(high) else []
    return max(claim), min(1.0, len(other) * min(other))


def t_result(estimate, error, df, confidence):
    """estimate, interval, and one-sided t-tests against a bound; without error it is the truth."""
    if error == 0:
        ends = (estimate, estimate)
        return (estimate, ends, lambda b: float(estimate <= b), lambda b: float(estimate >= b))
    half = stats.t.ppf(0.5 + confidence / 2, df) * error
    return (
        estimate,
        (estimate - half, estimate + half),
        lambda bound: stats.t.sf((estimate - bound) / error, df),
        lambda bound: stats.t.cdf((estimate - bound) / error, df),
    )


def satterthwaite(parts):
    """Error and degrees of freedom of a sum of independent (variance, df)."""
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return 0.0, np.nan
    return np.sqrt(variance), variance**2 / sum(part**2 / df for part, df in parts if part)


def text_ratio(study, corpus, site, runs, signs, confidence):
    """sum of signed losses over tokens; residuals by document; rounding of what has draws."""
    text = ("corpus", corpus)
    losses = [pooled(study.perplexity, m, text, "block", "nll", s, site) for m, s in runs]
    drawn = [own_rows(study.rounding, m, text, s, site) if s else () for m, s in runs]
    blocks = set.intersection(*(set(loss.index) for loss in losses))
    blocks = sorted(blocks)
    dense = own_rows(study.perplexity, runs[0][0], text, None, site).set_index("block").loc[blocks]
    tokens, document = dense["n_tokens"].to_numpy(float), dense["document"].to_numpy()
    change = sum(sign * loss[blocks].to_numpy() for sign, loss in zip(signs, losses, strict=True))
    theta = change.sum() / tokens.sum()
    names = np.unique(document)
    residuals = np.array([(change - theta * tokens)[document == name].sum() for name in names])
    n = len(names)
    parts = [(n / (n - 1) * (residuals**2).sum() / tokens.sum() ** 2, n - 1)]
    for rows in drawn:
        if len(rows):
            runs = rows.groupby(["block", "draw"])["nll"].mean().unstack().to_numpy()
            spread, k = runs.var(axis=1, ddof=1), runs.shape[1]
            measured = rows.groupby("block")["n_tokens"].first().sum()
            df = (k - 1) * spread.sum() ** 2 / (spread**2).sum() if spread.any() else np.nan
            parts.append((spread.sum() / measured / tokens.sum(), df))
    return t_result(theta, *satterthwaite(parts), confidence)


def ratio(study, row, options):
    """Perplexity of one setting over another."""
    runs = [(row["model"], setting) for setting in settings(row["compared"])]
    return text_ratio(study, row["where"], row["site"], runs, (1, -1), options[0])


def rise(study, row, options):
    """The dial: its ends as a ratio; the largest p of a rise, the smallest of a fall, by step."""
    words = row["compared"].split(",")[0]
    estimate, ends, *_ = ratio(study, {**row, "compared": words}, options)
    static, dynamic = settings(words)
    table = study.perplexity
    own = table[(table["model"] == row["model"]) & (table["method"] == "windowed")]
    own = own[(own["choice"] == "oracle") & (own["corpus"] == row["where"])]
    own = own[(own["score"] == static["score"]) & (own["site"] == row["site"])]
    own = own[np.isclose(own["sparsity"], float(static["sparsity"]) / 100)]
    order = sorted(own["window"].unique(), key=lambda w: 1e9 if w == "sequence" else int(w))
    held = [{**static, "method": "windowed", "window": w, "choice": "oracle"} for w in order]
    tests = []
    for before, after in pairwise((dynamic, *held, static)):
        runs = ((row["model"], after), (row["model"], before))
        step = text_ratio(study, row["where"], "ffn", runs, (1, -1), options[0])
        tests.append([test(0.0) for test in step[2:]])
    rises, falls = zip(*tests, strict=True)
    return estimate, ends, lambda _: max(rises), lambda _: min(1.0, len(falls) * min(falls))


def costs(study, row, options):
    """What a setting costs one specimen less what it costs another, on the same text."""
    words, names = row["compared"].removeprefix("cost of ").split(": ")
    setting, (here, there) = settings(words)[0], names.split(" / ")
    runs = [(here, setting), (here, None), (there, setting), (there, None)]
    return text_ratio(study, row["where"], "ffn", runs, (1, -1, -1, 1), options[0])


def kept(study, row, options):
    """Change of accuracy of one specimen less that of another, on the same items."""
    words, names = row["compared"].removeprefix("accuracy kept under ").split(": ")
    setting = settings(words)[0]
    changes = []
    for name in names.split(" less "):
        where = (study.capability, name, ("task", row["where"]), "item", "correct")
        changes.append(pooled(*where, setting, "ffn") - pooled(*where, None, "ffn"))
    x = (changes[0] - changes[1]).to_numpy(dtype=float)
    return t_result(x.mean(), x.std(ddof=1) / np.sqrt(len(x)), len(x) - 1, options[0])


def accuracy(study, row, options):
    """Accuracy under a setting less dense: Tango's score; against 0, exact McNemar."""
    where = (study.capability, row["model"], ("task", row["where"]), "item", "correct")
    setting = settings(row["compared"].removeprefix("accuracy: "))[0]
    here = pooled(*where, setting, row["site"]).astype(bool)
    dense = pooled(*where, None, row["site"]).astype(bool)
    b, c, n = int((here & ~dense).sum()), int((~here & dense).sum()), len(dense)

    def score(delta):
        # Tango (1998): constrained maximum likelihood, here by its quadratic in p21.
        linear, constant = (2 * n - b + c) * delta - b - c, -c * delta * (1 - delta)
        p21 = (np.sqrt(linear**2 - 8 * n * constant) - linear) / (4 * n)
        variance = n * (2 * p21 + delta * (1 - delta))
        distance = b - c - n * delta
        return distance / np.sqrt(variance) if distance else 0.0

    def p(tail):
        def at(bound):
            if bound == 0:
                return stats.binomtest(b, b + c, alternative=tail).pvalue if b + c else 1.0
            return (stats.norm.sf if tail == "greater" else stats.norm.cdf)(score(bound))

        return at

    z, estimate = stats.norm.ppf(0.5 + options[0] / 2), (b - c) / n
    edge = 1 - 1e-9
    low = high = estimate
    if estimate > -1:
        low = optimize.brentq(lambda d: score(d) - z, -edge, estimate, xtol=1e-14)
    if estimate < 1:
        high = optimize.brentq(lambda d: score(d) + z, estimate, edge, xtol=1e-14)
    return estimate, (low, high), p("greater"), p("less")


def memory(study, row, options):
    """Peaks, measured: the ratio, and no p but what it is."""
    rows = study.memory[(study.memory["model"] == row["model"])]
    tokens = int(re.search(r"over (\d+) tokens", row["compared"])[1])
    rows = rows[(rows["corpus"] == row["where"]) & (rows["n_tokens"] == tokens)]
    peak = rows.groupby("method")["peak_bytes"].max()
    x = np.log(peak["ghost"] / peak["taylor"])
    return x, (np.nan, np.nan), lambda bound: float(x <= bound), lambda bound: float(x >= bound)


def jackknifed(whole, left_out):
    """Estimate, variance and degrees of freedom of a delete-one-group jackknife."""
    x, n = np.asarray(left_out, dtype=float), len(left_out)
    return whole, (n - 1) / n * ((x - x.mean()) ** 2).sum(), n - 1


def coefficients(study, row, corpus, impact):
    """Spearman by text left out and layer, of the layers that are known whatever is left out."""
    table = study.correlation
    rows = table[(table["model"] == row["model"]) & (table["corpus"] == corpus)]
    rows = rows[(rows["site"] == row["site"]) & (rows["impact"] == impact) & (rows["layer"] >= 0)]
    rows = rows[rows["size"] == "magnitude"]
    return rows.pivot(index="left_out", columns="layer", values="spearman").dropna(axis=1)


def correlation(study, row, options):
    """The mean over layers; text is left out, a group of documents at a time."""
    impact = re.search(r"Spearman of size with (\w+)", row["compared"])[1]
    mean = coefficients(study, row, row["where"], impact).mean(axis=1)
    estimate, variance, df = jackknifed(mean[-1], mean.drop(-1))
    return t_result(estimate, np.sqrt(variance), df, options[0])


def between_corpora(study, row, options):
    """The same on one corpus less that on another."""
    a, b = (coefficients(study, row, name, "weight") for name in row["where"].split(" less "))
    layers = a.columns.intersection(b.columns)
    sides = [table[layers].mean(axis=1) for table in (a, b)]
    (x, *var_x), (y, *var_y) = (jackknifed(mean[-1], mean.drop(-1)) for mean in sides)
    return t_result(x - y, *satterthwaite([var_x, var_y]), options[0])


def share(study, row, options):
    """Channels that weight and energy sort into different halves."""
    table = study.channels
    own = table[(table["model"] == row["model"]) & (table["corpus"] == row["where"])]
    by_text = {}
    for left_out, rows in own.groupby("left_out"):
        high = [rows[name] > rows[name].median() for name in ("magnitude", "energy")]
        by_text[left_out] = (high[0] != high[1]).mean()
    whole = by_text.pop(-1)
    estimate, variance, df = jackknifed(whole, list(by_text.values()))
    return t_result(estimate, np.sqrt(variance), df, options[0])


def gap(scores, truth, layer):
    """Rank correlation within layers of the first score with the truth, less that of the second."""
    ranks = []
    for values in (*scores, truth):
        rank = np.empty(len(values))
        for name in np.unique(layer):
            own = layer == name
            rank[own] = stats.rankdata(values[own])
            rank[own] -= rank[own].mean()
        ranks.append(rank)
    first, second = (r @ ranks[2] / np.sqrt((r @ r) * (ranks[2] @ ranks[2])) for r in ranks[:2])
    return first - second


def ranking(study, row, options):
    """Taylor's rank correlation with the loss change less a rival's; units are left out."""
    table = study.ablations
    own = table[(table["model"] == row["model"]) & (table["corpus"] == row["where"])]
    rival = row["compared"].split("less ")[-1]
    ending = "_other" if "other text" in row["compared"] else ""
    names = ["taylor" + ending, rival if rival == "weight" else rival + ending]
    scores = own[names].to_numpy(dtype=float).T
    truth, layer = own["loss"].abs().to_numpy(), own["layer"].to_numpy()
    everything = np.arange(len(own))
    without = [
        gap(scores[:, others], truth[others], layer[others])
        for others in (everything != unit for unit in everything)
    ]
    estimate, variance, df = jackknifed(gap(scores, truth, layer), without)
    return t_result(estimate, np.sqrt(variance), df, options[0])


RECIPES = (
    ("cost of", costs),
    ("accuracy kept", kept),
    ("accuracy:", accuracy),
    ("peak memory", memory),
    ("share", share),
    ("Spearman with |loss", ranking),
    ("Spearman", correlation),
)


def recipe(row):
    """How a case is computed, by the words that say what it compares."""
    if row["claim"] in ("C2", "C10"):
        return between_corpora if row["claim"] == "C2" else rise
    return next((how for start, how in RECIPES if row["compared"].startswith(start)), ratio)


def recompute(study, row, options):
    """estimate, ci_low, ci_high, p_for, p_against of one row of claims_cases.csv."""
    estimate, (low, high), greater, less = recipe(row)(study, row, options)
    bounds = np.array([row["bound_low"], row["bound_high"]], dtype=float)
    if row["scale"] == "ratio":
        estimate, low, high = np.exp([estimate, low, high])
        bounds = np.log(bounds)
    return [float(v) for v in (estimate, low, high, *one_sided(greater, less, *bounds))]


def holm(p):
    """Holm's adjustment, from its definition."""
    known = sorted((value, place) for place, value in enumerate(p) if not np.isnan(value))
    adjusted, least = np.full(len(p), np.nan), 0.0
    for step, (value, place) in enumerate(known):
        least = max(least, (len(known) - step) * value)
        adjusted[place] = min(1.0, least)
    return adjusted


def adjusted(ledger, cases):
    """p_for, p_against and the same after Holm of every claim of a ledger, from its cases."""
    rows = []
    for claim in ledger["claim"]:
        own = cases[(cases["claim"] == claim) & cases["counted"]]
        own = own if (own["test"] != "measured").any() else own.head(0)
        fails = min(1.0, len(own) * own["p_against"].min()) if len(own) else np.nan
        rows.append((own["p_for"].max() if len(own) else np.nan, fails))
    table = pd.DataFrame(rows, columns=["p_for", "p_against"], index=ledger.index)
    for side in ("p_for", "p_against"):
        for _, family in ledger.groupby("family"):
            values = holm(table.loc[family.index, side].to_numpy())
            table.loc[family.index, f"{side}_holm"] = values
    return table


def read(folder):
    """The tables of a finished study."""
    folder = Path(folder)

    def stacked(name):
        parts = []
        for path in sorted(folder.glob(f"*/*/{name}.parquet")):
            model, text = path.parts[-3:-1]
            columns = {"task" if name == "capability" else "corpus": text, "model": model}
            parts.append(pd.read_parquet(path).assign(**columns))
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    names = ("perplexity", "rounding", "capability", "ablations", "channels", "memory")
    tables = {name: stacked(name) for name in names}
    correlation = stacked("correlation*")
    cases, ledger = (pd.read_csv(folder / f"{name}.csv") for name in ("claims_cases", "claims"))
    return SimpleNamespace(**tables, correlation=correlation), cases, ledger


COLUMNS = ["estimate", "ci_low", "ci_high", "p_for", "p_against"]


def main(folder, confidence=0.95):
    """Compare every number of a study's ledger with what its tables give."""
    study, cases, ledger = read(folder)
    again = [recompute(study, row, (confidence,)) for row in cases.to_dict(orient="records")]
    np.testing.assert_allclose(again, cases[COLUMNS], rtol=1e-9, atol=1e-9)
    table = adjusted(ledger, cases)
    np.testing.assert_allclose(table, ledger[table.columns], rtol=1e-9, atol=1e-9)
    print(f"{folder}: {len(cases)} cases and {len(ledger)} claims agree to 1e-9")


if __name__ == "__main__":
    main(*sys.argv[1:2])
