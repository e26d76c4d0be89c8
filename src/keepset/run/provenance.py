"""Where a result comes from: its code and the versions of the software."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import platform
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from keepset import __version__
from keepset.rules.kinds import KINDS

ROOT = Path(__file__).parents[1]
# Conditions under which only type checkers read a block: no result depends on it.
_TYPING_ONLY = ("TYPE_CHECKING", "typing.TYPE_CHECKING")
_FILE_NAME = re.compile(r"[\w-]+\.\w+")
_PACKAGES = (
    *("torch", "transformers", "datasets", "numba"),
    *("numpy", "pandas", "scipy", "statsmodels"),
)


def _source(module: str) -> Path | None:
    """The file of `keepset.x.y`, or None where there is none."""
    path = ROOT.joinpath(*module.split(".")[1:])
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


class _Parsed(NamedTuple):
    """What a source says of itself."""

    imports: tuple[str, ...]
    """The modules that it imports."""
    file_names: tuple[str, ...]
    """Strings in it that look like the name of a file: it may read that file from beside it."""
    digest: str
    """Hash of its code that can change a result."""


# Cached by source text, not by path: the rules of a workflow share most files, and files change.
@cache
def _parse(source: str) -> _Parsed:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, ast.If) and ast.unparse(node.test) in _TYPING_ONLY:
            node.body = [ast.Pass()]
        elif isinstance(body, list) and body and _is_docstring(body[0]):
            body[0] = ast.Pass()
    constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    strings = {value for value in constants if isinstance(value, str)}
    return _Parsed(
        tuple(_imports(tree)),
        tuple(sorted(name for name in strings if _FILE_NAME.fullmatch(name))),
        hashlib.sha256(ast.dump(tree).encode()).hexdigest(),
    )


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def import_closure(module: str) -> tuple[str, ...]:
    """`module` and the keepset modules that it imports, directly or indirectly, sorted.

    Raises:
        ValueError: there is no such module.
    """
    if _source(module) is None:
        raise ValueError(f"no module {module}")
    closure: set[str] = set()
    queue = [module]
    while queue:
        name = queue.pop()
        path = _source(name)
        if path is None or name in closure or name.split(".")[0] != "keepset":
            continue
        closure.add(name)
        queue.extend(_parse(path.read_text(encoding="utf-8")).imports)
        if name == "keepset.kinds":  # it imports the modules of the kinds by name
            queue.extend(kind.module for kind in KINDS.values())
    return tuple(sorted(closure))


@cache
def code_hash(module: str) -> str:
    """`module:hash`, the hash over the code of `import_closure(module)` and its data files.

    Snakemake does not look into imported modules. With this as a parameter, it reruns a rule when
    code behind the rule changes, or a table that the code reads from beside it. Comments,
    docstrings, layout and imports for type checkers do not count.
    """
    digest = hashlib.sha256()
    for name in import_closure(module):
        path = _source(name)
        assert path is not None
        digest.update(name.encode())
        digest.update(_parse(path.read_text(encoding="utf-8")).digest.encode())
        for data in data_files(name):
            digest.update(data.name.encode())
            digest.update(hashlib.sha256(data.read_bytes()).digest())
    return f"{module}:{digest.hexdigest()[:16]}"


def data_files(module: str) -> tuple[Path, ...]:
    """The files beside a module, no code, whose names stand in its code as strings."""
    path = _source(module)
    if path is None:
        return ()
    beside = (path.parent / name for name in _parse(path.read_text(encoding="utf-8")).file_names)
    return tuple(file for file in beside if file.suffix != ".py" and file.is_file())


def _is_docstring(node: ast.AST) -> bool:
    constant = node.value if isinstance(node, ast.Expr) else None
    return isinstance(constant, ast.Constant) and isinstance(constant.value, str)


def _git_commit() -> str | None:
    try:
        git = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return git.stdout.strip()


def environment() -> dict[str, Any]:
    """Versions of what computed a result; no time, so that equal runs give equal files."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "keepset": __version__,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "packages": versions,
    }
