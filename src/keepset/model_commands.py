"""The commands that run a model: `keepset perplexity` and `keepset generate`."""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from keepset import settings
from keepset.errors import ConfigError
from keepset.rules.rule import Rule
from keepset.rules.scores import NEURON_SCORES, decoding_names, token_names
from keepset.settings.base import TextFormat

_PERPLEXITY_SCORES = [
    name for name in token_names(NEURON_SCORES) if not NEURON_SCORES[name].centred
]
"""Scores that need no calibration text."""


def add_perplexity(commands: Any) -> None:
    """Add the command `perplexity`."""
    perplexity = commands.add_parser(
        "perplexity",
        help="perplexity of a model on a text file, dense or under a keep rule",
        description="The whole file, cut into consecutive blocks, each after the model's BOS token"
        " where it has one; without one, the first token of a block is not predicted. A last,"
        " shorter piece is left out.",
    )
    perplexity.add_argument("model", help="folder, .gguf file, hub id, or PACKAGE:FILE")
    perplexity.add_argument(
        "text",
        help="a file of text, JSON, CSV, Parquet or Arrow, compressed or not; see RUNNING.md",
    )
    perplexity.add_argument("--field", default="text", help="field with the text, in files of rows")
    perplexity.add_argument("--format", default="auto", choices=get_args(TextFormat))
    perplexity.add_argument("--split", help="split of a dataset that was saved to disk")
    perplexity.add_argument("--block", type=int, default=256, help="tokens per block")
    perplexity.add_argument("--sparsity", type=float, help="share of units left out; dense without")
    perplexity.add_argument("--window", help="tokens a keep set is held (1), or sequence")
    perplexity.add_argument("--score", help=f"{_either(_PERPLEXITY_SCORES)} (magnitude)")
    add_model(perplexity)
    perplexity.add_argument("--device", default="auto")
    perplexity.add_argument("--dtype", default="auto")
    perplexity.add_argument("--batch-tokens", type=int, default=1024)
    perplexity.add_argument("--threads", type=int, default=None, help="CPU threads")
    perplexity.set_defaults(run=_perplexity, least={"block": 2, "batch_tokens": 1, "threads": 1})


def add_generate(commands: Any) -> None:
    """Add the command `generate`."""
    generate = commands.add_parser(
        "generate",
        help="continue a prompt with what a keep rule leaves out not computed",
        description="Prints the rule's greedy text, and its speed and dense: docs/BENCHMARKS.md.",
    )
    generate.add_argument("--model", required=True, help="folder, .gguf, hub id, or PACKAGE:FILE")
    add_model(generate)
    generate.add_argument("--prompt", required=True)
    generate.add_argument(
        "--keep",
        help="dynamic:SPARSITY, windowed:TOKENS:SPARSITY (causal) or static:SPARSITY",
    )
    generate.add_argument(
        "--recipe", help="recipe.yaml of `keepset slim`, or its folder, in the place of --keep"
    )
    generate.add_argument("--tokens", type=int, default=64, help="new tokens, at most")
    generate.add_argument(
        "--score", default="magnitude", help=_either(decoding_names(NEURON_SCORES))
    )
    generate.add_argument(
        "--activations", help="the model's activations.safetensors, for a static rule"
    )
    generate.add_argument(
        "--check", action="store_true", help="fail unless every token is the masked reference's"
    )
    generate.add_argument(
        "--kernels",
        default="auto",
        help="which implementations may run: auto (what is there and fastest), torch, numba or"
        " triton",
    )
    generate.add_argument("--path", help="force a path, such as numba, bag, masked, held")
    generate.add_argument("--device", default="auto")
    generate.add_argument("--dtype", default="auto")
    generate.add_argument("--threads", type=int, default=None, help="CPU threads")
    generate.set_defaults(run=_generate, least={"tokens": 1, "threads": 1})


def add_model(command: argparse.ArgumentParser) -> None:
    """What a command says of its model beside where it is."""
    command.add_argument(
        "--tokenizer", help="folder or hub id, for a checkpoint without tokenizer files"
    )
    command.add_argument(
        "--bos",
        default="auto",
        choices=["auto", "true", "false"],
        help="whether a BOS token stands before every text; auto: where the tokenizer puts one,"
        " and for Gemma",
    )


def _either(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def _perplexity(arguments: argparse.Namespace) -> None:
    # torch and transformers take seconds to import; the other commands do without.
    from keepset import models, text
    from keepset.kinds import find_sites
    from keepset.measure.runner import Runner
    from keepset.rules.rule import describe
    from keepset.run.job import limit_threads

    rule = None
    if arguments.sparsity is not None:
        rule = _rule(arguments.score or "magnitude", arguments.sparsity, arguments.window or "1")
        if isinstance(rule.window, int) and rule.window > arguments.block:
            raise ConfigError(f"--window {rule.window} exceeds --block {arguments.block}")
    elif arguments.score is not None or arguments.window is not None:
        raise ConfigError("--score and --window are of a rule: give its --sparsity")
    limit_threads(arguments.threads)
    source = settings.TextSource(
        path=arguments.text,
        field=arguments.field,
        format=arguments.format,
        split=arguments.split,
    )
    documents = text.read_documents(source, arguments.text)
    device = models.resolve_device(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        info = models.prepare("model", model_source(arguments), folder)
        model, tokenizer = models.load(info, device, models.resolve_dtype(arguments.dtype, device))
    blocks = text.cut_blocks(documents, tokenizer, arguments.block, arguments.text)
    runner = Runner(model, find_sites(model), batch_tokens=arguments.batch_tokens, bos=info["bos"])
    nll = runner.block_nll(blocks, rule)
    predicted = runner.n_predicted(blocks)
    mean = float(nll.sum()) / predicted
    print(
        f"{describe(rule)}: token perplexity {math.exp(mean):.6g}"
        f" ({mean:.6f} nats per token, {predicted} predicted tokens,"
        f" {blocks.shape[0]} blocks of {blocks.shape[1]})"
    )


def _generate(arguments: argparse.Namespace) -> None:
    from keepset import models
    from keepset.decode import generate, messages
    from keepset.kernels.clock import clock_name
    from keepset.kernels.selection import Selection
    from keepset.models.anywhere import RECIPE
    from keepset.rules.rule import describe
    from keepset.run.job import limit_threads

    rule: Any = None
    if arguments.recipe is None and (Path(arguments.model) / RECIPE).is_file():
        arguments.recipe = arguments.model if arguments.keep is None else None
    if (arguments.recipe is None) == (arguments.keep is None):
        raise ConfigError("give --keep, a rule, or --recipe, a recipe.yaml or its folder")
    if arguments.recipe is not None:
        rule = settings.read_recipe(arguments.recipe)
    else:
        rule = generate.parse_keep(arguments.keep, arguments.score)
    limit_threads(arguments.threads)
    device = models.resolve_device(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        info = models.prepare("model", model_source(arguments), folder)
        moments = None
        if arguments.activations is not None:
            moments = generate.read_moments(arguments.activations, info["fingerprint"], info["bos"])
        model, tokenizer = models.load(info, device, models.resolve_dtype(arguments.dtype, device))
        # Some tokenizers also put a token behind a text, which would end it.
        encoded = tokenizer(arguments.prompt, add_special_tokens=False, return_tensors="pt")
        ids = encoded.input_ids.long().to(device)
        forced = [] if arguments.path is None else [arguments.path]
        selection = Selection(arguments.kernels, forced=forced)
        shared: Any = {"moments": moments, "kernels": selection, "bos": info["bos"]}
        stop = generate.stops(model)
        dense, sparse = generate.compare(model, ids, arguments.tokens, rule, stop=stop, **shared)
        if (
            arguments.path is not None
            and len(sparse.steps_s)
            and arguments.path not in sparse.paths
        ):
            ran = ", ".join(sparse.paths) or "cut weights"
            raise ConfigError(f"--path {arguments.path} did not run; what ran: {ran}")
        print(f"{arguments.prompt}{tokenizer.decode(sparse.tokens)}\n")
        for name, run in (("dense", dense), (describe(rule), sparse)):
            speed = f"{run.rate:.2f} tokens/s of {clock_name()}, " if len(run.steps_s) else ""
            print(f"{name}: {speed}{len(run.steps_s)} decoded")
        if len(dense.steps_s) and len(sparse.steps_s):
            print(f"speed-up {sparse.rate / dense.rate:.3f}")
        print(messages.paths_text(sparse, selection))
        if arguments.check:
            wrong = generate.disagreement(model, ids, sparse.tokens, rule, **shared)
            messages.refuse_disagreement(wrong)
            print("every token is the masked reference's")


def _rule(score: str, sparsity: float, window: str) -> Rule:
    held: Any = int(window) if window.isdecimal() else window
    rule = Rule(score, sparsity, held)
    if rule.window == "corpus":
        raise ConfigError("--window corpus needs calibration text: run the workflow")
    if score in NEURON_SCORES and NEURON_SCORES[score].centred:
        raise ConfigError(f"--score {score} needs calibration text: run the workflow")
    return rule


def model_source(arguments: argparse.Namespace) -> settings.Model:
    """The model that the options of `add_model` name."""
    from keepset.models.anywhere import source_of

    bos: Literal["auto"] | bool = "auto" if arguments.bos == "auto" else arguments.bos == "true"
    return source_of(arguments.model, tokenizer=arguments.tokenizer, bos=bos)
