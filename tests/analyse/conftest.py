from __future__ import annotations

import pandas as pd
import pytest
from tested import run

import made_up


@pytest.fixture(scope="package")
def perplexity() -> pd.DataFrame:
    return made_up.perplexity(["smollm2-135m", "relu"], ("wiki", "docs"))


@pytest.fixture(scope="package")
def small() -> pd.DataFrame:
    return made_up.perplexity(["relu"], ("wiki", "docs")).query("corpus == 'docs'")


@pytest.fixture(scope="package")
def capability() -> pd.DataFrame:
    return made_up.capability(["smollm2-135m", "relu"])


@pytest.fixture(scope="package")
def found(perplexity, capability) -> dict[str, pd.DataFrame]:
    return run(perplexity, capability)
