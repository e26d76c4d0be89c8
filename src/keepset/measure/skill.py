"""Whether a model does a task at all. Apart from the statistics: an edit there repeats no run."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from statsmodels.stats import proportion


def does_task(correct: ArrayLike, confidence: float, margin: float) -> bool:
    """Whether the lower end of Wilson's interval of the accuracy is above `margin`.

    Otherwise a loss as large as the margin could not be seen.

    Args:
        correct: (n,) bool, the answers of the dense model.
        confidence: Level of the interval.
        margin: An accuracy.
    """
    answers = np.asarray(correct)
    count, alpha = float(answers.sum()), 1 - confidence
    if not len(answers):
        return False
    low, _ = proportion.proportion_confint(count, len(answers), alpha=alpha, method="wilson")
    return bool(low > margin)
