"""What a study costs before it is run: jobs, tokens, operations, memory, time.

One arithmetic for `keepset plan` and for the resources that the workflow's rules ask for; it is
written out in docs/METHODS.md, section 9. Like everything that the workflow imports at its start,
it does without torch: rules are counted here, and a test holds the counts against
`keepset.settings.grid`.
"""

from keepset.plan.cost import (
    LOAD,
    MARGIN,
    SPEEDS,
    START_S,
    Cost,
    Kind,
    Speed,
    cost,
    device_kind,
    resources,
)
from keepset.plan.jobs import Job, jobs
from keepset.plan.work import (
    PASSAGE_WORDS,
    TOKENS_PER_WORD,
    Work,
    item_tokens,
    n_static,
    n_windowed,
    work,
)

__all__ = [
    "LOAD",
    "MARGIN",
    "PASSAGE_WORDS",
    "SPEEDS",
    "START_S",
    "TOKENS_PER_WORD",
    "Cost",
    "Job",
    "Kind",
    "Speed",
    "Work",
    "cost",
    "device_kind",
    "item_tokens",
    "jobs",
    "n_static",
    "n_windowed",
    "resources",
    "work",
]
