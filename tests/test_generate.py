import pytest
import torch

from keepset import generate as gen
from keepset import trace
from keepset.evaluate import Runner
from keepset.keep import Rule
from keepset.sites import find_sites

FAMILIES = ("opt", "llama", "qwen2", "gpt2", "phi3", "gpt_neox", "zamba2")
RULES = [
    Rule("magnitude", 0.5, 1),
    Rule("impact", 0.8, 1),
    Rule("magnitude", 0.5, 1, "causal"),
    Rule("magnitude", 0.7, 4, "causal"),
    Rule("impact", 0.7, 4, "causal"),
    Rule("magnitude", 0.7, 16, "causal"),
    Rule("magnitude", 0.6, "corpus"),
]


def prompt(tokens=6, seed=1):
    return torch.randint(4, 260, (1, tokens), generator=torch.Generator().manual_seed(seed))


def sums(model):
    sites = find_sites(model)
    blocks = prompt(24, seed=9)
    return trace.record(model, sites, blocks, gradients=False, batch_tokens=64)


def reference(model, ids, tokens, rule, moments):
    """Greedy decoding by running the whole masked context again for every token."""
    runner = Runner(model, find_sites(model), moments=moments)
    with runner.holding(rule, stream=False), torch.inference_mode():
        for _ in range(tokens):
            logits = model(input_ids=ids, use_cache=False).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(dim=-1)], dim=1)
    return ids[0, -tokens:]


@pytest.mark.parametrize(
    "rule", RULES, ids=lambda rule: f"{rule.method}-{rule.score}-{rule.window}"
)
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_equal_the_masked_references(tiny_model, family, rule):
    model = tiny_model(family)
    moments = sums(model)
    for length in (1, 6, 9):
        ids = prompt(length)
        new = gen.generate(model, ids, 14, rule, moments=moments).tokens
        assert torch.equal(new, reference(model, ids, 14, rule, moments))
        assert gen.disagreement(model, ids, new, rule, moments) is None
