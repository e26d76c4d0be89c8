"""The typed view of config.yaml, and the paths of the results.

The pydantic models of this package are the single source of the configuration's shape:
`workflow/schemas/config.schema.yaml` is generated from them (`keepset schema`).
"""

from keepset.settings.base import (
    Access,
    Choice,
    Device,
    DialWindow,
    Dtype,
    Name,
    ScoreName,
    SiteKind,
    Sparsity,
    StateScoreName,
    TextFormat,
    TokenScoreName,
    Window,
)
from keepset.settings.config import (
    RESERVED_NAMES,
    Config,
    Corpus,
    find_specimens,
    from_mapping,
    json_schema,
    load,
)
from keepset.settings.grids import (
    Ablation,
    Capability,
    Dial,
    DynamicGrid,
    Grid,
    GridOverride,
    State,
    StateDial,
    StatePrune,
    StateStaticGrid,
    StaticGrid,
)
from keepset.settings.measuring import Benchmark, Kernels, Shape, Statistics
from keepset.settings.sources import Model, Task, Text, TextSource
from keepset.settings.training import Recall, Specimen, Training, TrainingData, TrainingSource

__all__ = [
    "RESERVED_NAMES",
    "Ablation",
    "Access",
    "Benchmark",
    "Capability",
    "Choice",
    "Config",
    "Corpus",
    "Device",
    "Dial",
    "DialWindow",
    "Dtype",
    "DynamicGrid",
    "Grid",
    "GridOverride",
    "Kernels",
    "Model",
    "Name",
    "Recall",
    "ScoreName",
    "Shape",
    "SiteKind",
    "Sparsity",
    "Specimen",
    "State",
    "StateDial",
    "StatePrune",
    "StateScoreName",
    "StateStaticGrid",
    "StaticGrid",
    "Statistics",
    "Task",
    "Text",
    "TextFormat",
    "TextSource",
    "TokenScoreName",
    "Training",
    "TrainingData",
    "TrainingSource",
    "Window",
    "find_specimens",
    "from_mapping",
    "json_schema",
    "load",
]
