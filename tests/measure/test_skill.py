from __future__ import annotations

import numpy as np

from keepset.measure.skill import does_task


def test_the_lower_end_of_wilson_decides():
    correct = np.arange(500) < 47  # 9.4%; Wilson's interval at 95% is 7.14 to 12.28%
    assert does_task(correct, 0.95, 0.071)
    assert not does_task(correct, 0.95, 0.072)
    assert not does_task(np.zeros(500, bool), 0.95, 0.05)


def test_no_items():
    assert not does_task(np.zeros(0, bool), 0.95, 0.0)
