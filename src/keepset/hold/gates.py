"""What the gate of a gated FFN says of each neuron, before the up projection is known."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor
from transformers.activations import ACT2FN

from keepset.errors import ConfigError
from keepset.hold.slices import sliceable
from keepset.sites.ffn import Site


@contextmanager
def seeing_gates(sites: Sequence[Site], gates: MutableMapping[str, Tensor]) -> Iterator[None]:
    """Keep act(gate(x)) of every site of the running pass in `gates`.

    Raises:
        ConfigError: a site is no gated block, or how it makes h is not known.
    """
    with ExitStack() as stack:
        for site in sites:
            if not site.gated or not sliceable(site) or site.activation not in ACT2FN:
                raise ConfigError(
                    f"{site.name}: score gate needs a gated block whose gate is known, and that no"
                    " other depth shares; use magnitude or impact"
                )
            act = ACT2FN[site.activation]

            def see(_: Any, __: Any, out: Tensor, site: Site = site, act: Any = act) -> None:
                gates[site.key] = act(out[..., : site.n_units])

            stack.enter_context(site.up[0].module.register_forward_hook(see))
        yield
