"""What a study costs before it is run: jobs, tokens, operations, memory, time.

One arithmetic for `keepset plan` and for the resources that the workflow's rules ask for; it is
written out in docs/METHODS.md, section 9. Like everything that the workflow imports at its start,
it does without torch: rules are counted here, and a test holds the counts against `keepset.grid`.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from keepset import parameters
from keepset.settings import Config, Dial, DynamicGrid, State, StateStaticGrid, StaticGrid, Task
from keepset.sizes import Size

Kind = Literal["cpu", "cuda"]

START_S = 6.0
"""Seconds until a job has imported torch and transformers."""
LOAD = 1e9
"""Bytes of weights read per second."""
PASSAGE_WORDS = 75
"""Words of a LAMBADA passage (Paperno et al. 2016); of items of kind jsonl, for want of better."""
TOKENS_PER_WORD = 1.35
MARGIN = 2.0
"""A job may run this many times as long as expected before a scheduler ends it."""

_GRADIENT = 3
"""A forward pass and a backward pass of twice the work."""
_STEP_BYTES = 7 * 4
"""Bytes moved per number of a state and token, where a state is run token by token: decay and
input are read and written, the square too, and its sum is read; float32."""
_BASE = 0.7e9
"""Bytes of a process with torch and transformers; measured, 0.6 GB."""
_BASE_BESIDE_GPU = 3e9
"""The same with CUDA's libraries."""
_CONTEXT = 0.6e9
"""Bytes of GPU memory that a process takes before anything is on it."""
_MASK_BYTES = 16
"""Bytes per neuron and token of scores, their order and the mask."""
_OWN_CHUNK = 64
"""Tokens that keepset's scan for the CPU takes at a time (`keepset.kernels.scan`)."""
_IN_ORDER = {"ghost": "ghost", "ghost-uniform": "ghost", "ghost-separate": "separate"}
"""State scores that are taken again after every layer, by what they take: two share one pass."""


@dataclass(frozen=True)
class Speed:
    """How fast a machine is: operations and bytes per second, and where the numbers are from."""

    flops: float
    bytes: float
    source: str


SPEEDS: dict[Kind, Speed] = {
    "cpu": Speed(0.1e12, 10e9, "default of cpu: one core, float32"),
    "cuda": Speed(50e12, 1000e9, "default of cuda: a sixth of an A100's peak in bfloat16"),
}
"""What is assumed where nothing is stated or measured."""


@dataclass(frozen=True)
class Job:
    """One job of the workflow."""

    rule: str
    wildcards: Mapping[str, str] = field(default_factory=dict)

    @property
    def model(self) -> str | None:
        """The model it runs; None for jobs that join, test and draw."""
        return self.wildcards.get("model")


@dataclass(frozen=True)
class Work:
    """Tokens that pass through a model in one way.

    Attributes:
        tokens: How many, over all settings.
        length: Tokens per passage, which attention spans.
        batch: Tokens per forward pass.
        gradient: Whether the loss is differentiated.
        masked: Whether neurons are scored and masked at every token.
        stepped: Tokens that recurrent states are run over one by one, over all settings.
    """

    tokens: int
    length: int
    batch: int
    gradient: bool = False
    masked: bool = False
    stepped: int = 0


@dataclass(frozen=True)
class Cost:
    """What a job takes.

    Attributes:
        tokens: Tokens that pass through the model.
        flops: Floating point operations, at most: what a rule leaves out counts.
        bytes: Bytes moved by states that are run token by token.
        weights: Bytes of weights that are loaded.
        memory: Bytes of main memory at the peak.
        gpu: Bytes of GPU memory at the peak; 0 on a CPU.
    """

    tokens: int = 0
    flops: float = 0.0
    bytes: float = 0.0
    weights: float = 0.0
    memory: float = 0.0
    gpu: float = 0.0

    def seconds(self, speed: Speed) -> float:
        """How long it takes at `speed`."""
        return START_S + self.weights / LOAD + self.flops / speed.flops + self.bytes / speed.bytes


def device_kind(config: Config) -> Kind:
    """Where models run: what `device` says; `auto` takes a GPU where one can be seen."""
    if config.device.startswith("cuda"):
        return "cuda"
    return "cuda" if config.device == "auto" and shutil.which("nvidia-smi") else "cpu"


def jobs(config: Config) -> list[Job]:
    """Every job of a study that starts from nothing, but for targets that run on request only."""
    models = list(config.active_models())
    texts = {
        corpus for model in models for corpus in config.corpora if config.covers(model, corpus)
    }
    texts |= {corpus for task in config.tasks.values() for corpus in task.corpora or ()}
    found = [Job("prepare_model", {"model": model}) for model in models]
    found += [Job("prepare_corpus", {"corpus": name}) for name in config.corpora if name in texts]
    found += [Job("prepare_task", {"task": task}) for task in config.tasks]
    for model in models:
        for corpus in config.corpora:
            if config.covers(model, corpus):
                found += _text_jobs(config, model, corpus)
        found += [Job("evaluate_capability", {"model": model, "task": t}) for t in config.tasks]
    return found + [Job(rule) for rule in _last_rules(config)]


def _text_jobs(config: Config, model: str, corpus: str) -> Iterator[Job]:
    """The jobs of one model and corpus."""
    names = {"model": model, "corpus": corpus}
    rules = ["tokenize_corpus", "evaluate_dense", "join_perplexity"]
    dials: dict[str, Sequence[str]] = {}
    if config.studies(model, "ffn", corpus):
        rules += ["cache_activations", "correlate_size_impact"]
        rules += ["evaluate_static", "evaluate_dynamic"]
        dials["evaluate_windowed"] = config.corpus_grid(corpus).windowed.choices
    if config.state is not None and config.studies(model, "state", corpus):
        rules += ["score_state", "evaluate_state", "evaluate_state_lengths", "correlate_state"]
        dials["evaluate_state_windowed"] = config.state.windowed.choices
    yield from (Job(rule, names) for rule in rules)
    for rule, choices in dials.items():
        yield from (Job(rule, {**names, "choice": choice}) for choice in choices)


def _last_rules(config: Config) -> Iterator[str]:
    """The rules that join, test, judge and draw: one job each."""
    drawn = parameters.figure_tables(config)
    tables = {*parameters.printed_tables(config).values()}
    tables.update(*drawn.values())
    for rule, made in parameters.SIGNIFICANCE.items():
        if tables & set(made):
            yield rule
    yield "write_tables"
    yield from (f"draw_{figure}" for figure in drawn)
    if parameters.shipped_losses(config):
        yield "draw_losses_figures"


def n_static(grid: StaticGrid | DynamicGrid | StateStaticGrid, seeds: int) -> int:
    """Settings of one kind: score x seed x sparsity; only `random` has seeds."""
    return _n_scores(grid.scores, seeds) * len(grid.sparsities)


def n_windowed(dial: Dial, choice: str, seeds: int, *, dynamic: bool = False) -> int:
    """Settings of a dial under one choice.

    Args:
        dial: The dial.
        choice: oracle or causal.
        seeds: Seeds of the random score.
        dynamic: Whether the oracle at W = 1 is among them; for neurons it is the dynamic rule.
    """
    windows = [w for w in dial.windows if dynamic or (w, choice) != (1, "oracle")]
    return _n_scores(dial.scores, seeds) * len(windows) * len(dial.sparsities)


def _n_scores(scores: Sequence[str], seeds: int) -> int:
    return sum(seeds if score == "random" else 1 for score in scores)


def item_tokens(task: Task) -> int:
    """Tokens of a task's items, about."""
    words: float = PASSAGE_WORDS
    if task.kind == "built":
        words = (task.min_words + task.max_words) / 2
    elif task.kind == "recall":
        facts, distances = task.facts, task.distances
        words = 3 + 2 * sum(facts) / len(facts) + sum(distances) / len(distances)
    return round(task.items * words * TOKENS_PER_WORD)


class _Study:
    """The lengths of one model's texts, and the work of its jobs."""

    def __init__(self, config: Config, model: str, size: Size) -> None:
        self.config, self.size = config, size
        self.block = config.text.block
        self.calibration = self._whole(config.text.calibration_tokens)
        self.evaluation = self._whole(config.evaluation_tokens(model))
        self.model = model
        self.seeds = config.random_seeds

    def _whole(self, tokens: int) -> int:
        return -(-tokens // self.block) * self.block

    def run(self, tokens: int, length: int = 0, *, masked: bool = False, stepped: int = 0) -> Work:
        """`tokens` in blocks, or in passages of about `length` tokens, in full batches."""
        length = length or self.block
        batch = max(1, self.config.text.batch_tokens // length) * length
        return Work(tokens, length, batch, masked=masked, stepped=stepped)

    def gradients(self, tokens: int) -> Work:
        """The same with the loss differentiated, a quarter of a batch at a time."""
        batch = max(1, self.config.text.batch_tokens // 4 // self.block) * self.block
        return Work(tokens, self.block, batch, gradient=True)


def work(config: Config, job: Job, size: Size) -> list[Work]:
    """What passes through the model in a job; nothing for jobs that run none."""
    if job.model is None or job.rule not in _WORK:
        return []
    found = _WORK[job.rule](_Study(config, job.model, size), job.wildcards)
    return [part for part in found if part.tokens]


def cost(config: Config, job: Job, size: Size | None, kind: Kind) -> Cost:
    """What a job takes on `kind` of device.

    Args:
        config: The study.
        job: One of its jobs.
        size: Of the job's model; None for jobs without one.
        kind: Where models run.
    """
    if job.model is None or size is None:
        return Cost(memory=_BASE)
    number = _bytes_per_number(config, job.model, kind)
    weights = size.parameters * number
    if job.rule == "prepare_model":
        # A checkpoint that is converted is in memory twice, in float32 at most.
        twice = 2 * 4 * size.parameters if _is_converted(config, job.model) else 0
        return Cost(memory=_BASE + twice)
    parts = work(config, job, size)
    if not parts:
        # Weights are loaded for correlations too, where nothing passes through them.
        loads = job.rule in _WORK
        return Cost(weights=weights * loads, memory=_BASE + weights * loads)
    peak = weights + max(_activation_bytes(size, part, number, kind) for part in parts)
    return Cost(
        tokens=sum(part.tokens for part in parts),
        flops=sum(_flops(size, part) for part in parts),
        bytes=sum(part.stepped for part in parts) * size.state_numbers * _STEP_BYTES,
        weights=weights,
        memory=_BASE + peak if kind == "cpu" else _BASE_BESIDE_GPU + weights,
        gpu=_CONTEXT + peak if kind == "cuda" else 0.0,
    )


def _bytes_per_number(config: Config, model: str, kind: Kind) -> int:
    dtype = config.all_models()[model].dtype or config.dtype
    if dtype == "auto":  # some CPUs take bfloat16: the larger of the two is planned for
        return 2 if kind == "cuda" else 4
    return 4 if dtype == "float32" else 2


def _is_converted(config: Config, model: str) -> bool:
    """Whether it is a GGUF file, or a checkpoint of mamba_ssm, which names its tokenizer."""
    source = config.all_models()[model]
    file = source.file or source.path or ""
    return source.tokenizer is not None or file.lower().endswith(".gguf")


def _flops(size: Size, part: Work) -> float:
    # A token attends to half of its passage on average; scores and their sum take 2 each.
    attention = 2 * part.length * size.attention_layers * size.attention_width
    # Decay, input, read-out.
    per_token = 2 * size.multiplied + attention + 6 * size.state_numbers
    return float(part.tokens) * per_token * (_GRADIENT if part.gradient else 1)


def _activation_bytes(size: Size, part: Work, number: int, kind: Kind) -> float:
    """Bytes beside the weights at the peak of one forward (and backward) pass."""
    tokens = min(part.batch, part.tokens)
    ffn = (3 if size.gated else 2) * size.n_units
    attention, mixer = 4 * size.attention_width, 3 * size.mixer_width
    scan = _scan_bytes(size, kind)
    if part.gradient:
        kept = size.attention_layers * (attention + 10 * size.d_model)
        kept += size.ffn_layers * (ffn + size.n_units)
        kept += size.state_layers * (mixer + 3 * size.d_model)
        # The logits and their gradient, and three float32 copies within the loss.
        logits = size.vocabulary * (2 * number + 3 * 4)
        return tokens * (kept * number + size.state_layers * scan + logits)
    layer = 4 * size.d_model + max(ffn, attention, mixer)
    per_token = number * (layer + size.vocabulary) + scan
    if part.masked:
        per_token += _MASK_BYTES * size.n_units
    found = tokens * per_token
    if part.stepped:
        found += _stepping_bytes(size, part, tokens)
    return found


def _scan_bytes(size: Size, kind: Kind) -> float:
    """Bytes per token of one layer's scan in plain torch (docs/METHODS.md, section 9)."""
    if not size.state_layers:
        return 0
    copies, chunk = (2, _OWN_CHUNK) if kind == "cpu" else (6, size.chunk)
    return 4 * size.heads * (copies * chunk + 5 * size.head_dim)


def _stepping_bytes(size: Size, part: Work, tokens: int) -> float:
    """One state and its square, and per token B, C, sizes and products (METHODS, section 7)."""
    rows = tokens / part.length
    state = size.heads * size.head_dim * size.n_state
    return 4 * (
        2 * rows * state + tokens * (5 * size.groups * size.n_state + size.heads * size.head_dim)
    )


def resources(config: Config, job: Job, size: Size | None, kind: Kind) -> dict[str, int]:
    """What a rule asks a scheduler for.

    Returns:
        mem_mb and gpu_mb in units of 10^6 bytes; runtime in minutes, `MARGIN` times what is
        expected at the default speed. All 0 where the model's size is not known.
    """
    if size is None:
        return {"mem_mb": 0, "runtime": 0, "gpu_mb": 0}
    found = cost(config, job, size, kind)
    return {
        "mem_mb": math.ceil(found.memory / 1e6),
        "runtime": math.ceil(MARGIN * found.seconds(SPEEDS[kind]) / 60),
        "gpu_mb": math.ceil(found.gpu / 1e6),
    }


def _activations(study: _Study, names: Mapping[str, str]) -> Iterator[Work]:
    if study.config.needs_gradients(names["corpus"]):
        yield study.gradients(study.calibration)
    else:
        yield study.run(study.calibration)


def _correlation(study: _Study, names: Mapping[str, str]) -> Iterator[Work]:
    """Single units are left out of one row each; a dense row goes before (`keepset.correlate`)."""
    if not study.config.corpora[names["corpus"]].ablation:
        return
    ablation, rows = study.config.ablation, max(1, study.config.text.batch_tokens // study.block)
    blocks = min(-(-ablation.tokens // study.block), study.calibration // study.block)
    batches = 1 + math.ceil(ablation.units / rows)
    yield study.run(blocks * batches * rows * study.block, masked=True)


def _dense(study: _Study, _: Mapping[str, str]) -> Iterator[Work]:
    yield study.run(study.evaluation)


def _static(study: _Study, names: Mapping[str, str]) -> Iterator[Work]:
    grid = study.config.corpus_grid(names["corpus"]).static
    yield study.run(n_static(grid, study.seeds) * study.evaluation)


def _dynamic(study: _Study, names: Mapping[str, str]) -> Iterator[Work]:
    grid = study.config.corpus_grid(names["corpus"]).dynamic
    yield study.run(n_static(grid, study.seeds) * study.evaluation, masked=True)


def _windowed(study: _Study, names: Mapping[str, str]) -> Iterator[Work]:
    dial, choice = study.config.corpus_grid(names["corpus"]).windowed, names["choice"]
    yield study.run(n_windowed(dial, choice, study.seeds) * study.evaluation, masked=True)
    if choice == "causal":
        yield study.run(_n_scores(dial.scores, study.seeds) * study.block)


def _capability(study: _Study, names: Mapping[str, str]) -> Iterator[Work]:
    config, corpus = study.config, study.config.capability.corpus
    task = config.tasks[names["task"]]
    tokens, length = item_tokens(task), max(1, item_tokens(task) // task.items)
    yield study.run(tokens, length)
    if config.studies(study.model, "ffn", corpus):
        choices = len(config.corpus_grid(corpus).windowed.choices)
        yield study.run(tokens * (2 + choices), length, masked=True)
    if config.state is not None and config.studies(study.model, "state", corpus):
        yield study.run(tokens * n_static(config.state.capability, _task_seeds(study)), length)
        dial = config.state.windowed
        steps = [
            _steps(access, choice)
            for access in dial.access
            for choice in dial.choices
            for window in dict.fromkeys((1, config.state.capability_window))
            if (window, choice) != (1, "causal")
        ]
        yield study.run(tokens * len(steps), length, stepped=tokens * sum(steps))


def _task_seeds(study: _Study) -> int:
    """Seeds of the random score in what tasks are run under, for states."""
    return min(study.seeds, _state(study).capability.random_seeds or study.seeds)


def _steps(access: str, choice: str) -> int:
    """How often a windowed rule runs a state token by token (`keepset.state.hold`)."""
    return 1 if access == "read" else 2 + (choice == "causal")


def _score_state(study: _Study, _: Mapping[str, str]) -> Iterator[Work]:
    """A pass for the sums, one for Taylor, and those in order of layers: `keepset.state.score`."""
    state, size = study.config.state, study.size
    assert state is not None
    tokens, batch_tokens = study.calibration, study.config.text.batch_tokens
    batch = max(batch_tokens, min(tokens, 16 * batch_tokens))
    passes = len({_IN_ORDER[s] for s in state.static.scores if s in _IN_ORDER})
    passes *= len(state.static.sparsities)
    # Text that is more than one batch takes a pass per layer, up to it; a layer is scored once.
    depth = 1.0 if tokens <= batch else (size.state_layers + 1) / 2
    yield Work(tokens, study.block, batch, stepped=tokens)
    yield Work(round(passes * tokens * depth), study.block, batch, stepped=passes * tokens)
    if "taylor" in state.static.scores:
        yield study.gradients(tokens)
    # What scoring takes in memory is measured on one block and on two.
    small = 3 * study.block
    yield Work(2 * small, study.block, 2 * study.block, stepped=small)
    yield Work(small, study.block, 2 * study.block, gradient=True)


def _evaluate_state(study: _Study, _: Mapping[str, str]) -> Iterator[Work]:
    state = _state(study)
    yield study.run(n_static(state.static, study.seeds) * study.evaluation)


def _state_windowed(study: _Study, names: Mapping[str, str]) -> Iterator[Work]:
    dial, choice = _state(study).windowed, names["choice"]
    rules = n_windowed(dial, choice, study.seeds, dynamic=True)
    for access in dial.access:
        tokens, lead_ins = rules * study.evaluation, rules * study.block
        yield study.run(tokens, stepped=tokens * _steps(access, choice))
        if choice == "causal":
            yield study.run(lead_ins, stepped=lead_ins)


def _lengths(study: _Study, _: Mapping[str, str]) -> Iterator[Work]:
    state = _state(study)
    wanted = state.length_sparsities or state.capability.sparsities
    rules = 1 + _n_scores(state.capability.scores, _task_seeds(study)) * len(wanted)
    for factor in state.lengths:
        length = factor * study.block
        if not study.size.positions or length <= study.size.positions:
            yield study.run(rules * (study.evaluation // length) * length, length)


def _prune(study: _Study, _: Mapping[str, str]) -> Iterator[Work]:
    """Dense, masked, and cut."""
    yield study.run(3 * study.evaluation)


def _state(study: _Study) -> State:
    assert study.config.state is not None
    return study.config.state


_WORK = {
    "cache_activations": _activations,
    "correlate_size_impact": _correlation,
    "evaluate_dense": _dense,
    "evaluate_static": _static,
    "evaluate_dynamic": _dynamic,
    "evaluate_windowed": _windowed,
    "evaluate_capability": _capability,
    "score_state": _score_state,
    "evaluate_state": _evaluate_state,
    "evaluate_state_windowed": _state_windowed,
    "evaluate_state_lengths": _lengths,
    "prune_state": _prune,
}
