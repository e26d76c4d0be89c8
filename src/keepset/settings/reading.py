"""Read settings whose keys and values mean what they look like; of others, say what to quote."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import yaml

from keepset.errors import ConfigError

_MEANINGS = {
    "bool": "true or false",
    "int": "a number",
    "float": "a number",
    "null": "nothing",
    "timestamp": "a date",
}
# YAML 1.1 counts in sixties where there is a colon, and in eights after a leading zero.
_ODD_NUMBER = re.compile(r"[-+]?0[0-7_]+|[-+0-9_.]+(:[-+0-9_.]+)+")


class _Loader(yaml.SafeLoader):
    """YAML without keys that are no text, keys given twice, dates, and numbers in odd notation."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys: set[str] = set()
        for key, _ in node.value:
            kind = key.tag.rpartition(":")[2]
            if kind == "merge":
                continue
            # A whole number in plain decimals is the only key that loses nothing.
            if not isinstance(key, yaml.ScalarNode) or (
                kind != "str" and not re.fullmatch("0|[1-9][0-9]*", key.value)
            ):
                _refuse(key, _MEANINGS.get(kind, "no text"))
            if key.value in keys:
                raise ConfigError(f"{_place(key)}: the key {key.value} is given twice; keep one")
            keys.add(key.value)
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        kind = node.tag.rpartition(":")[2]
        if kind == "timestamp":
            _refuse(node, _MEANINGS[kind])
        if kind in ("int", "float") and _ODD_NUMBER.fullmatch(node.value):
            _refuse(node, "a number of base 60 or 8")
        return node


def read(path: str | Path) -> dict[str, Any]:
    """The contents of a YAML or JSON file of settings.

    Raises:
        ConfigError: the file is missing, is not YAML, is no mapping, or has a key or value that
            YAML reads as something else than it looks like, or a key twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        # JSON may be indented with tabs, which YAML refuses.
        loader = _Loader(text.replace("\t", " ") if text.lstrip().startswith("{") else text)
        loader.name = str(path)
        content = loader.get_single_data()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of keys; see config.yaml")
    return content


def plain(value: Any, key: str = "") -> Any:
    """A copy of settings in memory, of nothing but mappings, lists, text and numbers.

    Args:
        value: the settings, or a part of them.
        key: the dotted key of the part, for messages.

    Raises:
        ConfigError: a key is no text and no whole number, or a value is no text and no finite
            number.
    """
    where = key or "configuration"
    if isinstance(value, Mapping):
        for name in value:
            if isinstance(name, bool) or not isinstance(name, str | int):
                raise ConfigError(
                    f"{where}: the key {name!r} is {type(name).__name__}, not text; put it in"
                    " quotes where it is written"
                )
        parts = {str(name): plain(part, f"{key}.{name}".strip(".")) for name, part in value.items()}
        if len(parts) < len(value):
            raise ConfigError(f"{where}: a key is given twice, as a number and as text; keep one")
        return parts
    if isinstance(value, list | tuple):
        return [plain(part, f"{key}.{number}") for number, part in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: {value} is not a finite number")
    if value is None or isinstance(value, str | int | float):
        return value
    raise ConfigError(f"{where}: {value!r} is {type(value).__name__}, not text; put it in quotes")


def _place(node: yaml.Node) -> str:
    return f"{node.start_mark.name}, line {node.start_mark.line + 1}"


def _refuse(node: yaml.Node, meaning: str) -> NoReturn:
    if not isinstance(node, yaml.ScalarNode):
        raise ConfigError(f"{_place(node)}: a key must be text, not a list or a mapping")
    raise ConfigError(
        f'{_place(node)}: YAML reads {node.value} as {meaning}; put it in quotes: "{node.value}"'
    )
