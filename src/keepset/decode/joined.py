"""A feed-forward block under a recipe, as one step of a token.

Its module is then not run. A kernel does the whole step where it has the activation; else what is
left of the module are two calls of a kernel with the activation, by transformers' own function,
between them. A block whose gate chooses is one step too: up and down are read where it says.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.activations import ACT2FN

from keepset.decode.block import agrees, part_weights, separable
from keepset.decode.choice import UnitChoice
from keepset.decode.inputs import SparseReaders
from keepset.decode.position import Position
from keepset.decode.token import TokenMap, TokenPaths
from keepset.decode.whole import uncounted
from keepset.hold.slices import standing_forward
from keepset.kernels.selection import NUMBA
from keepset.kernels.weights import MAX_ROWS
from keepset.sites.ffn import Site

# Where two scores are equal but for rounding, one token's choices may differ by a unit.
_TRIALS = 8

Step = Callable[[Tensor], tuple[Tensor, int]]
"""Tokens (..., d_model) -> the block's output and 0, or which of its sites has a NaN."""


class BlockStep(ABC):
    """Stands in for the module of a block, for the tokens that can be one step."""

    def __init__(self, module: nn.Module, peers: TokenPaths) -> None:
        self._module, self._paths = module, peers.paths
        self._plain = module.forward
        self._is_sound: bool | None = None
        self._trials = 0

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Stand in; everything is put back on exit."""
        with standing_forward(self._module, self._forward):
            try:
                yield
            finally:
                self._forget()

    @abstractmethod
    def _takes(self, x: Tensor) -> bool:
        """Whether x (..., d_model) is tokens that can be one step."""

    @abstractmethod
    def _tokens(self, x: Tensor) -> Tensor:
        """The block's output for such tokens."""

    @abstractmethod
    def _forget(self) -> None:
        """Let go of what holds weights."""

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._is_sound is False or len(args) != 1 or kwargs or not self._takes(args[0]):
            return self._plain(*args, **kwargs)
        if self._is_sound:
            return self._tokens(args[0])
        # The module may do more than its layout says.
        out = self._plain(args[0])
        self._trials += 1
        with uncounted(self._paths):
            is_sound = isinstance(out, Tensor) and agrees(self._tokens(args[0]), out)
        if is_sound or self._trials == _TRIALS:
            self._is_sound = is_sound
        return out


class JoinedBlock(BlockStep):
    """A block both of whose sites choose by their own size."""

    def __init__(self, module: nn.Module, first: SparseReaders, down: SparseReaders) -> None:
        """Join the sites of what makes h, and of h, that are all linear maps of `module`."""
        super().__init__(module, first.peers)
        self._first, self._down = first, down
        site = down.site
        self._act, self._n = ACT2FN[site.activation], site.n_units
        self._starts = starts(site, first)
        self._steps: dict[int, Step] = {}

    def _takes(self, x: Tensor) -> bool:
        return self._first.takes(x)

    def _forget(self) -> None:
        self._steps.clear()

    def _tokens(self, x: Tensor) -> Tensor:
        step = self._steps.get(x.numel())
        if step is None:
            out, _ = self._two_calls(x)  # which times the paths of both sites
            self._steps[x.numel()] = self._one_call(x) or self._two_calls
            return out
        out, wrong = step(x)
        if wrong:
            raise (self._first, self._down)[wrong - 1].choice.not_finite()
        return out

    def _one_call(self, x: Tensor) -> Step | None:
        """The kernel of the block, where both its sites run by kernels and it is one."""
        first, down, tokens = self._first, self._down, x.numel() // self._first.ins
        if any(one.peers.path(one, tokens) != NUMBA for one in (first, down)):
            return None
        from keepset.kernels.numba_ffn import ACTIVATIONS, TokenBlock  # compiled at its first use

        act = down.site.activation
        if act not in ACTIVATIONS or down.choice.centre is not None:
            return None
        block = TokenBlock(first.kernel(), down.kernel(), self._starts, act, by_gate=False)

        def step(x: Tensor) -> tuple[Tensor, int]:
            self._paths[NUMBA] += 2 * tokens
            return block(first.offsets(x))

        return step

    def _two_calls(self, x: Tensor) -> tuple[Tensor, int]:
        outs = self._first.tokens(x)
        parts = [outs.narrow(-1, start, self._n) for start in self._starts]
        h = self._act(parts[0])
        return self._down.tokens(h * parts[1] if self._down.site.gated else h), 0


class GatedBlock(BlockStep, TokenMap):
    """A block whose neurons are chosen by their gates; by torch it is the module, masked."""

    def __init__(
        self,
        module: nn.Module,
        choice: UnitChoice,
        rows: Tensor,
        first: SparseReaders | None,
        position: Position,
        peers: TokenPaths,
    ) -> None:
        """Prepare a block.

        Args:
            module: The block, which holds no other linear maps.
            choice: What tokens keep of its neurons.
            rows: (n_units, d_model) unit-major weights of its down projection.
            first: What gate and up read of the input, where that is not all.
            position: Will follow the passes of the model.
            peers: The other such blocks.
        """
        up: Any = choice.site.up[0].module
        TokenMap.__init__(self, rows, up.in_features if first is None else first.ins, peers)
        BlockStep.__init__(self, module, peers)
        self._choice, self._first, self._position = choice, first, position
        self._by_numba: Step | None = None

    def _takes(self, x: Tensor) -> bool:
        n = self._position.batch * self._position.tokens
        return not self._position.opens and n <= MAX_ROWS and x.numel() == n * self.ins

    def _forget(self) -> None:
        self._by_numba = None

    def _tokens(self, x: Tensor) -> Tensor:
        return self.peers.run(self, x)

    def by_torch(self, x: Tensor) -> Tensor:
        """The module itself, with masks at its sites."""
        out: Tensor = self._plain(x)
        return out

    def by_numba(self, x: Tensor) -> Tensor:
        """The block by one kernel.

        Raises:
            ModelError: a score is NaN; the message names the site.
        """
        if self._by_numba is None:
            self._by_numba = self._step()
        self._paths[NUMBA] += (1 + (self._first is not None)) * (x.numel() // self.ins)
        out, wrong = self._by_numba(x if self._first is None else self._first.offsets(x))
        if wrong:
            choices = (self._first and self._first.choice, self._choice)
            raise (choices[wrong - 1] or self._choice).not_finite()
        return out

    def _step(self) -> Step:
        from keepset.kernels.numba_ffn import GateBlock, TokenBlock, TokenDown

        choice, site = self._choice, self._choice.site
        bias: Any = site.down.bias
        down = TokenDown(self.rows, choice.least, choice.norms, bias)
        if self._first is not None:
            first, places = self._first, starts(site, self._first)
            return TokenBlock(first.kernel(), down, places, site.activation, by_gate=True)
        gate, up = part_weights(site)
        return GateBlock(gate, up, down, site.activation)


def starts(site: Site, first: SparseReaders) -> list[int]:
    """Where the outputs of gate and up begin, or of up alone, among those of `first`."""
    return [
        first.start(projection.module) + offset
        for projection in site.up
        for offset in projection.offsets
    ]


def joined_blocks(model: nn.Module, readers: Mapping[str, SparseReaders]) -> list[JoinedBlock]:
    """The blocks of `model` whose sites are both among `readers`, site key -> what stands in."""
    blocks = []
    for down in readers.values():
        module, first = block_of(model, down.site), first_of(down.site, readers)
        if module is not None and first is not None:
            blocks.append(JoinedBlock(module, first, down))
    return blocks


def can_choose_by_gate(model: nn.Module, site: Site) -> bool:
    """Whether a kernel may be tried on a block whose neurons are chosen by their gates."""
    from keepset.kernels.numba_ffn import ACTIVATIONS

    # Others may do more than a linear map.
    plain = all(type(one.module) is nn.Linear for one in site.up) and type(site.down) is nn.Linear
    known = site.gated and site.activation in ACTIVATIONS
    return known and plain and block_of(model, site) is not None


def first_of(site: Site, readers: Mapping[str, SparseReaders]) -> SparseReaders | None:
    """Of `readers`, what stands in for all that makes the neurons of a site, and for no more."""
    ups = {projection.module for projection in site.up}
    for one in readers.values():
        if ups and {module for module, _ in one.site.readers} == ups:
            return one
    return None


def block_of(model: nn.Module, site: Site) -> nn.Module | None:
    """The module of a site's block; None where it holds other weights, or is not known."""
    if not separable(site):
        return None
    read = {site.down, *(projection.module for projection in site.up)}
    names = {module: name.split(".") for name, module in model.named_modules() if module in read}
    parts = []
    for level in zip(*names.values(), strict=False):
        if len(set(level)) > 1:
            break
        parts.append(level[0])
    block = model.get_submodule(".".join(parts))
    maps = {module for module in block.modules() if getattr(module, "weight", None) is not None}
    return block if maps == read else None
