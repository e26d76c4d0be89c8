"""Imported before anything else: Triton asks at its own import whether kernels are interpreted,
and transformers imports Triton."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
