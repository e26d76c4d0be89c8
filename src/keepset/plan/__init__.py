"""What a study costs before it is run: jobs, tokens, operations, memory, time.

One arithmetic for `keepset plan` and for the resources that the workflow's rules ask for; it is
written out in docs/METHODS.md, section 9. Rules are those of `keepset.settings.grid`. Like
everything that the workflow imports at its start, it does without torch.
"""

from keepset.plan.cost import (
    LOAD as LOAD,
    SPEEDS as SPEEDS,
    START_S as START_S,
    Cost as Cost,
    Kind as Kind,
    Speed as Speed,
    cost as cost,
    device_kind as device_kind,
    resources as resources,
)
from keepset.plan.jobs import (
    Job as Job,
    jobs as jobs,
)
from keepset.plan.work import (
    PASSAGE_WORDS as PASSAGE_WORDS,
    TOKENS_PER_WORD as TOKENS_PER_WORD,
    work as work,
)
