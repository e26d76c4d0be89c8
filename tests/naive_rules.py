"""Keep rules on neurons as they are defined, token by token: what the library must agree with."""

import torch

from keepset.rules.rule import n_kept


def best(scores, kept):
    """The mask of the `kept` largest of (n,) scores; ties go to the lowest index."""
    order = sorted(range(len(scores)), key=lambda unit: (-float(scores[unit]), unit))
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[order[:kept]] = True
    return mask


def row_masks(h, rule, *, bos=False, before=None, static=None):
    """Which units each token of a row keeps.

    Args:
        h: (tokens, n), of a site that sees dense activations.
        rule: A rule with score magnitude.
        bos: Whether the first token is a BOS token.
        before: (n,) scores of the window before the row's first; None: nothing stands before.
        static: (n,) the mask of a static rule.
    """
    text = list(h.abs()[int(bos) :])
    kept = n_kept(h.shape[1], rule.sparsity)
    width = rule.window if isinstance(rule.window, int) else len(text)
    everything = torch.ones(h.shape[1], dtype=torch.bool)
    masks = []
    for place in range(len(text)):
        start = place - place % width
        if static is not None:
            masks.append(static)
        elif rule.choice == "oracle":
            masks.append(best(torch.stack(text[start : start + width]).mean(dim=0), kept))
        elif start:
            masks.append(best(torch.stack(text[start - width : start]).mean(dim=0), kept))
        elif before is not None:
            masks.append(best(before, kept))
        else:
            masks.append(best(text[0], kept) if place else everything)
    if bos:
        masks.insert(0, everything)
    masks[0] = everything
    return torch.stack(masks)
