"""What a study costs before it is run: jobs, tokens, operations, memory, time.

One arithmetic for `keepset plan` and for the resources that the workflow's rules ask for; it is
written out in docs/METHODS.md, section 9. Rules are those of `keepset.settings.grid`. Like
everything that the workflow imports at its start, it does without torch.
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
    "resources",
    "work",
]
