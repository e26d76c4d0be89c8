"""Load a causal language model from a hub id, a local folder, a GGUF file or a package.

`prepare` finds, checks and if need be converts a model once; `load` then needs no network.
"""

from keepset.models.checkpoint import save as save
from keepset.models.devices import resolve_device as resolve_device, resolve_dtype as resolve_dtype
from keepset.models.loading import (
    check_length as check_length,
    fits as fits,
    load as load,
    load_tokenizer as load_tokenizer,
    prepare as prepare,
)
