"""What a study costs, as a table to read before it is run: `keepset plan`.

The arithmetic is that of `keepset.plan`; here are the sums by model and rule, and the words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from keepset import plan
from keepset.plan import Cost, Kind, Speed
from keepset.plan.counting import known_sizes
from keepset.plan.sizes import Known
from keepset.settings import Config


@dataclass(frozen=True)
class Row:
    """Jobs of one rule and model.

    Attributes:
        model: None for jobs that belong to no model.
        rule: The rule.
        jobs: How many: one for each corpus, task or choice.
        cost: Summed over the jobs; memory and GPU memory are those of the largest.
        seconds: One after the other.
    """

    model: str | None
    rule: str
    jobs: int
    cost: Cost
    seconds: float


@dataclass(frozen=True)
class Bill:
    """What a study costs."""

    study: str
    kind: Kind
    speed: Speed
    models: dict[str, Known]
    rows: list[Row]

    def total(self) -> Row:
        """All rows as one."""
        return _joined(None, "total", self.rows)

    def plain(self) -> dict[str, Any]:
        """For JSON; bytes, operations and seconds."""
        rows = [{**asdict(row), **asdict(row.cost)} for row in [*self.rows, self.total()]]
        return {
            "study": self.study,
            "device": self.kind,
            "speed": asdict(self.speed),
            "models": {name: asdict(known) for name, known in self.models.items()},
            "rows": [{key: row[key] for key in row if key != "cost"} for row in rows],
        }


def make(config: Config, kind: Kind, speed: Speed, results: Path) -> Bill:
    """Count the jobs of a study that starts from nothing, and add up what they take.

    Args:
        config: The study.
        kind: Where models run.
        speed: How fast that is.
        results: The folder of the study's results, where converted checkpoints are.

    Raises:
        ConfigError: the size of a model is not known; the message names the models, and says how
            to get what is missing.
        ModelError: a model's configuration cannot be read, or its family is unknown.
    """
    known = known_sizes(config, results)
    grouped: dict[tuple[str | None, str], list[Row]] = {}
    for job in plan.jobs(config):
        size = known[job.model].size if job.model is not None else None
        cost = plan.cost(config, job, size, kind)
        row = Row(job.model, job.rule, 1, cost, cost.seconds(speed))
        grouped.setdefault((job.model, job.rule), []).append(row)
    rows = [_joined(model, rule, group) for (model, rule), group in grouped.items()]
    return Bill(config.study, kind, speed, known, rows)


def _joined(model: str | None, rule: str, rows: Sequence[Row]) -> Row:
    costs = [row.cost for row in rows]
    cost = Cost(
        tokens=sum(c.tokens for c in costs),
        flops=sum(c.flops for c in costs),
        bytes=sum(c.bytes for c in costs),
        weights=sum(c.weights for c in costs),
        memory=max((c.memory for c in costs), default=0.0),
        gpu=max((c.gpu for c in costs), default=0.0),
    )
    jobs, seconds = sum(row.jobs for row in rows), sum(row.seconds for row in rows)
    return Row(model, rule, jobs, cost, seconds)


def text(bill: Bill) -> str:
    """The bill as lines for a terminal."""
    speed = bill.speed
    head = (
        f"study {bill.study} on {bill.kind}: {speed.flops / 1e12:.3g} TFLOP/s,"
        f" {speed.bytes / 1e9:.3g} GB/s ({speed.source})"
    )
    lines = [head]
    for model in [*bill.models, None]:
        rows = [row for row in bill.rows if row.model == model]
        lines += ["", _title(bill, model), _line(_COLUMNS)]
        lines += [_line(_cells(row)) for row in [*rows, _joined(model, "sum", rows)]]
    by_rule: dict[str, list[Row]] = {}
    for row in bill.rows:
        by_rule.setdefault(row.rule, []).append(row)
    lines += ["", "all models", _line(_COLUMNS)]
    totals = [_joined(None, rule, rows) for rule, rows in by_rule.items()]
    lines += [_line(_cells(row)) for row in [*totals, bill.total()]]
    return "\n".join([*lines, "", _sum(bill.total()), _NOTE])


def _title(bill: Bill, model: str | None) -> str:
    if model is None:
        return "no model"
    known = bill.models[model]
    return f"{model}: {_short(known.size.parameters)} parameters ({known.source})"


_COLUMNS = ("rule", "jobs", "tokens", "FLOP", "memory", "GPU memory", "time")


def _cells(row: Row) -> tuple[str, ...]:
    cost = row.cost
    return (
        row.rule,
        str(row.jobs),
        _short(cost.tokens),
        _short(cost.flops),
        _bytes(cost.memory),
        _bytes(cost.gpu),
        _duration(row.seconds),
    )


def _line(cells: Iterable[str]) -> str:
    first, *rest = cells
    return f"  {first:<24}" + "".join(f"{cell:>12}" for cell in rest)


def _short(number: float) -> str:
    """1234567 -> "1.23 M"."""
    for power, unit in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:.3g} {unit}"
    return f"{number:g}" if number else "-"


def _bytes(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number else "-"


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.0f} s"


_NOTE = """\
Time is the start of each job, its weights, operations at the rate above, and what states
move that are run token by token. Downloads and statistics are not in it, work that a keep
rule saves is: expect it to be right within a factor of two or three. Memory is an upper
bound, with the scan of Mamba-2 in plain torch. See docs/METHODS.md, section 9.
"""


def _sum(total: Row) -> str:
    gpu = f" and {_bytes(total.cost.gpu)} on the GPU" if total.cost.gpu else ""
    return (
        f"{total.jobs} jobs, one after the other: {_duration(total.seconds)}. The largest takes"
        f" {_bytes(total.cost.memory)} of memory{gpu}."
    )
