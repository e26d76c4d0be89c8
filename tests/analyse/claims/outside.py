"""An outside script: intervals and p-values of the ledger's cases, from the stored tables alone.

It shares no code with keepset: numpy, scipy and statsmodels only. It reads what a case compares
from the words of its row, and what a claim asks from the row's bounds.
"""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
from scipy import optimize, stats
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

WORDS = re.compile(
    r"(?P<method>static|dynamic|windowed) (?P<score>\S+) (?P<sparsity>[\d.]+)%"
    r"( W=(?P<window>\S+) (?P<choice>\S+))?( \((?P<access>\w+)\))?"
)


def pooled(table, model, text, unit, value, setting, site):
    """Values by block or item: the mean over seeds."""
    rows = table[(table["model"] == model) & (table[text[0]] == text[1])]
    if setting is None:
        return rows[rows["method"] == "dense"].drop_duplicates(unit).set_index(unit)[value]
    rows = rows[(rows["site"] == site) & (rows["method"] == setting["method"])]
    rows = rows[(rows["score"] == setting["score"])]
    rows = rows[np.isclose(rows["sparsity"], float(setting["sparsity"]) / 100)]
    if setting["window"]:
        rows = rows[(rows["window"] == setting["window"]) & (rows["choice"] == setting["choice"])]
    if setting["access"]:
        rows = rows[rows["access"] == setting["access"]]
    return rows.groupby(unit)[value].mean()


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


def t_tests(x):
    return (
        lambda bound: stats.ttest_1samp(x, bound, alternative="greater").pvalue,
        lambda bound: stats.ttest_1samp(x, bound, alternative="less").pvalue,
    )


def boot(data, statistic, options):
    confidence, resamples, seed = options
    return stats.bootstrap(
        data, statistic, paired=True, vectorized=True, n_resamples=resamples, method="BCa",
        confidence_level=confidence, rng=np.random.default_rng(seed),
    )  # fmt: skip


def ratio(study, row, options):
    """Perplexity of one setting over another: BCa and t-tests of the blocks' log ratios."""
    a, b = settings(row["compared"])
    text = ("corpus", row["where"])
    where = (study.perplexity, row["model"], text, "block")
    here, there = (pooled(*where, "nll", s, row["site"]) for s in (a, b))
    tokens = pooled(*where, "n_tokens", None, row["site"])
    terms = ((here - there) / tokens.mean()).to_numpy()
    weights = (tokens / tokens.mean()).to_numpy()
    ends = boot((terms, weights), lambda d, n, axis: d.sum(axis=axis) / n.sum(axis=axis), options)
    return terms.mean(), ends.confidence_interval, *t_tests(terms)


def rise(study, row, options):
    """The dial: its ends as a ratio; Page's test, and the smallest p of one step down."""
    words = row["compared"].split(",")[0]
    estimate, ends, *_ = ratio(study, {**row, "compared": words}, options)
    static, dynamic = settings(words)
    table = study.perplexity
    own = table[(table["model"] == row["model"]) & (table["method"] == "windowed")]
    own = own[(own["choice"] == "oracle") & (own["corpus"] == row["where"])]
    own = own[np.isclose(own["sparsity"], float(static["sparsity"]) / 100)]
    order = sorted(own["window"].unique(), key=lambda w: 1e9 if w == "sequence" else int(w))
    held = [{**static, "method": "windowed", "window": w, "choice": "oracle"} for w in order]
    where = (table, row["model"], ("corpus", row["where"]), "block")
    steps = [
        pooled(*where, "nll", s, "ffn") / pooled(*where, "n_tokens", s, "ffn")
        for s in (dynamic, *held, static)
    ]
    page = stats.page_trend_test(np.stack(steps, axis=1)).pvalue
    falls = [
        stats.ttest_rel(after, before, alternative="less").pvalue
        for before, after in pairwise(steps)
    ]
    fall = min(1.0, len(falls) * min(falls))
    return estimate, ends, lambda _: page, lambda _: fall


def welch(x, y, confidence):
    compared = CompareMeans.from_data(x, y)

    def p(tail):
        return lambda bound: stats.ttest_ind(x - bound, y, equal_var=False, alternative=tail).pvalue

    ends = compared.tconfint_diff(1 - confidence, usevar="unequal")
    return x.mean() - y.mean(), ends, p("greater"), p("less")


def costs(study, row, options):
    """What a setting costs one specimen less what it costs another: Welch over blocks."""
    words, names = row["compared"].removeprefix("cost of ").split(": ")
    setting = settings(words)[0]
    sides = []
    for name in names.split(" / "):
        where = (study.perplexity, name, ("corpus", row["where"]), "block")
        here, dense = pooled(*where, "nll", setting, "ffn"), pooled(*where, "nll", None, "ffn")
        sides.append(((here - dense) / pooled(*where, "n_tokens", None, "ffn").mean()).to_numpy())
    return welch(*sides, options[0])


def changes(study, row, options):
    """Accuracy lost by one specimen less that lost by another: Welch over items."""
    words, names = row["compared"].removeprefix("accuracy lost to ").split(": ")
    setting = settings(words)[0]
    sides = []
    for name in names.split(" less "):
        where = (study.capability, name, ("task", row["where"]), "item", "correct")
        here, dense = pooled(*where, setting, "ffn"), pooled(*where, None, "ffn").astype(float)
        sides.append((here - dense).to_numpy(dtype=float))
    return welch(*sides, options[0])


def accuracy(study, row, options):
    """Accuracy under a setting less dense: Tango's score; against 0, exact McNemar."""
    where = (study.capability, row["model"], ("task", row["where"]), "item", "correct")
    setting = settings(row["compared"].removeprefix("accuracy: "))[0]
    here = pooled(*where, setting, row["site"]).astype(bool)
    dense = pooled(*where, None, row["site"]).astype(bool)
    b, c, n = int((here & ~dense).sum()), int((~here & dense).sum()), len(dense)

    def score(delta):
        # Tango (1998): constrained maximum likelihood, here by its quadratic in p21.
        roots = np.roots([2 * n, (2 * n - b + c) * delta - b - c, -c * delta * (1 - delta)])
        variance = n * (2 * roots.max() + delta * (1 - delta))
        return (b - c - n * delta) / np.sqrt(variance)

    def p(tail):
        def at(bound):
            if bound == 0:
                return stats.binomtest(b, b + c, alternative=tail).pvalue if b + c else 1.0
            return (stats.norm.sf if tail == "greater" else stats.norm.cdf)(score(bound))

        return at

    z, estimate = stats.norm.ppf(0.5 + options[0] / 2), (b - c) / n
    edge = 1 - 1e-9
    low = optimize.brentq(lambda d: score(d) - z, -edge, estimate - 1e-12, xtol=1e-14)
    high = optimize.brentq(lambda d: score(d) + z, estimate + 1e-12, edge, xtol=1e-14)
    return estimate, (low, high), p("greater"), p("less")


def layers(x, confidence):
    return x.mean(), DescrStatsW(x).tconfint_mean(1 - confidence), *t_tests(x)


def coefficients(study, row, corpus):
    table = study.correlation
    impact = row["compared"].split()[-1] if row["claim"] != "C2" else "weight"
    rows = table[(table["model"] == row["model"]) & (table["corpus"] == corpus)]
    rows = rows[(rows["site"] == row["site"]) & (rows["impact"] == impact) & (rows["layer"] >= 0)]
    return rows.sort_values("layer")["spearman"].to_numpy()


def correlation(study, row, options):
    return layers(coefficients(study, row, row["where"]), options[0])


def between_corpora(study, row, options):
    x, y = (coefficients(study, row, name) for name in row["where"].split(" less "))
    ends = boot((x - y,), lambda d, axis: d.mean(axis=axis), options).confidence_interval
    return (x - y).mean(), ends, *t_tests(x - y)


def share(study, row, options):
    table = study.channels
    own = table[(table["model"] == row["model"]) & (table["corpus"] == row["where"])]
    heavy = own["magnitude"] > own["magnitude"].median()
    strong = own["energy"] > own["energy"].median()
    name = row["compared"].split(": ")[1]
    chosen = {"phantom": ~heavy & strong, "corporeal": heavy & ~strong, "disagree": heavy != strong}
    return layers(chosen[name].groupby(own["layer"]).mean().to_numpy(), options[0])


def ranking(study, row, options):
    table = study.ablations
    own = table[(table["model"] == row["model"]) & (table["corpus"] == row["where"])]
    rival = row["compared"].split("less ")[-1]
    columns = own[["taylor", rival]].assign(truth=own["loss"].abs())
    ranks = columns.groupby(own["layer"]).rank()
    ranks -= ranks.groupby(own["layer"]).transform("mean")
    x, y, z = (ranks[name].to_numpy() for name in ("taylor", rival, "truth"))

    def gap(x, y, z, axis=0):
        def r(a):
            a, b = a - a.mean(axis=axis, keepdims=True), z - z.mean(axis=axis, keepdims=True)
            top = (a * b).sum(axis=axis)
            return top / np.sqrt((a**2).sum(axis=axis) * (b**2).sum(axis=axis))

        return r(x) - r(y)

    found = boot((x, y, z), gap, options)
    estimate, error = gap(x, y, z), found.standard_error
    return (
        estimate,
        found.confidence_interval,
        lambda bound: stats.norm.sf((estimate - bound) / error),
        lambda bound: stats.norm.cdf((estimate - bound) / error),
    )


def recipe(row):
    words = row["compared"]
    if row["claim"] == "C10":
        return rise
    for start, found in (
        ("cost of", costs), ("accuracy lost", changes), ("accuracy:", accuracy), ("share", share),
        ("Spearman with |loss", ranking),
    ):  # fmt: skip
        if words.startswith(start):
            return found
    if words.startswith("Spearman"):
        return between_corpora if row["claim"] == "C2" else correlation
    return ratio


def recompute(study, row, options):
    """estimate, ci_low, ci_high, p_for, p_against of one row of claims_cases.csv."""
    estimate, (low, high), greater, less = recipe(row)(study, row, options)
    bounds = np.array([row["bound_low"], row["bound_high"]], dtype=float)
    if row["scale"] == "ratio":
        estimate, low, high = np.exp([estimate, low, high])
        bounds = np.log(bounds)
    return [float(v) for v in (estimate, low, high, *one_sided(greater, less, *bounds))]
