"""The dial of the inputs of all other linear maps: what it costs to hold a set for W tokens."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from keepset.report.figures import dial, style


@style.styled
def draw(ratios: pd.DataFrame) -> Figure:
    """Perplexity relative to dense against the window; a panel per model and corpus.

    Args:
        ratios: The `ratios` table of `analyse.significance`; inputs by magnitude are shown.

    Returns:
        The figure: a colour per sparsity, oracle solid and causal dashed, intervals as bands, the
        static runs at the right edge.

    Raises:
        KeepsetError: there is no windowed run of inputs.
    """
    return dial.draw_site(ratios, "input", "input_dial")
