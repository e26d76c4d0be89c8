"""Find the feed-forward (FFN) sites of a causal language model.

To add a model family, see `keepset.sites.families`.

What to know before hooking a site (transformers 5.23):

- OPT flattens batch and time before its FFN: h is (batch * tokens, n_units) there, and
  (batch, tokens, n_units) elsewhere. Never count on three dimensions.
- A hook on `down` sees what the layer really multiplies, after any dropout or scaling of h.
- Zamba2 repeats `num_mem_blocks` FFNs over depth. The modules are distinct and the *parameters*
  are tied (`site.down.weight is other.down.weight`), so a change to one depth's weights changes
  all of its copies. Other releases share the module object itself; then one hook on `down` fires
  `n_calls` times in a forward pass, and `call` says which of them a site is. Count calls from
  the start of each forward pass. Gradient checkpointing breaks the count: it calls twice.
- Zamba2 adds a low-rank adapter to gate and up at every depth: h cannot be sliced through
  `gate_up_proj` alone, hence `up` is empty.
- Bloom's `slow_but_exact` reads the weight of the down projection without calling it. Hooks
  would never fire, so such a model is refused.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keepset.sites.find import Projection, Site, find_sites
    from keepset.sites.state import StateSite, find_state_sites

__all__ = ["Projection", "Site", "StateSite", "find_sites", "find_state_sites"]


def __getattr__(name: str) -> Any:
    # The configuration reads the families at every start, without torch.
    if name not in __all__:
        raise AttributeError(name)
    from keepset.sites import find, state

    return getattr(state if hasattr(state, name) else find, name)
