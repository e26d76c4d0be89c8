"""Where a result comes from: code, versions, device."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from keepset import __version__
from keepset.rules.kinds import KINDS

ROOT = Path(__file__).parents[1]
_PACKAGES = ("torch", "transformers", "datasets", "numpy", "pandas", "scipy", "statsmodels")


def _source(module: str) -> Path | None:
    """The file of `keepset.x.y`, or None where there is none."""
    path = ROOT.joinpath(*module.split(".")[1:])
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


# Remembered by what is read, not by path: every rule of a workflow asks for much the same files.
@cache
def _read(source: str) -> tuple[tuple[str, ...], str]:
    """The modules that a source imports, and the hash of what it means."""
    tree = ast.parse(source)
    imports = tuple(_imports(tree))
    return imports, hashlib.sha256(_meaning(tree).encode()).hexdigest()


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def import_closure(module: str) -> tuple[str, ...]:
    """The keepset modules that `module` imports, directly or not, and itself; sorted.

    Raises:
        ValueError: there is no such module.
    """
    if _source(module) is None:
        raise ValueError(f"no module {module}")
    found: set[str] = set()
    queue = [module]
    while queue:
        name = queue.pop()
        path = _source(name)
        if path is None or name in found or name.split(".")[0] != "keepset":
            continue
        found.add(name)
        queue.extend(_read(path.read_text(encoding="utf-8"))[0])
        if name == "keepset.kinds":  # it imports the modules of the kinds by name
            queue.extend(kind.module for kind in KINDS.values())
    return tuple(sorted(found))


@cache
def code_hash(module: str) -> str:
    """`module:hash`, the hash over its source and that of everything in keepset it imports.

    Snakemake does not see into imported modules; as a rule's parameter this makes it rerun the
    rule when the code behind it changes. Comments and layout do not count.
    """
    digest = hashlib.sha256()
    for name in import_closure(module):
        path = _source(name)
        assert path is not None
        digest.update(name.encode())
        digest.update(_read(path.read_text(encoding="utf-8"))[1].encode())
    return f"{module}:{digest.hexdigest()[:16]}"


def _meaning(tree: ast.Module) -> str:
    """The syntax tree without docstrings, in words: what can change a result."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_docstring(body[0]):
            body[0] = ast.Pass()
    return ast.dump(tree)


def _is_docstring(node: ast.AST) -> bool:
    constant = node.value if isinstance(node, ast.Expr) else None
    return isinstance(constant, ast.Constant) and isinstance(constant.value, str)


def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def environment() -> dict[str, Any]:
    """Versions of what computed a result. Holds no time, so that equal runs give equal files."""
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
