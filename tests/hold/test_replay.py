"""Layers that return what they returned before: the rest of the model is as if they had run."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch

from keepset.hold.replay import recording, replaying
from keepset.kinds import find_sites
from keepset.measure import ablations
from keepset.measure.runner import Runner
from keepset.sites.ffn import decoder_layers, find_ffn_sites

IDS = torch.randint(4, 260, (2, 9), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("family", ["llama", "opt", "qwen2", "gpt2"])
def test_what_follows_sees_no_difference(tiny_model, family):
    model = tiny_model(family)
    _, layers = decoder_layers(model)
    with torch.inference_mode():
        dense = model(input_ids=IDS, use_cache=False).logits
        with recording(layers[:1]) as outputs:
            model(input_ids=IDS, use_cache=False)
        calls = []
        with layers[0].register_forward_pre_hook(lambda *_: calls.append("dense")):
            model(input_ids=IDS, use_cache=False)
        inside = []
        down = find_ffn_sites(model)[0].down
        with (
            replaying(layers[:1], outputs),
            down.register_forward_pre_hook(lambda *_: inside.append("ran")),
        ):
            again = model(input_ids=IDS, use_cache=False).logits
        after = model(input_ids=IDS + 1, use_cache=False).logits
    assert calls == ["dense"]
    assert inside == []  # the layer's own modules did not run
    assert torch.equal(again, dense)
    assert not torch.equal(after, dense)


@pytest.mark.parametrize("family", ["llama", "opt", "zamba2"])
def test_ablations_are_those_of_complete_passes(tiny_model, monkeypatch, family):
    model = tiny_model(family)
    sites = find_ffn_sites(model)
    first, last = (choose(site.layer for site in sites) for choose in (min, max))
    sample = pd.DataFrame({"layer": [first, last, last], "unit": [3, 1, 4]})
    runner = Runner(model, find_sites(model), batch_tokens=18)
    quick = ablations.measure_ablations(runner, sites, sample, IDS, "test")
    used = ablations._layers_before(runner, sites, sample["layer"], IDS[:1])
    assert len(used) == last
    # The calls of a down projection that depths share are counted, so all layers must run.
    shared = [replace(site, n_calls=2) for site in sites]
    assert not ablations._layers_before(runner, shared, sample["layer"], IDS[:1])
    monkeypatch.setattr(ablations, "_layers_before", lambda *_: [])
    plain = ablations.measure_ablations(runner, sites, sample, IDS, "test")
    assert quick.tolist() == plain.tolist()
    assert quick.abs().min() > 0
