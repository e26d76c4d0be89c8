"""What `keepset generate` says of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepset.errors import KeepsetError

if TYPE_CHECKING:
    from keepset.decode.generate import Disagreement, Generation
    from keepset.kernels.selection import Selection


def paths_text(run: Generation, selection: Selection) -> str:
    """Which path ran, and by what measurement; what was refused, and why: a line each."""
    paths = ", ".join(f"{name} {count}" for name, count in run.paths.most_common())
    lines = [f"tokens x layers by path: {paths or 'cut weights, torch'}"]
    if run.mixers:
        lines.append("mixers: " + ", ".join(f"{key} {ran}" for key, ran in run.mixers.items()))
    for size, took in selection.crossovers_ms().items():
        lines.append(f"measured {size}: " + ", ".join(f"{n} {ms:g} ms" for n, ms in took.items()))
    return "\n".join([*lines, *(f"refused {text}" for text in selection.refusals)])


def refuse_disagreement(wrong: Disagreement | None) -> None:
    """Refuse tokens that are not the masked reference's.

    Raises:
        KeepsetError: a token is another one.
    """
    if wrong is not None:
        raise KeepsetError(
            f"new token {wrong.index} is {wrong.token}; the masked reference prefers"
            f" {wrong.expected} by {wrong.gap:.3g} of logit. Rounding differs between the two: try"
            " --dtype float32"
        )
