"""Rules that need whole passages refuse to go on with a cache."""

import pytest
import torch

from keepset import kinds
from keepset.errors import ModelError
from keepset.measure.runner import Runner
from keepset.rules.rule import Rule

IDS = torch.randint(4, 260, (1, 12), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("family", "rule"),
    [
        ("llama", Rule("magnitude", 0.5, 1)),
        ("llama", Rule("magnitude", 0.5, 4, "causal")),
        ("llama", Rule("magnitude", 0.5, "corpus")),
        ("rwkv", Rule("magnitude", 0.5, 1)),
        ("mamba2", Rule("magnitude", 0.5, 1, site="input")),
        ("qwen3_moe", Rule("magnitude", 0.75, 1, site="expert")),
        ("qwen3_moe", Rule("magnitude", 0.8, 1)),
    ],
)
def test_steps_after_a_cache_are_refused(tiny_model, family, rule):
    """Each would count as the first token of a row, and run dense."""
    more = {"head_dim": 8} if family == "qwen3_moe" else {}
    model = tiny_model(family, **more)
    sites = kinds.find_sites(model, [rule.site])
    masks = {site.key: torch.arange(site.n_units) % 2 == 0 for site in sites}
    run = Runner(model, sites, keep_sets={rule: masks})
    ids = IDS
    with run.holding(rule), torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        prompt = model(input_ids=ids, use_cache=True)
        assert torch.equal(prompt.logits, whole)
        with pytest.raises(ModelError, match="whole passages: give use_cache=False"):
            model.generate(ids, max_new_tokens=3, do_sample=False, eos_token_id=None)
        tokens = model.generate(
            ids, max_new_tokens=3, do_sample=False, eos_token_id=None, use_cache=False
        )
    assert tokens.shape[1] == ids.shape[1] + 3
