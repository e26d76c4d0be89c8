import shutil

import pytest

from keepset.run import provenance
from keepset.settings.steps import all_steps


def test_the_closure_holds_what_is_imported_and_nothing_above():
    closure = provenance.import_closure("keepset.rules.masks")
    assert {"keepset.rules.masks", "keepset.rules.rule", "keepset.errors"} <= set(closure)
    assert "keepset.measure.tables" not in closure


def test_packages_bring_their_modules():
    assert any(
        name.startswith("keepset.text.") for name in provenance.import_closure("keepset.text")
    )


def test_kinds_of_sites_count_though_they_are_imported_by_name():
    closure = provenance.import_closure("keepset.measure.runner")
    assert {"keepset.kinds.ffn", "keepset.hold.state", "keepset.sites.state"} <= set(closure)
    assert "keepset.kinds.ffn" not in provenance.import_closure("keepset.settings")


def test_unknown_modules_are_refused():
    with pytest.raises(ValueError, match=r"no module keepset\.nope"):
        provenance.import_closure("keepset.nope")


TOP = """
from typing import TYPE_CHECKING
from keepset import below
if TYPE_CHECKING:
    from keepset import typed
else:
    from keepset import untyped
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "top.py").write_text(TOP)
    for name in ("typed", "untyped"):
        (tmp_path / f"{name}.py").write_text("Z = 1\n")
    (tmp_path / "below.py").write_text("X = 1\n")
    (tmp_path / "beside.py").write_text("Y = 1\n")

    def hash_now():
        provenance.code_hash.cache_clear()
        provenance.import_closure.cache_clear()
        return provenance.code_hash("keepset.top")

    yield tmp_path, hash_now
    provenance.code_hash.cache_clear()
    provenance.import_closure.cache_clear()


@pytest.mark.parametrize("file", ["below.py", "untyped.py"])
def test_code_below_changes_the_hash(package, file):
    folder, hash_now = package
    before = hash_now()
    (folder / file).write_text("X = 2\n")
    assert hash_now() != before


def test_imports_for_type_checkers_are_not_in_the_closure(package):
    names = ("keepset", "keepset.below", "keepset.top", "keepset.untyped")
    assert provenance.import_closure("keepset.top") == names


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("beside.py", "Y = 2\n"),
        ("typed.py", "Z = 2\n"),
        ("top.py", TOP.replace("import typed", "import beside")),
        ("below.py", "# a comment\nX  =  1\n"),
        ("below.py", '"""A docstring."""\nX = 1\n'),
    ],
)
def test_nothing_else_does(package, file, content):
    folder, hash_now = package
    if content.startswith('"""'):
        (folder / "below.py").write_text('"""Another."""\nX = 1\n')
    before = hash_now()
    (folder / file).write_text(content)
    assert hash_now() == before


class TestDataFiles:
    """Tables that code reads from beside it decide results as code does."""

    def test_a_file_that_the_code_names_counts(self, package):
        folder, hash_now = package
        (folder / "below.py").write_text('TABLE = "numbers.csv"\n')
        without = hash_now()
        (folder / "numbers.csv").write_text("a,b\n1,2\n")
        before = hash_now()
        (folder / "numbers.csv").write_text("a,b\n1,3\n")
        assert len({without, before, hash_now()}) == 3

    def test_other_files_do_not(self, package):
        folder, hash_now = package
        before = hash_now()
        (folder / "numbers.csv").write_text("a,b\n1,2\n")
        assert hash_now() == before

    def test_a_number_of_the_papers_makes_the_ledger_stale(self, tmp_path, monkeypatch):
        copied = tmp_path / "keepset"
        shutil.copytree(provenance.ROOT, copied, ignore=shutil.ignore_patterns("__pycache__"))
        monkeypatch.setattr(provenance, "ROOT", copied)
        code = all_steps()["judge_claims"].code
        before = provenance.code_hash.__wrapped__(code)
        table = copied / "analyse" / "claims" / "papers.csv"
        table.write_text(table.read_text("utf-8").replace("static 0.90,683", "static 0.90,684"))
        assert provenance.code_hash.__wrapped__(code) != before

    def test_every_data_file_of_the_package_is_one_of_a_modules(self):
        known = set()
        for path in provenance.ROOT.rglob("*.py"):
            parts = path.relative_to(provenance.ROOT).with_suffix("").parts
            known.update(provenance.data_files(".".join(("keepset", *parts))))
        files = {
            path for path in provenance.ROOT.rglob("*")
            if path.is_file() and path.suffix != ".py" and path.name != "py.typed"
            and path.parent.name != "__pycache__"
        }  # fmt: skip
        assert files == known
        assert {path.name for path in files} >= {"papers.csv", "sizes.csv"}


def test_the_environment_holds_versions_and_no_time():
    assert provenance.environment() == provenance.environment()
    assert provenance.environment()["packages"]["torch"] != "not installed"
