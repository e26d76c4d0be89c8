"""The bill of a study, to read before it is paid: `keepset plan`.

The arithmetic is that of `keepset.plan`. Here are the sizes of models that have no formula, the
speed of this machine, and the words.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from keepset import plan
from keepset.errors import ConfigError, ModelError
from keepset.plan import Cost, Kind, Speed, sizes
from keepset.plan.sizes import Size
from keepset.settings import Config

_SIDE = 2048
"""Rows and columns of the matrices that are multiplied to measure a machine."""
_SECONDS = 0.3
"""How long a measurement goes on, at least."""


@dataclass(frozen=True)
class Known:
    """A model's size, and where it is known from."""

    size: Size
    source: str


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


def make(config: Config, kind: Kind, speed: Speed) -> Bill:
    """Count the jobs of a study that starts from nothing, and add up what they take.

    Args:
        config: The study.
        kind: Where models run.
        speed: How fast that is.

    Raises:
        ConfigError: the size of a model cannot be known here; the message names the models, and
            says how to get what is missing.
        ModelError: a model's configuration cannot be read, or its family is unknown.
    """
    known = known_sizes(config)
    grouped: dict[tuple[str | None, str], list[Row]] = {}
    for job in plan.jobs(config):
        size = known[job.model].size if job.model is not None else None
        found = plan.cost(config, job, size, kind)
        row = Row(job.model, job.rule, 1, found, found.seconds(speed))
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


def known_sizes(config: Config) -> dict[str, Known]:
    """The size of every model of this run: from its config.json where it is at hand, or the table.

    Raises:
        ConfigError: neither is there for some models; the message names them.
    """
    found: dict[str, Known] = {}
    missing = []
    for name in config.active_models():
        known = _known(config, name)
        if known is None:
            missing.append(f"models.{name}.hub: {config.all_models()[name].hub}")
        else:
            found[name] = known
    if missing:
        raise ConfigError(
            f"not in the local cache, so that the size is not known: {'; '.join(missing)}. Run"
            " `snakemake --cores 1 models --configfile YOUR_CONFIG` (or `snakemake download`, or"
            " `hf download REPOSITORY config.json`) where there is a network, with this HF_HOME"
        )
    return found


def _known(config: Config, name: str) -> Known | None:
    model, file = config.all_models()[name], sizes.config_file(config, name)
    size = sizes.size_of(config, name)
    if size is not None:
        in_table = file is None or sizes.from_config(sizes.read_content(file)) is None
        return Known(size, "keepset's table" if in_table else str(file))
    if file is not None:
        return Known(count_parameters(name, file.parent, code=model.trust_remote_code), str(file))
    return None if model.hub is not None else _of_package_or_file(config, name)


def _of_package_or_file(config: Config, name: str) -> Known:
    """Of a GGUF file, whose head says what is in it, or of a folder in a package."""
    from keepset.models import sources

    model = config.all_models()[name]
    path = sources.find(f"models.{name}", model).path
    folder, gguf = (path.parent, path.name) if path.is_file() else (path, None)
    counted = count_parameters(name, folder, gguf=gguf, code=model.trust_remote_code)
    return Known(counted, str(path))


def count_parameters(
    name: str, folder: Path, *, gguf: str | None = None, code: bool = False
) -> Size:
    """The size of any model of transformers, by building it without weights.

    Args:
        name: The model's key in `models`, for messages.
        folder: The checkpoint; only its config.json is read, or the head of the file `gguf`.
        gguf: A GGUF file in `folder`.
        code: Whether Python code that came with the model may run.

    Raises:
        ModelError: transformers cannot build it, or keepset knows no sites for it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from keepset.models.checkpoint import explained

    extra = {"gguf_file": gguf} if gguf else {}
    with explained(f"models.{name}: cannot build the model of {folder / (gguf or 'config.json')}"):
        config = AutoConfig.from_pretrained(
            folder, trust_remote_code=code, local_files_only=True, **extra
        )
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=code)
    return measured_size(model)


def measured_size(model: Any) -> Size:
    """The size of a model that is built, perhaps on the meta device.

    Adapters that a shared block holds for every depth count at each of them: the number of
    multiplied weights of such models is at most what is returned.
    """
    from torch import nn

    from keepset.sites import find_sites, find_state_sites

    config = model.config.get_text_config()
    modules = [module for _, module in model.named_modules(remove_duplicate=False)]
    weights = [
        module.weight
        for module in modules
        if not isinstance(module, nn.Embedding)
        and getattr(getattr(module, "weight", None), "ndim", 0) == 2
    ]
    ffn, states = find_sites(model), find_state_sites(model)
    heads = getattr(config, "num_attention_heads", 0) or 0
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // max(heads, 1))
    first = states[0] if states else None
    return Size(
        parameters=model.num_parameters(),
        multiplied=sum(weight.numel() for weight in weights),
        d_model=config.hidden_size,
        vocabulary=config.vocab_size,
        positions=getattr(config, "max_position_embeddings", 0) or 0,
        attention_layers=sum(type(m).__name__.endswith("Attention") for m in modules),
        attention_width=width,
        ffn_layers=len(ffn),
        n_units=max((site.n_units for site in ffn), default=0),
        gated=any(site.gated for site in ffn),
        state_layers=len(states),
        heads=first.n_heads if first else 0,
        head_dim=first.head_dim if first else 0,
        n_state=first.n_state if first else 0,
        groups=first.n_groups if first else 0,
        chunk=(getattr(config, "chunk_size", 0) or 256) if first else 0,
    )


def measure(kind: Kind) -> Speed:
    """Multiply square matrices, and read memory, for a moment.

    One CPU thread, as the workflow's jobs have; bfloat16 on a GPU, else float32.

    Raises:
        ModelError: there is no such device here.
    """
    import torch

    from keepset import models
    from keepset.run.job import limit_threads
    from keepset.speed import timing

    device = models.resolve_device(kind)
    limit_threads(1)
    dtype = torch.bfloat16 if kind == "cuda" else torch.float32
    left, right = (torch.randn(_SIDE, _SIDE, device=device, dtype=dtype) for _ in range(2))

    def multiply() -> None:
        torch.matmul(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    multiply()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < _SECONDS:
        multiply()
        count += 1
    rate = count * 2 * _SIDE**3 / (time.perf_counter() - start)
    return Speed(
        rate, timing.machine_of(device).bandwidth, "measured here: matrices multiplied, read"
    )


def stated(kind: Kind, rate: float | None, bandwidth: float | None) -> Speed:
    """The default speed of `kind`, with what is stated in its place.

    Args:
        kind: Where models run.
        rate: TFLOP/s.
        bandwidth: GB/s.

    Raises:
        ConfigError: a number is not positive.
    """
    for option, value in (("--rate", rate), ("--bandwidth", bandwidth)):
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"{option} {value:g}: give a positive number")
    default = plan.SPEEDS[kind]
    if rate is None and bandwidth is None:
        return default
    source = "as stated" if rate and bandwidth else f"as stated; else {default.source}"
    return Speed(
        default.flops if rate is None else rate * 1e12,
        default.bytes if bandwidth is None else bandwidth * 1e9,
        source,
    )


def text(bill: Bill) -> str:
    """The bill as lines for a terminal."""
    speed = bill.speed
    head = (
        f"study {bill.study} on {bill.kind}: {speed.flops / 1e12:.3g} TFLOP/s,"
        f" {speed.bytes / 1e9:.3g} GB/s ({speed.source})"
    )
    lines = [head]
    for model in [*bill.models, None]:
        own = [row for row in bill.rows if row.model == model]
        lines += ["", _title(bill, model), _line(_COLUMNS)]
        lines += [_line(_cells(row)) for row in [*own, _joined(model, "sum", own)]]
    by_rule: dict[str, list[Row]] = {}
    for row in bill.rows:
        by_rule.setdefault(row.rule, []).append(row)
    lines += ["", "all models", _line(_COLUMNS)]
    totals = [_joined(None, rule, rows) for rule, rows in by_rule.items()]
    lines += [_line(_cells(row)) for row in [*totals, bill.total()]]
    return "\n".join([*lines, "", *_notes(bill)]) + "\n"


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


def _notes(bill: Bill) -> Iterator[str]:
    total = bill.total()
    yield (
        f"{total.jobs} jobs, one after the other: {_duration(total.seconds)}. The largest takes"
        f" {_bytes(total.cost.memory)} of memory"
        + (f" and {_bytes(total.cost.gpu)} on the GPU." if total.cost.gpu else ".")
    )
    yield (
        "Time is the start of each job, its weights, operations at the rate above, and what states"
    )
    yield (
        "move that are run token by token. Downloads and statistics are not in it, work that a keep"
    )
    yield (
        "rule saves is: expect it to be right within a factor of two or three. Memory is an upper"
    )
    yield "bound, with the scan of Mamba-2 in plain torch. See docs/METHODS.md, section 9."


def speed_of(kind: Kind, rate: float | None, bandwidth: float | None, measured: bool) -> Speed:
    """The speed that the command's options ask for.

    Raises:
        ConfigError: a speed is both stated and measured, or is not positive.
        ModelError: it cannot be measured, for there is no such device here.
    """
    if not measured:
        return stated(kind, rate, bandwidth)
    if rate is not None or bandwidth is not None:
        raise ConfigError("--measure: leave out --rate and --bandwidth, or leave out --measure")
    try:
        return measure(kind)
    except ModelError as error:
        raise ModelError(
            f"{error}; --measure needs the device of the study: run it there, or state --rate"
        ) from None
