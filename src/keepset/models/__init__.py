"""Load a causal language model from a hub id, a local folder, a GGUF file or a package.

`prepare` finds, checks and if need be converts a model once; `load` then needs no network.
"""

from keepset.models.bos import bos_token as bos_token
from keepset.models.checkpoint import save as save
from keepset.models.devices import resolve_device as resolve_device, resolve_dtype as resolve_dtype
from keepset.models.identity import (
    owner_of as owner_of,
    still_to_do as still_to_do,
    weights_digest as weights_digest,
)
from keepset.models.limits import check_ids as check_ids, check_length as check_length, fits as fits
from keepset.models.loading import (
    load as load,
    load_tokenizer as load_tokenizer,
    prepare as prepare,
)
