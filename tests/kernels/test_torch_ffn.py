import pytest
import torch

from keepset.kernels import dispatch
from keepset.kernels.selection import Selection
from keepset.kernels.torch_ffn import DOWN_PATHS, neuron_major


def naive(h, mask, rows, bias):
    """The definition: over each row's kept units, one after the other."""
    out = torch.zeros(h.shape[0], rows.shape[1], dtype=torch.float64)
    for row, unit in mask.nonzero().tolist():
        out[row] += h[row, unit].double() * rows[unit].double()
    return out if bias is None else out + bias.double()


def case(n, units, width, dtype=torch.float32):
    generator = torch.Generator().manual_seed(n + units)
    h, rows = (torch.randn(*s, generator=generator) for s in ((n, units), (units, width)))
    return h.to(dtype), rows.to(dtype), torch.randn(width, generator=generator).to(dtype)


def off(output, expected):
    return float((output.double() - expected).norm() / expected.norm().clamp_min(1e-30))


@pytest.mark.parametrize("path", DOWN_PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "units", "width"), [(1, 7, 3), (1, 129, 65), (5, 33, 17)])
def test_every_path_is_the_definition(path, dtype, n, units, width):
    h, rows, bias = case(n, units, width, dtype)
    run, limit = DOWN_PATHS[path], 1e-5 if dtype == torch.float32 else 5e-3
    mask = torch.rand(n, units, generator=torch.Generator().manual_seed(3)) < 0.3
    mask[0, -1] = True  # the last unit counts
    for added in (None, bias):
        assert off(run(h, mask, rows, added), naive(h, mask, rows, added)) <= limit
        shared = mask[:1].expand(n, -1)
        output = run(h, shared[0].nonzero()[:, 0], rows, added)
        assert off(output, naive(h, shared, rows, added)) <= limit


@pytest.mark.parametrize("path", DOWN_PATHS)
@pytest.mark.parametrize("kept", [0, 9])
def test_nothing_and_everything_kept(path, kept):
    h, rows, bias = case(2, 9, 4)
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[:, :kept] = True
    expected = naive(h, mask, rows, bias)
    assert off(DOWN_PATHS[path](h, mask, rows, bias), expected) <= 1e-5
    assert off(DOWN_PATHS[path](h, torch.arange(kept), rows, bias), expected) <= 1e-5


@pytest.mark.parametrize("path", ["bag", "select"])
def test_what_is_left_out_is_not_read(path):
    h, rows, _ = case(1, 9, 4)
    units = torch.tensor([7, 2])
    rows[[0, 1, 3, 4, 5, 6, 8]] = torch.nan
    assert torch.isfinite(DOWN_PATHS[path](h, units, rows, None)).all()


def test_rows_are_copied_only_if_they_must_be():
    weight = torch.randn(4, 9)
    assert neuron_major(weight).data_ptr() == weight.data_ptr()
    assert neuron_major(weight.T).is_contiguous()
    assert torch.equal(neuron_major(weight.T), weight.T)


def test_a_further_path_is_a_candidate(monkeypatch):
    h, rows, _ = case(1, 64, 8)
    units, selection = torch.arange(4), Selection()
    monkeypatch.setattr(dispatch, "DOWN_PATHS", {**DOWN_PATHS, "mine": lambda *_: None})
    assert dispatch.down_path(selection, h, units, [rows], None) == "mine"
    (label,) = selection.crossovers_ms()
    assert label.startswith("down 64x8 rows=1 kept=0.06 cpu float32")
