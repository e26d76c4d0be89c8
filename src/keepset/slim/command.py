"""The command `keepset slim`. Nothing heavy is imported before it runs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keepset.errors import ConfigError

if TYPE_CHECKING:
    from keepset.settings import Model
    from keepset.text import Encoded


def add(commands: Any) -> argparse.ArgumentParser:
    """Enter the command; its model options are added by the caller."""
    command: argparse.ArgumentParser = commands.add_parser(
        "slim",
        help="find what can be left out of a model within a budget, and write a slimmer model",
        description="Finds the recipe that saves most while held-out perplexity (or accuracy) stays"
        " within a budget, with confidence; writes recipe.yaml, a checkpoint and report.html. A run"
        " that was stopped goes on where it was. See docs/RUNNING.md.",
    )
    command.add_argument("model", help="folder, .gguf file, hub id, or PACKAGE:FILE")
    command.add_argument(
        "--text",
        required=True,
        help="text to find the recipe on and to report on, as in perplexity",
    )
    command.add_argument("--field", default="text", help="field with the text, in files of rows")
    command.add_argument(
        "--budget", help="allowed rise of perplexity, e.g. 3%% (the default without --task)"
    )
    command.add_argument("--task", help="JSON lines with context and target: accuracy is held, too")
    command.add_argument(
        "--points", type=float, help="points of accuracy that may be lost in the task (2)"
    )
    command.add_argument("--save", default="speed", choices=["speed", "memory", "size"])
    command.add_argument("--out", help="folder to write; slim-NAME if left out")
    command.add_argument("--confidence", type=float, default=0.95, help="of the bounds, one-sided")
    command.add_argument("--block", type=int, default=128, help="tokens per block")
    command.add_argument("--calibration-tokens", type=int, default=2048)
    command.add_argument(
        "--max-tokens", type=int, default=6144, help="of the text, calibration included"
    )
    command.add_argument("--tokens", type=int, default=48, help="decoded to measure speed")
    command.add_argument(
        "--no-comparisons",
        action="store_true",
        help="do not measure the papers' ways at the same bytes",
    )
    command.add_argument("--batch-tokens", type=int, default=1024)
    command.add_argument("--device", default="auto")
    command.add_argument("--dtype", default="auto")
    command.add_argument("--threads", type=int, default=None, help="CPU threads")
    least = {"block": 8, "calibration_tokens": 1, "max_tokens": 1, "tokens": 2, "threads": 1}
    command.set_defaults(least={**least, "batch_tokens": 1})
    return command


def run(arguments: argparse.Namespace, source: Model) -> int:
    """Run it: 0, or 130 where it was stopped.

    Args:
        arguments: Those of `add`.
        source: Where the model is.
    """
    import tempfile

    from keepset import models, settings, text
    from keepset.run.job import limit_threads
    from keepset.slim.settings import Budget, parse_share
    from keepset.slim.slimming import Model as Slimmed, slim

    points = arguments.points
    if arguments.task is None and points is not None:
        raise ConfigError("--points are of a task: give --task")
    if arguments.task is not None and points is None:
        points = 2.0
    default = None if arguments.task else "3%"
    share = arguments.budget or default
    rise = None if share is None else parse_share(share)
    budget = Budget(rise, points, arguments.confidence, arguments.save)
    name = Path(arguments.model.partition(":")[0]).stem
    folder = Path(arguments.out or f"slim-{name}")
    limit_threads(arguments.threads)
    documents = text.read_documents(
        settings.TextSource(path=arguments.text, field=arguments.field), arguments.text
    )
    device = models.resolve_device(arguments.device)
    with tempfile.TemporaryDirectory() as temporary:
        info = models.prepare(name, source, temporary)
        dtype = models.resolve_dtype(arguments.dtype, device)
        network, tokenizer = models.load(info, device, dtype)
    items = _items(arguments.task, tokenizer, info["bos"])
    texts = _texts(arguments, documents, tokenizer, items)
    print(f"{name} ({dtype}, {device}): {budget.words()}, saving {arguments.save}", flush=True)
    try:
        with _alone_in(folder):
            slim(
                Slimmed(network, tokenizer, name, info["bos"], source.revision),
                texts,
                budget,
                folder,
                say=lambda line: print(line, flush=True),
                comparisons=not arguments.no_comparisons,
                tokens=arguments.tokens,
                batch_tokens=arguments.batch_tokens,
            )
    except KeyboardInterrupt:
        print(f"\nstopped; what was measured is in {folder}: the same command goes on from there")
        return 130
    return 0


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Make a folder, and keep other runs of the command out of it.

    Raises:
        ConfigError: it cannot be written, or another run writes it.
    """
    from keepset.files.lock import taken

    path = folder / "journal" / "lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise ConfigError(
            f"--out {folder}: this folder cannot be written: {error.strerror}; give another one"
        ) from None
    with file:
        if taken(file.fileno()):
            raise ConfigError(
                f"--out {folder}: another `keepset slim` works there: wait for it, or give another"
                " folder"
            )
        yield


def _items(path: str | None, tokenizer: Any, bos: int | None) -> list[Encoded]:
    from keepset import settings, text

    if path is None:
        return []
    task = settings.Task(kind="jsonl", source=settings.TextSource(path=path), items=10**6)
    return text.encode_items(text.load_items(path, task), tokenizer, bos)


def _texts(
    arguments: argparse.Namespace,
    documents: Sequence[str],
    tokenizer: Any,
    items: Sequence[Encoded],
) -> Any:
    """Blocks of the documents in turn, so that many are read."""
    import torch

    from keepset import text
    from keepset.errors import TextError
    from keepset.slim.texts import split_texts

    wanted = arguments.max_tokens // arguments.block
    if not wanted:
        raise ConfigError(
            f"--max-tokens {arguments.max_tokens}: this is less than one --block of"
            f" {arguments.block} tokens"
        )
    queues = []
    for document in documents:
        try:
            queues.append(list(text.cut_blocks([document], tokenizer, arguments.block)))
        except TextError:
            continue  # it is shorter than a block
        if len(queues) >= wanted:
            break
    if not queues:
        queues = [
            list(text.cut_blocks(list(documents), tokenizer, arguments.block, arguments.text))
        ]
    taken: list[tuple[int, torch.Tensor]] = []
    for turn in range(max(map(len, queues))):
        for number, queue in enumerate(queues):
            if turn < len(queue) and len(taken) < wanted:
                taken.append((number, queue[turn]))
    taken.sort(key=lambda one: one[0])
    blocks = torch.stack([block for _, block in taken])
    numbers = torch.tensor([number for number, _ in taken])
    return split_texts(blocks, numbers, arguments.calibration_tokens, items, arguments.text)
