"""What a kind of site does. One module per kind; `keepset.rules.kinds` lists them as data.

Nothing outside a kind's module asks for a kind by its name: the runner, the steps and the tables
ask `of(rule.site)`, or go through `KINDS`.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from keepset.errors import ConfigError
from keepset.hold.windows import Windowed
from keepset.kernels.selection import Selection
from keepset.rules.kinds import KINDS
from keepset.rules.masks import KeepSets, Masks
from keepset.rules.rule import Rule
from keepset.sites import AnySite


class SiteKind(Protocol):
    """What the module of a kind defines. Its functions take the sites that its `find` returned."""

    def find(self, model: PreTrainedModel) -> Sequence[AnySite]:
        """The sites in `model`, in order of execution; none where it has none of this kind.

        Raises:
            ModelError: the model has such sites, but they cannot be read.
        """

    def hold_static(
        self,
        model: nn.Module,
        sites: Sequence[Any],
        masks: Masks,
        selection: Selection | None = None,
    ) -> AbstractContextManager[None]:
        """Hold one keep set, from each row's first token or from its second.

        What is masked holds from the second, as the first is the attention sink; what is cut for
        good holds from the first. `selection` says which implementations may run. Everything is
        put back on exit.
        """

    def hold_windows(
        self,
        model: nn.Module,
        sites: Sequence[Any],
        rule: Rule,
        **options: Any,
    ) -> AbstractContextManager[Windowed]:
        """Hold a windowed or dynamic rule; `options` are those of `Windowed`.

        A kind whose grid has a part `dynamic` also takes `noise`, as
        `keepset.hold.inputs.Windows` does.

        Raises:
            ConfigError: the rule's score cannot be taken per token, or its access is unknown.
        """

    def lead_in_scores(
        self,
        model: nn.Module,
        sites: Sequence[Any],
        rules: Sequence[Rule],
        widths: Sequence[int],
        lead_in: Tensor,
        **options: Any,
    ) -> list[dict[str, Tensor]]:
        """Score the end of the text before each of some rows, run dense once, for causal rules.

        Args:
            model: The model, or its body: no logits are needed.
            sites: The sites to score.
            rules: Causal rules; they give the scores and their seeds.
            widths: For each rule, how many of a row's last tokens are scored; the BOS token is
                not among them.
            lead_in: (rows, tokens) int64, with a BOS token where the model has one.
            options: What `hold_windows` needs for the scores, such as centres.

        Returns:
            For each rule, site key -> mean score per unit, (rows, ...) float32.
        """

    def sets_owner(self, owner: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        """What the file of static keep sets belongs to.

        Args:
            owner: Model, text and dtype.
            settings: What the sets were chosen with; the kind takes what matters to it.
        """

    def load_sets(self, path: Path, owner: Mapping[str, Any]) -> KeepSets:
        """The static keep sets in a file (`Kind.sets`).

        Raises:
            CacheError: the file is damaged, or belongs to something else.
        """

    def cut(self, model: PreTrainedModel, masks: Masks) -> None:
        """Cut the units that are not kept out of the weights, in place.

        Raises:
            ModelError: the masks do not fit the model, or units of this kind cannot be cut.
        """


def of(name: str) -> SiteKind:
    """The module of a kind.

    Raises:
        ConfigError: no kind has this name.
    """
    if name not in KINDS:
        raise ConfigError(f"unknown kind of site {name!r}; known: {', '.join(KINDS)}")
    return cast(SiteKind, import_module(KINDS[name].module))


def find_sites(model: PreTrainedModel, kinds: Iterable[str] | None = None) -> list[Any]:
    """The sites of a model, kind by kind, each kind's in order of execution.

    Args:
        model: A causal language model; its weights are not read.
        kinds: Names of kinds; all kinds if left out.

    Raises:
        ModelError: the model's family is not known, or its modules do not fit.

    Example:
        >>> from keepset import find_sites, load
        >>> model, _ = load("specimens/hybrid", dtype="float32")
        >>> [site.key for site in find_sites(model, ["ffn", "state"])]
        ['ffn.001', 'ffn.003', 'state.000', 'state.001', 'state.002', 'state.003']
        >>> find_sites(model, ["ffn"])[0].n_units
        312
    """
    return [site for name in (KINDS if kinds is None else kinds) for site in of(name).find(model)]


def load_sets(
    files: Mapping[str, str | Path],
    owner: Mapping[str, Any],
    chosen: Mapping[str, Mapping[str, Any]],
) -> KeepSets:
    """The static keep sets of several kinds as one.

    Args:
        files: Kind -> its file; see `SiteKind.load_sets`.
        owner: Model, text and dtype.
        chosen: Kind -> what its sets must have been chosen with; see `SiteKind.sets_owner`.
    """
    sets = []
    for name, path in files.items():
        kind = of(name)
        sets.append(kind.load_sets(Path(path), kind.sets_owner(owner, chosen[name])))
    return ChainMap(*sets)  # type: ignore[arg-type]  # it is only read
