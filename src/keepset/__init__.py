"""keepset: which parts of a language model can be left out, chosen how, and for how long?

    >>> from keepset import Rule, Runner, cut_blocks, find_sites, load, perplexity
    >>> model, tokenizer = load("specimens/relu", dtype="float32")
    >>> text = open("specimens/relu/README.md", encoding="utf-8").read()
    >>> blocks = cut_blocks([text], tokenizer, block=64)
    >>> runner = Runner(model, find_sites(model))
    >>> dense = perplexity(runner, blocks)
    >>> dynamic = perplexity(runner, blocks, Rule("magnitude", sparsity=0.9, window=1))
    >>> bool(dynamic < 1.3 * dense)
    True

Names are imported at their first use, so that `import keepset` stays light: the workflow and the
`keepset` command start without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keepset.calibrate.activations import collect_moments as collect_moments
    from keepset.calibrate.centres import collect_centres as collect_centres
    from keepset.calibrate.choice import choose_channels as choose_channels
    from keepset.calibrate.sets import RankedSets as RankedSets
    from keepset.decode import sparse_decoding as sparse_decoding
    from keepset.decode.generate import (
        compare as compare,
        generate as generate,
        parse_keep as parse_keep,
    )
    from keepset.errors import KeepsetError as KeepsetError
    from keepset.hold.cut import (
        load_pruned as load_pruned,
        prune_states as prune_states,
        save_pruned as save_pruned,
    )
    from keepset.hold.cut_experts import prune_experts as prune_experts
    from keepset.kinds import find_sites as find_sites
    from keepset.measure.runner import Runner as Runner, perplexity as perplexity
    from keepset.models.anywhere import load as load
    from keepset.rules.recipe import Recipe as Recipe
    from keepset.rules.rule import Rule as Rule, describe as describe
    from keepset.settings.recipes import read_recipe as read_recipe, write_recipe as write_recipe
    from keepset.text import cut_blocks as cut_blocks

__version__ = "0.7.0"

_HOME = {
    "KeepsetError": "errors",
    "RankedSets": "calibrate.sets",
    "Recipe": "rules.recipe",
    "Rule": "rules.rule",
    "Runner": "measure.runner",
    "choose_channels": "calibrate.choice",
    "collect_centres": "calibrate.centres",
    "collect_moments": "calibrate.activations",
    "compare": "decode.generate",
    "cut_blocks": "text",
    "describe": "rules.rule",
    "find_sites": "kinds",
    "generate": "decode.generate",
    "load": "models.anywhere",
    "load_pruned": "hold.cut",
    "parse_keep": "decode.generate",
    "perplexity": "measure.runner",
    "prune_experts": "hold.cut_experts",
    "prune_states": "hold.cut",
    "read_recipe": "settings.recipes",
    "save_pruned": "hold.cut",
    "sparse_decoding": "decode",
    "write_recipe": "settings.recipes",
}
"""Public name -> the module that defines it."""

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'keepset' has no attribute {name!r}")
    return getattr(import_module(f"keepset.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
