from __future__ import annotations

import pytest
import torch

from keepset.calibrate.centres import collect_centres, mode
from keepset.errors import ConfigError, ModelError
from keepset.hold.inputs import watching
from keepset.kinds import find_sites

BLOCKS = torch.randint(4, 260, (3, 16), generator=torch.Generator().manual_seed(3))


def test_a_mode_worked_by_hand():
    # Of 7 numbers 4 are closest in 2 .. 3; of these 2 in 2.0 .. 2.1; their mean is 2.05.
    assert mode(torch.tensor([9.0, 2.0, 0.0, 3.0, 2.1, 2.5, -4.0])) == pytest.approx(2.05)
    assert mode(torch.tensor([0.0, 5.0, 0.0, 0.0, 1.0, 2.0])) == 0.0
    assert mode(torch.tensor([7.0])) == 7.0


def test_of_a_skewed_distribution_it_is_the_peak():
    numbers = torch.distributions.Gamma(4.0, 1.0).sample((200_000,))
    assert mode(numbers) == pytest.approx(3.0, abs=0.4)  # its mean is 4


def test_what_is_thinned_out_is_of_all_units():
    """Half of 8,192 units lie at 1, in every second place of every token."""
    units = torch.linspace(-3, 3, 8192)
    units[1::2] = 1.0
    assert mode(units.repeat(256)) == pytest.approx(1.0, abs=1e-6)


def test_text_without_a_token_to_take_them_of_is_refused(tiny_model):
    model = tiny_model("llama")
    sites = find_sites(model, ["ffn"])
    for blocks in (BLOCKS[:, :1], BLOCKS[:0]):
        with pytest.raises(ConfigError, match="blocks of 2 tokens or more"):
            collect_centres(model, sites, blocks)
    assert collect_centres(model, sites, BLOCKS[:, :1], bos=1)


@pytest.mark.parametrize("bos", [None, 1])
def test_the_first_token_of_a_context_does_not_count(tiny_model, bos):
    model = tiny_model("llama")
    sites = find_sites(model, ["ffn", "input"])
    seen = {}

    def action(site, h):
        seen[site.key] = h[:, 1:].flatten()

    ids = BLOCKS if bos is None else torch.cat([torch.full((3, 1), bos), BLOCKS], dim=1)
    with watching(model, sites, action), torch.inference_mode():
        model(input_ids=ids, use_cache=False)
    expected = {key: mode(values) for key, values in seen.items()}
    assert collect_centres(model, sites, BLOCKS, bos=bos) == expected


def test_infinite_inputs_are_refused(tiny_model):
    model = tiny_model("llama")
    sites = find_sites(model, ["ffn"])
    with torch.no_grad():
        sites[1].up[0].module.weight.fill_(float("inf"))
    with pytest.raises(ModelError, match=r"activations of model\.layers\.1"):
        collect_centres(model, sites, BLOCKS)
