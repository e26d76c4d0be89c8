"""The weights of one feed-forward layer as the sparse paths read them: neuron by neuron."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from keepset.errors import KernelError

MAX_ROWS = 16
"""Rows at a time that the kernels of decoding take, each with a keep set of its own."""

ACTIVATIONS = ("relu", "relu2", "silu", "gelu", "gelu_tanh")


@dataclass(frozen=True)
class FfnWeights:
    """One FFN: n neurons between d inputs and d outputs, row j holding what neuron j owns.

    h = act(x up^T + up_bias), or with a gate h = act(x gate^T + gate_bias) (x up^T + up_bias);
    y = h down_t + down_bias. A neuron that is left out costs nothing but its rows not being read.

    Args:
        up: (n, d), as `nn.Linear` stores it.
        down_t: (n, d), the transpose of what `nn.Linear` stores, contiguous.
        gate: (n, d), or None where the block has no gate.
        act: One of `ACTIVATIONS`: "gelu" is the exact one, "relu2" the squared ReLU.
        up_bias: (n,).
        gate_bias: (n,).
        down_bias: (d,).

    Raises:
        KernelError: the shapes do not agree, or the activation is unknown.
    """

    up: Tensor
    down_t: Tensor
    gate: Tensor | None = None
    act: str = "relu"
    up_bias: Tensor | None = None
    gate_bias: Tensor | None = None
    down_bias: Tensor | None = None

    def __post_init__(self) -> None:
        if self.act not in ACTIVATIONS:
            raise KernelError(f"unknown activation {self.act!r}; known: {', '.join(ACTIVATIONS)}")
        if self.gate_bias is not None and self.gate is None:
            raise KernelError("gate_bias was given without a gate")
        n, d = self.up.shape
        expected = {
            "down_t": (n, d), "gate": (n, d), "up_bias": (n,), "gate_bias": (n,), "down_bias": (d,),
        }  # fmt: skip
        for name, shape in expected.items():
            tensor = getattr(self, name)
            if tensor is not None and tuple(tensor.shape) != shape:
                hint = "; it must be neuron-major (n, d)" if name == "down_t" else ""
                raise KernelError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}{hint}")

    @property
    def n(self) -> int:
        """How many neurons there are."""
        return self.up.shape[0]

    @property
    def d(self) -> int:
        """The width of the input and of the output."""
        return self.up.shape[1]

    def take(self, keep: Tensor) -> FfnWeights:
        """The kept neurons alone, copied together: a smaller dense FFN.

        Args:
            keep: (k,) indices.
        """
        owned = ("up", "down_t", "gate", "up_bias", "gate_bias")
        rows = {name: getattr(self, name) for name in owned}
        return replace(self, **{k: v[keep] for k, v in rows.items() if v is not None})

    @classmethod
    def from_linears(
        cls, up: nn.Linear, down: nn.Linear, gate: nn.Linear | None = None, act: str = "relu"
    ) -> FfnWeights:
        """From a model's own layers. `down` is transposed into a copy; the rest is shared."""
        return cls(
            up=up.weight.detach(),
            down_t=down.weight.detach().t().contiguous(),
            gate=None if gate is None else gate.weight.detach(),
            act=act,
            up_bias=None if up.bias is None else up.bias.detach(),
            gate_bias=None if gate is None or gate.bias is None else gate.bias.detach(),
            down_bias=None if down.bias is None else down.bias.detach(),
        )
