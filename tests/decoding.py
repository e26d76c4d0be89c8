"""What tests of decoding share: prompts, calibration sums, and the slow reference."""

import torch

from keepset.calibrate import activations
from keepset.calibrate.sets import RankedSets
from keepset.hold.contexts import with_bos
from keepset.kernels.selection import Selection
from keepset.measure.runner import Runner
from keepset.sites.ffn import find_ffn_sites

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""Where tests of kernels run their models: interpreted on a CPU."""


def prompt(tokens=6, seed=1, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, 260, (1, tokens), generator=generator).to(device)


def sums(model):
    sites = find_ffn_sites(model)
    blocks = prompt(24, seed=9)
    return activations.collect_moments(model, sites, blocks, gradients=False, batch_tokens=64)


def reference(model, ids, tokens, rule, moments, bos=None):
    """Greedy decoding by running the whole masked context again for every token."""
    keep_sets = RankedSets(moments or {})
    plain = Selection("torch", forced=["masked"])
    runner = Runner(model, find_ffn_sites(model), keep_sets=keep_sets, kernels=plain, bos=bos)
    ids = with_bos(ids, bos)
    with runner.holding(rule), torch.inference_mode():
        for _ in range(tokens):
            logits = model(input_ids=ids, use_cache=False).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(dim=-1)], dim=1)
    return ids[0, -tokens:].cpu()
