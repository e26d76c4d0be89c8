"""The typed view of config.yaml, and the paths of the results.

The pydantic models of this package are the single source of the configuration's shape:
`workflow/schemas/config.schema.yaml` is generated from them (`keepset schema`).
"""

from keepset.settings.base import Choice as Choice
from keepset.settings.config import (
    Config as Config,
    Corpus as Corpus,
    find_specimens as find_specimens,
    from_mapping as from_mapping,
    json_schema as json_schema,
    load as load,
)
from keepset.settings.grids import (
    Ablation as Ablation,
    Capability as Capability,
    State as State,
    StateStaticGrid as StateStaticGrid,
)
from keepset.settings.measuring import (
    Benchmark as Benchmark,
    Kernels as Kernels,
    Shape as Shape,
    Statistics as Statistics,
)
from keepset.settings.recipes import read_recipe as read_recipe, write_recipe as write_recipe
from keepset.settings.sources import (
    Model as Model,
    Task as Task,
    TextSource as TextSource,
)
from keepset.settings.training import (
    Recall as Recall,
    Specimen as Specimen,
    Training as Training,
    TrainingData as TrainingData,
)
