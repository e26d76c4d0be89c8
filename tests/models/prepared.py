"""What the tests of models share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from keepset import models
from keepset.settings import Model

CPU = torch.device("cpu")
TOKENS = torch.tensor([[5, 17, 3, 200, 9, 44]])


def prepared(folder: Path, **source: Any) -> dict[str, Any]:
    return models.prepare("mine", Model(path=str(folder), **source), folder.parent / "results")


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits
