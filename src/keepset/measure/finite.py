"""Name the layer at fault where a result is NaN or infinite."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from keepset.errors import ModelError
from keepset.hold.windows import not_finite
from keepset.sites import AnySite


def refuse_infinite(
    model: Any, sites: Sequence[AnySite], contexts: Iterable[Tensor], what: str, label: str
) -> NoReturn:
    """Refuse a result that is NaN or infinite, and name the first site of `model` at fault.

    Args:
        model: The model, under whatever it ran under.
        sites: Its sites.
        contexts: The token ids that gave the result, each (1, tokens).
        what: The result and its verb, and `label`: the rule; both for the message.

    Raises:
        ModelError: always.
    """
    with ExitStack() as hooks, torch.inference_mode():
        for site in sites:
            module = model.get_submodule(site.name)
            check = _finite_check(site.name, label)
            hooks.enter_context(module.register_forward_pre_hook(check, with_kwargs=True))
        for ids in contexts:
            model(input_ids=ids, use_cache=False)
    raise ModelError(f"{what} not finite under {label}; try dtype: float32")


def _finite_check(name: str, label: str) -> Callable[..., None]:
    """A hook that refuses NaN and infinity in what the module at `name` is given."""

    def check(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        if not bool(torch.isfinite(next(tensors)).all()):
            raise not_finite(name, label)

    return check
