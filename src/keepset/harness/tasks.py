"""Tasks of EleutherAI's evaluation harness: their requests, and which items were answered right.

Nothing here imports torch, and lm_eval is imported where a task is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from keepset.errors import ConfigError, TextError
from keepset.files.store import replacing
from keepset.harness import INSTALL
from keepset.settings import Task

SHOTS_SEED = 1234
"""Seed of the examples before items: the harness's own, so that prompts are those of `lm_eval`."""
_RIGHT_OR_WRONG = ("acc", "exact_match")
# An answer of each kind of request, to see what a task makes of it.
_ANSWERS: dict[str, Any] = {"loglikelihood": (-1.0, False), "generate_until": ""}


class HarnessTask:
    """A task of the harness, with the requests of its items.

    Attributes:
        requests: The harness's requests (`lm_eval.api.instance.Instance`), item by item: one, or in
            multiple choice one for each choice.
    """

    def __init__(self, label: str, task: Any, settings: Task) -> None:
        """Build the requests of the first `settings.items` items.

        Args:
            label: The configuration key, for messages.
            task: A task of the harness, with its data.
            settings: Of kind "harness".

        Raises:
            TextError: the task is of images or sound, runs code of the model, or has no metric that
                says of an item whether it is right; or its requests cannot be built.
        """
        self._label, self._task = label, task
        if getattr(task, "MULTIMODAL", False):
            raise TextError(f"{label}: {settings.name} needs images or sound; take a task of text")
        if getattr(task, "UNSAFE_CODE", False):
            raise TextError(
                f"{label}: {settings.name} runs Python code that the model writes; keepset does not"
            )
        self._metric, self._filter = self._graded_by(settings.metric)
        own = task.get_config("num_fewshot")
        if settings.shots and own == 0:
            raise TextError(f"{label}.shots: {settings.name} takes no examples; leave shots out")
        task.set_config("num_fewshot", (own or 0) if settings.shots is None else settings.shots)
        task.set_fewshot_seed(seed=SHOTS_SEED)
        try:
            task.build_all_requests(limit=settings.items)
        except Exception as error:  # templates and functions of the task run here
            raise TextError(f"{label}: the requests cannot be built: {error}") from error
        self.requests: list[Any] = list(task.instances)
        kinds = {request.request_type for request in self.requests}
        if len(kinds) > 1 or not kinds <= _ANSWERS.keys():
            raise TextError(f"{label}: {settings.name} mixes requests of {', '.join(kinds)}")
        self.request_type: str = kinds.pop()
        self.graded([_ANSWERS[self.request_type]] * len(self.requests))

    def _graded_by(self, wanted: str | None) -> tuple[str, str]:
        """The metric and the filter of answers that `metric` of the configuration names."""
        known = list(self._task.aggregation())
        filters = [one.name for one in self._task._filters]
        metric, comma, named = (wanted or "").partition(",")
        if wanted is None:
            metric = next((name for name in _RIGHT_OR_WRONG if name in known), "")
        if metric not in known or self._task.OUTPUT_TYPE == "loglikelihood_rolling":
            what = f"has no metric {metric}" if metric else "does not say of an item if it is right"
            raise TextError(
                f"{self._label}.metric: the task {what}; its metrics are {', '.join(known)}: name"
                " one that is 0 or 1 for every item, or measure perplexity on a corpus"
            )
        if comma and named not in filters:
            raise TextError(
                f"{self._label}.metric: no filter {named}; its filters are {', '.join(filters)}"
            )
        return metric, named if comma else filters[0]

    def _items(self) -> Iterator[list[Any]]:
        """The requests of each item, in order."""
        for _, requests in groupby(self.requests, key=lambda request: request.doc_id):
            yield sorted(requests, key=lambda request: request.idx)

    @property
    def texts(self) -> list[str]:
        """The text of every request, without what generation is told."""
        return ["".join(filter(_is_text, request.args)) for request in self.requests]

    def rows(self) -> list[str]:
        """The items as lines of JSON: what the model is asked."""
        return [
            json.dumps(
                {"item": item, "requests": [list(request.args) for request in requests]},
                ensure_ascii=False,
                default=str,
            )
            for item, requests in enumerate(self._items())
        ]

    def save(self, path: str | Path) -> None:
        """Write `rows`, atomically."""
        with replacing(path) as temporary:
            temporary.write_text("".join(f"{row}\n" for row in self.rows()), encoding="utf-8")

    def check(self, path: str | Path) -> None:
        """Make sure that the requests are those that were saved.

        Raises:
            TextError: they are not, because the task or its data changed.
        """
        if Path(path).read_text(encoding="utf-8").split("\n")[:-1] != self.rows():
            raise TextError(
                f"{self._label}: the task on this machine does not give the requests of {path}, as"
                " its data or the harness changed since; run the rule prepare_harness again"
            )

    def answers(self, lm: Any) -> list[Any]:
        """What a model of the harness answers to every request."""
        answers: list[Any] = getattr(lm, self.request_type)(self.requests, disable_tqdm=True)
        return answers

    def graded(self, answers: Sequence[Any]) -> pd.DataFrame:
        """Grade answers to all requests, as the harness does.

        Returns:
            One row per item, in order: correct (bool), and logprob (nats), the log-probability of
            the target; NaN in multiple choice and for generated text.

        Raises:
            TextError: an item's metric is not 0 or 1.
        """
        for request, answer in zip(self.requests, answers, strict=True):
            request.resps = [answer] * request.repeats
        self._task.apply_filters()
        one_target = self._task.OUTPUT_TYPE == "loglikelihood"
        rows = [
            (
                self._is_right(item, requests),
                requests[0].resps[0][0] if one_target else float("nan"),
            )
            for item, requests in enumerate(self._items())
        ]
        table = pd.DataFrame(rows, columns=["correct", "logprob"])
        return table.astype({"correct": bool, "logprob": "float64"})

    def _is_right(self, item: int, requests: Sequence[Any]) -> bool:
        answers = [request.filtered_resps[self._filter] for request in requests]
        try:
            value = self._task.process_results(requests[0].doc, answers)[self._metric]
        except Exception as error:  # a function of the task
            raise TextError(f"{self._label}: item {item} cannot be graded: {error}") from error
        if not isinstance(value, tuple | list | dict) and value in (0, 1):
            return bool(value)
        raise TextError(
            f"{self._label}.metric: {self._metric} of item {item} is {value}, neither right (1) nor"
            " wrong (0); name another metric of the task"
        )


def load(name: str, settings: Task) -> HarnessTask:
    """Load a task of kind "harness", from the data on this machine or, where allowed, the hub.

    Python functions that the task's YAML file names are run.

    Args:
        name: The task's key in `tasks`.
        settings: Its settings.

    Raises:
        ConfigError: lm-eval is not installed.
        TextError: the harness has no such task, or it is a group of tasks; its data cannot be had;
            or see `HarnessTask`.
    """
    label = f"tasks.{name}"
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(
            f"{label}: kind: harness needs lm-eval ({error}); run `{INSTALL}`"
        ) from None
    wanted, folder = str(settings.name), None
    if settings.path is not None:
        path = Path(settings.path).expanduser()
        if not path.exists():
            raise TextError(f"{label}.path: {path} does not exist; give a YAML file or a folder")
        folder = path if path.is_dir() else path.parent
    manager = TaskManager(include_path=folder, include_defaults=folder is None)
    if wanted not in manager.all_subtasks:
        raise TextError(f"{label}.name: {_unknown(manager, wanted, settings.path)}")
    try:
        (task,) = manager.load(wanted)["tasks"].values()
    except Exception as error:  # of the hub, of `datasets`, or of a function of the task
        raise TextError(
            f"{label}: the harness cannot load {wanted}: {type(error).__name__}: {error}\nIf it is"
            " the data that is missing: run `snakemake download` on a machine with a network, with"
            " the same HF_HOME; if it is a package, install it."
        ) from error
    return HarnessTask(label, task, settings)


def _unknown(manager: Any, wanted: str, path: str | None) -> str:
    """Why a name is not that of one task, in words."""
    where = "the harness" if path is None else path
    if wanted in manager.all_tasks:
        tasks = [name for name in manager.all_subtasks if name.startswith(f"{wanted}_")]
        some = f", such as {', '.join(tasks[:3])}" if tasks else ""
        return f"{wanted} is a group of tasks; give an entry to each of its tasks{some}"
    near = get_close_matches(wanted, manager.all_subtasks, 3)
    hint = f"; do you mean {', '.join(near)}?" if near else "; `keepset harness ls tasks` lists all"
    return f"{where} has no task {wanted}{hint}"


def _is_text(argument: Any) -> bool:
    return isinstance(argument, str)
