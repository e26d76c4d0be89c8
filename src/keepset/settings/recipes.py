"""recipe.yaml: a recipe as a file that people read, change and use again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from keepset.errors import ConfigError
from keepset.rules.recipe import Recipe
from keepset.rules.rule import Rule
from keepset.settings.base import SiteKind, Sparsity, Strict

VERSION = 1
"""Of the format; another version's file is refused."""

_HEAD = """\
# A recipe of keepset: what is left out of each part of one model. `keepset generate --recipe FILE`
# and `keepset.sparse_decoding(model, read_recipe(FILE))` run it.
"""


_BY_SITE = ("sparsity", "threshold", "centre", "kept")


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, where YAML takes the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As in YAML, from keys that differ."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    message = f"{key.value} stands twice"
                    raise yaml.MarkedYAMLError(problem=message, problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Owner(Strict):
    name: str = ""
    model_type: str = ""
    weights: str = ""
    revision: str | None = None


class _Rule(Strict):
    """One rule, and the sites that it holds on: each leaves out a share of its own."""

    site: SiteKind
    score: str
    window: Literal[1, "corpus"]
    access: str = "none"
    seed: int = 0
    sparsity: dict[str, Sparsity] = Field(min_length=1)
    threshold: dict[str, float] = Field(default_factory=dict)
    centre: dict[str, float] = Field(default_factory=dict)
    kept: dict[str, list[int] | list[list[int]]] = Field(default_factory=dict)


class _File(Strict):
    keepset_recipe: Literal[1]
    model: _Owner = _Owner()
    bos: int | None = None
    cut: str | None = None
    rules: list[_Rule]
    found: dict[str, Any] = Field(default_factory=dict)


def recipe_name(path: str | Path) -> str:
    """What tables call the recipe of a file, or of a folder."""
    return Path(path).name.removesuffix(".yaml")


def read_recipe(path: str | Path) -> Recipe:
    """Read recipe.yaml, or the one in a folder.

    Raises:
        ConfigError: there is none, it is no recipe, or one of another version; the message names
            the file and the key.

    Example:
        >>> import tempfile
        >>> from keepset import Recipe, Rule, read_recipe, write_recipe
        >>> recipe = Recipe({"ffn.000": Rule("magnitude", 0.5, 1)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_recipe(recipe, f"{folder}/recipe.yaml")
        ...     read_recipe(folder) == recipe
        True
    """
    path = Path(path)
    path = path / "recipe.yaml" if path.is_dir() else path
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: this recipe cannot be read: {error}") from None
    if not isinstance(content, dict) or "keepset_recipe" not in content:
        raise ConfigError(f"{path}: no recipe: it has no key keepset_recipe")
    if content["keepset_recipe"] != VERSION:
        raise ConfigError(
            f"{path}: keepset_recipe: version {content['keepset_recipe']} of the format; this"
            f" keepset reads version {VERSION}"
        )
    try:
        return _recipe(_File.model_validate(content))
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise ConfigError("\n".join([f"{path}: invalid recipe", *lines])) from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _recipe(content: _File) -> Recipe:
    rules: dict[str, Rule] = {}
    for number, part in enumerate(content.rules):
        for name in _BY_SITE:
            if stray := [key for key in getattr(part, name) if key not in part.sparsity]:
                raise ConfigError(f"rules.{number}.{name}: {stray[0]} has no sparsity in this rule")
        for key, sparsity in part.sparsity.items():
            if key in rules:
                raise ConfigError(f"rules: {key} has two rules")
            rules[key] = Rule(
                part.score, sparsity, part.window, seed=part.seed, site=part.site,
                access=part.access,
            )  # fmt: skip
    return Recipe(
        rules,
        {key: least for part in content.rules for key, least in part.threshold.items()},
        {key: kept for part in content.rules for key, kept in part.kept.items()},
        content.model.model_dump(exclude_defaults=True),
        content.cut,
        content.bos,
        content.found,
        {key: centre for part in content.rules for key, centre in part.centre.items()},
    )


def write_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write recipe.yaml, whole or not at all.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from keepset import Recipe, Rule, write_recipe
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_recipe(Recipe({"ffn.000": Rule("magnitude", 0.5, 1)}), f"{folder}/r.yaml")
        ...     "ffn.000: 0.5" in Path(f"{folder}/r.yaml").read_text()
        True
    """
    from keepset.files import store  # it imports pandas, and the configuration is read without

    parts: dict[tuple[Any, ...], dict[str, Any]] = {}
    for key, rule in recipe.rules.items():
        alike = (rule.site, rule.score, rule.window, rule.access, rule.seed)
        head = dict(zip(("site", "score", "window", "access", "seed"), alike, strict=True))
        part = parts.setdefault(alike, {**head, **{name: {} for name in _BY_SITE}})
        part["sparsity"][key] = rule.sparsity
        if key in recipe.thresholds:
            part["threshold"][key] = recipe.thresholds[key]
        if key in recipe.centres:
            part["centre"][key] = recipe.centres[key]
        if key in recipe.kept:
            part["kept"][key] = _plain(recipe.kept[key])
    content = {
        "keepset_recipe": VERSION,
        "model": dict(recipe.model),
        "bos": recipe.bos,
        "cut": recipe.cut,
        "found": _plain(recipe.found),
        "rules": [
            {key: value for key, value in part.items() if value != {}} for part in parts.values()
        ],
    }
    text = yaml.safe_dump(content, sort_keys=False, width=100, default_flow_style=None)
    with store.replacing(path) as temporary:
        temporary.write_text(_HEAD + text, encoding="utf-8")


def _plain(value: Any) -> Any:
    """The same in plain lists and dicts, which YAML can write."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value
