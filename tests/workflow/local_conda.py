"""A conda, and a channel of two packages, made of what is on this machine.

`conda-lock` carries conda's own source; the channel, a folder, holds the running Python and its
pip. So `snakemake --use-conda` does all that it does elsewhere, without a channel to reach.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CHANNEL = "conda-forge"  # the channel that envs/*.yaml name

_CONDA = """#!{python}
import importlib, importlib.abc, importlib.machinery, sys

REAL = "conda_lock._vendor.conda"


class Alias(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name == "conda" or name.startswith("conda."):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return importlib.import_module(REAL + spec.name[len("conda"):])

    def exec_module(self, module):
        pass


if __name__ == "__main__":
    sys.meta_path.insert(0, Alias())
    from conda_lock._vendor.conda.cli import main

    sys.exit(main())
"""
_LEFT_OUT = ("site-packages", "dist-packages", "test", "__pycache__", "idlelib", "turtledemo")


def install(prefix: Path) -> Path:
    """Make a conda under `prefix`; returns the folder that goes on PATH."""
    subprocess.run([sys.executable, "-m", "venv", prefix], check=True)
    pip = [prefix / "bin/pip", "install", "-q", "-r", ROOT / "requirements-conda.txt"]
    subprocess.run(pip, check=True)
    conda = prefix / "bin/conda"
    conda.write_text(_CONDA.format(python=prefix / "bin/python"))
    conda.chmod(0o755)
    (prefix / "bin/activate").write_text(f'eval "$({conda} shell.posix activate "$1")"\n')
    (prefix / "conda-meta").mkdir()
    (prefix / "conda-meta/history").touch()
    (prefix / "condabin").mkdir()
    (prefix / "condabin/conda").symlink_to("../bin/conda")
    (prefix / ".condarc").write_text(
        f"channel_alias: file://{prefix}/channel\nchannel_priority: strict\nsolver: classic\n"
        f"default_channels: []\npkgs_dirs: [{prefix}/pkgs]\n"
    )
    _make_channel(prefix / "channel" / CHANNEL, prefix / "bin/patchelf")
    return prefix / "condabin"


def _make_channel(channel: Path, patchelf: Path) -> None:
    index: dict[str, dict[str, Any]] = {"linux-64": {}, "noarch": {}}
    with tempfile.TemporaryDirectory() as folder:
        _copy_python(Path(folder), patchelf)
        name, record = _pack(
            Path(folder), channel / "linux-64", "python", platform.python_version()
        )
        index["linux-64"][name] = record
    with tempfile.TemporaryDirectory() as folder:
        _copy_pip(Path(folder) / "site-packages")
        name, record = _pack(Path(folder), channel / "noarch", "pip", version("pip"))
        index["noarch"][name] = record
    for subdir, packages in index.items():
        content = {"info": {"subdir": subdir}, "packages": packages, "packages.conda": {}}
        (channel / subdir / "repodata.json").write_text(
            json.dumps(content | {"repodata_version": 1})
        )


def _copy_python(folder: Path, patchelf: Path) -> None:
    """The interpreter and its standard library, which find each other wherever they are put."""
    base, name = Path(sys.base_prefix), f"python{sys.version_info.major}.{sys.version_info.minor}"
    (folder / "bin").mkdir()
    (folder / "lib").mkdir()
    shutil.copy2(base / "bin" / name, folder / "bin" / name)
    for link in ("python", "python3"):
        (folder / "bin" / link).symlink_to(name)
    for shared in (base / "lib").glob("libpython*.so.1.0"):
        shutil.copy2(shared, folder / "lib")

    def ignored(_: str, names: list[str]) -> list[str]:
        return [name for name in names if name in _LEFT_OUT or name.startswith("config-")]

    shutil.copytree(base / "lib" / name, folder / "lib" / name, symlinks=True, ignore=ignored)
    packages = folder / "lib" / name / "site-packages"
    packages.mkdir()
    (packages / "README.txt").write_text("packages go here\n")
    subprocess.run([patchelf, "--set-rpath", "$ORIGIN/../lib", folder / "bin" / name], check=True)


def _copy_pip(folder: Path) -> None:
    import pip

    source = Path(pip.__file__).parent
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(source, folder / "pip", ignore=skip)
    about = f"pip-{version('pip')}.dist-info"
    shutil.copytree(source.parent / about, folder / about, ignore=skip)


def _pack(root: Path, folder: Path, name: str, number: str) -> tuple[str, dict[str, Any]]:
    """Write a conda package of the files in `root`; returns its file name and index entry."""
    noarch = folder.name == "noarch"
    paths = sorted(p for p in root.rglob("*") if p.is_symlink() or not p.is_dir())
    files = [path.relative_to(root).as_posix() for path in paths]
    entries = [
        {
            "_path": file,
            "path_type": "softlink" if path.is_symlink() else "hardlink",
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "size_in_bytes": path.stat().st_size,
        }
        for file, path in zip(files, paths, strict=True)
    ]
    index: dict[str, Any] = {"name": name, "version": number, "build": "local_0", "build_number": 0}
    index |= {"depends": ["python >=3.9"] if noarch else [], "subdir": folder.name}
    index |= {"noarch": "python"} if noarch else {"arch": "x86_64", "platform": "linux"}
    about: dict[str, Any] = {
        "index.json": index,
        "paths.json": {"paths": entries, "paths_version": 1},
        "about.json": {},
    }
    if noarch:
        about["link.json"] = {"noarch": {"type": "python"}, "package_metadata_version": 1}
    (root / "info").mkdir()
    for file, content in about.items():
        (root / "info" / file).write_text(json.dumps(content))
    (root / "info/files").write_text("\n".join(files) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    package = folder / f"{name}-{number}-local_0.tar.bz2"
    with tarfile.open(package, "w:bz2", compresslevel=1) as archive:
        for file in [*(f"info/{p}" for p in sorted(os.listdir(root / "info"))), *files]:
            archive.add(root / file, file, recursive=False)
    data = package.read_bytes()
    hashes = {"md5": hashlib.md5(data).hexdigest(), "sha256": hashlib.sha256(data).hexdigest()}
    return package.name, index | hashes | {"size": len(data)}
