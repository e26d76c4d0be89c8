"""Run a model again from a layer on: earlier layers return what they returned before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn

from keepset.hold.slices import standing_forward


@contextmanager
def recording(layers: Sequence[nn.Module]) -> Iterator[list[Any]]:
    """Gives a list that holds what each layer returned in the last forward pass."""
    outputs: list[Any] = [None] * len(layers)

    def keep(place: int, _layer: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        outputs[place] = output

    with ExitStack() as stack:
        for place, layer in enumerate(layers):
            stack.enter_context(layer.register_forward_hook(partial(keep, place)))
        yield outputs


@contextmanager
def replaying(layers: Sequence[nn.Module], outputs: Sequence[Any]) -> Iterator[None]:
    """Layers return `outputs`, one each, whatever they are given; on exit they run again.

    This is right for the layers before some depth, where text and batch are those of the outputs
    and later layers read nothing of earlier ones but what they return.
    """
    with ExitStack() as stack:
        for layer, output in zip(layers, outputs, strict=True):
            stack.enter_context(standing_forward(layer, _returning(output)))
        yield


def _returning(output: Any) -> Any:
    return lambda *_args, **_kwargs: output
