"""Decode under a keep rule with the paths that do less work.

`sparse_decoding` is the fast counterpart of `keepset.measure.runner.Runner.holding`: the same
rules, the same sets, the same tokens up to rounding; what is left out is not computed, or not read.
"""

from keepset.decode.session import Session as Session, sparse_decoding as sparse_decoding
