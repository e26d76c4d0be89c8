"""Settings are what they look like, or are refused with what to put in quotes."""

import json
import math
from pathlib import Path

import pytest
import yaml

from keepset import settings
from keepset.errors import ConfigError
from keepset.settings import reading

ROOT = Path(__file__).parents[2]
CONFIG = (ROOT / "config.yaml").read_text()


def with_models(tmp_path, lines):
    """config.yaml with the models that `lines` name."""
    content = yaml.safe_load(CONFIG) | {"models": {}, "specimens": None}
    path = tmp_path / "study.yaml"
    text = yaml.safe_dump(content).replace(
        "models: {}\n", "models:\n  " + "\n  ".join(lines) + "\n"
    )
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["no: {path: a}"], r'YAML reads no as true or false; put it in quotes: "no"'),
        (["on: {path: a}"], r'put it in quotes: "on"'),
        (["1.3: {path: a}"], r'YAML reads 1.3 as a number; put it in quotes: "1.3"'),
        (["1.30: {path: a}", '"1.3": {path: b}'], r'put it in quotes: "1.30"'),
        (["1_3: {path: a}"], r'put it in quotes: "1_3"'),
        (["12:30: {path: a}"], r'YAML reads 12:30 as a number of base 60 .* quotes: "12:30"'),
        (["0x10: {path: a}"], r'put it in quotes: "0x10"'),
        (["010: {path: a}"], r'put it in quotes: "010"'),
        (["1e+3: {path: a}", "1.0e+3: {path: a}"], r'put it in quotes: "1.0e\+3"'),
        (["2024-08-26: {path: a}"], r'YAML reads 2024-08-26 as a date; .*"2024-08-26"'),
        (["null: {path: a}"], r'YAML reads null as nothing; put it in quotes: "null"'),
        (["~: {path: a}"], r"put it in quotes"),
        (["[a]: {path: a}"], "a key must be text, not a list"),
        (["a: {path: a}", "a: {path: b}"], "the key a is given twice; keep one"),
        (["2024: {path: a}", '"2024": {path: b}'], "the key 2024 is given twice"),
        (["a: {hub: b/c, revision: 2024-08-26}"], r'"2024-08-26"'),
        (["a: {hub: b/c, revision: 1.30}"], r"models.a.revision: .*string; put it in quotes"),
        (["a: {hub: b/c, revision: 12:30}"], r'a number of base 60 or 8; .*"12:30"'),
    ],
)
def test_what_yaml_makes_something_else_of_is_refused(tmp_path, lines, message):
    with pytest.raises(ConfigError, match=message):
        settings.load(with_models(tmp_path, lines))


def test_a_refusal_says_where(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("seed: 1\nmodels:\n  no: {path: a}\n")
    with pytest.raises(ConfigError, match=r"study\.yaml, line 3: "):
        settings.load(path)


@pytest.mark.parametrize("name", ["2024", '"no"', "'1.30'", "y", "1e3", "v1_3", '"12.30"'])
def test_names_that_stay_as_they_are_written_are_taken(tmp_path, name):
    config = settings.load(with_models(tmp_path, [f"{name}: {{path: a}}"]))
    assert list(config.models) == [name.strip("\"'")]


def test_anchors_and_merges_are_no_repeats(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: &one {x: 1, y: 2}\nb: &two {<<: *one, x: 3}\nc: {<<: [*two, *one], y: 4}\n")
    assert reading.read(path)["c"] == {"x": 3, "y": 4}


def test_json_is_read_too(tmp_path):
    path = tmp_path / "study.json"
    path.write_text(json.dumps(yaml.safe_load(CONFIG), indent="\t"))
    assert settings.load(path) == settings.load(ROOT / "config.yaml")
    path.write_text('{"seed": 1, "seed": 2}')
    with pytest.raises(ConfigError, match="the key seed is given twice"):
        settings.load(path)


def test_a_folder_is_no_file_of_settings(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        settings.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": {False: {"path": "a"}}}, "models: the key False is bool, not text"),
        ({"models": {1.3: {"path": "a"}}}, r"models: the key 1\.3 is float, not text"),
        ({"models": {13: {"path": "a"}, "13": {"path": "b"}}}, "models: a key is given twice"),
        ({"only": 13}, r"only.*put it in brackets"),
        ({"seed": math.nan}, "seed: nan is not a finite number"),
        ({"seed": {1, 2}}, "seed: {1, 2} is set"),
    ],
)
def test_settings_in_memory_are_checked_alike(change, message):
    with pytest.raises(ConfigError, match=message):
        settings.from_mapping(yaml.safe_load(CONFIG) | change)


def test_only_takes_names_with_spaces_between(tmp_path):
    config = settings.load(with_models(tmp_path, ["a: {path: a}", "b: {path: b}"]))
    some = config.model_copy(update={"only": "b, a"})
    assert list(some.active_models()) == ["a", "b"]
    with pytest.raises(ConfigError, match="only: names no model; null runs all"):
        config.model_copy(update={"only": []}).active_models()


@pytest.mark.parametrize(
    ("section", "names"),
    [("models", ["Relu", "relu"]), ("corpora", ["Wiki", "wiki"]), ("tasks", ["a", "A"])],
)
def test_names_that_differ_in_case_only_are_refused(section, names):
    content = yaml.safe_load(CONFIG) | {"specimens": None}
    example = next(iter(content[section].values()))
    content[section] = content[section] | dict.fromkeys(names, example)
    with pytest.raises(
        ConfigError, match=rf"({names[0]} and {names[1]}|{names[1]} and {names[0]})"
    ):
        settings.from_mapping(content)


def test_a_specimen_and_a_model_differ_in_more_than_case(tmp_path):
    (tmp_path / "relu").mkdir()
    (tmp_path / "relu/config.json").write_text("{}")
    content = yaml.safe_load(CONFIG) | {
        "specimens": str(tmp_path),
        "models": {"ReLU": {"path": "a"}},
    }
    with pytest.raises(ConfigError, match="models: ReLU and relu differ in case only"):
        settings.from_mapping(content).active_models()


def test_folders_of_specimens_have_names_of_models(tmp_path):
    content = yaml.safe_load(CONFIG) | {"specimens": str(tmp_path), "models": {}}
    for name in (".ipynb_checkpoints", "relu"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    config = settings.from_mapping(content)
    assert list(config.active_models()) == ["relu"]
    for name, message in (("relu (1)", "a name has letters"), ("Tables", "Tables is reserved")):
        (tmp_path / "relu").rename(tmp_path / name)
        with pytest.raises(ConfigError, match=message):
            config.active_models()
        (tmp_path / name).rename(tmp_path / "relu")


@pytest.mark.parametrize("section", ["models", "corpora", "tasks"])
@pytest.mark.parametrize("name", ["checkpoint", "model.json", "claims.csv"])
def test_names_of_files_beside_them_are_reserved(section, name):
    content = yaml.safe_load(CONFIG)
    content[section][name] = next(iter(content[section].values()))
    with pytest.raises(ConfigError, match=f"reserved: {name}"):
        settings.from_mapping(content)


def test_jobs_do_not_share_a_log():
    content = yaml.safe_load(CONFIG) | {"specimens": None}
    content["models"] = {"a": {"path": "a"}, "a.wiki": {"path": "b"}}
    content["corpora"]["wiki.docs"] = content["corpora"]["docs"]
    with pytest.raises(ConfigError, match=r"share the log a\.wiki\.docs; rename"):
        settings.from_mapping(content).active_models()


def test_reserved_names_are_reserved_in_any_case():
    content = yaml.safe_load(CONFIG)
    content["models"]["Figures"] = {"path": "a"}
    with pytest.raises(ConfigError, match="reserved: Figures"):
        settings.from_mapping(content)
