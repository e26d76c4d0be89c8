"""Load a causal language model from a hub id, a local folder, a GGUF file or a package.

`prepare` finds, checks and if need be converts a model once; `load` then needs no network.
"""

from keepset.models.checkpoint import save
from keepset.models.devices import resolve_device, resolve_dtype
from keepset.models.loading import check_length, fits, load, load_tokenizer, prepare

__all__ = [
    "check_length",
    "fits",
    "load",
    "load_tokenizer",
    "prepare",
    "resolve_device",
    "resolve_dtype",
    "save",
]
