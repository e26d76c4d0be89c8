from __future__ import annotations

import pandas as pd
import pytest

import made_up
import made_up_state
from keepset.analyse import significance
from keepset.settings import Statistics

# Models x corpora: one cell, the embedded study, the paper's breadth, and one corpus for many.
SIZES = {
    "one": (1, ("wiki",)),
    "study": (3, ("wiki", "speeches", "docs")),
    "broad": (8, ("wikitext2", "c4", "pile")),
    "folded": (8, ("wikitext2",)),
}


@pytest.fixture(scope="session")
def tested() -> dict[str, pd.DataFrame]:
    """Tested tables: perplexity of one model on one corpus, capability of two on two tasks."""
    perplexity = made_up.perplexity(["smollm2-135m"], ("wiki",), blocks=4)
    capability = made_up.capability(["smollm2-135m", "relu"], ("lambada", "last-word"), items=60)
    return significance.test_significance(perplexity, capability, Statistics(), pd.DataFrame())


@pytest.fixture(scope="session")
def everything(tested) -> pd.DataFrame:
    """Ratios of eight models on three corpora: all scores on the first, as in the study."""
    wiki = tested["ratios"]
    headline = (wiki["score"] == "magnitude") & (
        (wiki["method"] != "windowed") | (wiki["sparsity"] == 0.9)
    )
    parts = []
    for name, origin in made_up.MODELS.items():
        for corpus in SIZES["study"][1]:
            part = (wiki if corpus == "wiki" else wiki[headline]).assign(corpus=corpus)
            if _is_relu(name):
                values = ["ratio", "ci_low", "ci_high", "ratio_min", "ratio_max"]
                part[values] = part[values] ** 0.2
            parts.append(part.assign(model=name, origin=origin))
    return pd.concat(parts, ignore_index=True)


def _is_relu(model: str) -> bool:
    return model.startswith(("relu", "opt"))


@pytest.fixture(params=SIZES)
def ratios(request, everything) -> pd.DataFrame:
    n_models, corpora = SIZES[request.param]
    names = dict(zip(SIZES["study"][1], corpora, strict=False))
    table = everything[everything["model"].isin(list(made_up.MODELS)[:n_models])]
    return table[table["corpus"].isin(names)].replace({"corpus": names})


@pytest.fixture
def study(everything) -> pd.DataFrame:
    """The ratios of the embedded study."""
    return everything[everything["model"].isin(list(made_up.MODELS)[:3])]


@pytest.fixture
def capability(tested) -> pd.DataFrame:
    """Accuracies of eight models on two tasks."""
    parts = []
    for name, origin in made_up.MODELS.items():
        like = "relu" if _is_relu(name) else "smollm2-135m"
        part = tested["capability"][tested["capability"]["model"] == like]
        parts.append(part.assign(model=name, origin=origin))
    return pd.concat(parts, ignore_index=True)


STATE_MODELS = ("mamba2", "hybrid", "zamba2-1.2b")


@pytest.fixture(scope="session")
def state_ratios(tested) -> pd.DataFrame:
    """Ratios of states of three models, two of them hybrids, and of a model without a state."""
    perplexity = made_up_state.perplexity(["hybrid"], blocks=4)
    hybrid = significance.test_significance(
        perplexity, pd.DataFrame(), Statistics(), pd.DataFrame()
    )["ratios"]
    parts = [hybrid.assign(model=m, origin=made_up_state.MODELS[m]) for m in STATE_MODELS]
    parts[0] = parts[0][parts[0]["site"] == "state"]
    return pd.concat([*parts, tested["ratios"]], ignore_index=True)
