import copy
import json
from pathlib import Path

import pytest
import yaml

from keepset import settings
from keepset.cli import schema_text
from keepset.errors import ConfigError

ROOT = Path(__file__).parents[2]
CONFIG = yaml.safe_load((ROOT / "config.yaml").read_text())


def changed(path, value):
    """config.yaml with one key, given as a.b.c, set to `value`."""
    config = copy.deepcopy(CONFIG)
    *parents, last = path.split(".")
    at = config
    for key in parents:
        at = at[key]
    at[last] = value
    return config


def test_the_shipped_configuration_is_valid():
    assert settings.load(ROOT / "config.yaml").study == "embedded"


def test_the_schema_file_is_the_one_generated_from_the_code():
    shipped = (ROOT / "workflow/schemas/config.schema.yaml").read_text()
    assert shipped == schema_text(), "run: keepset schema > workflow/schemas/config.schema.yaml"


def test_the_schema_forbids_unknown_keys_everywhere():
    schema = settings.json_schema()
    for name, definition in {"config": schema, **schema["$defs"]}.items():
        assert definition["additionalProperties"] is False, name


def test_every_key_of_the_configuration_is_commented():
    lines = (ROOT / "config.yaml").read_text().splitlines()
    top = {line.split(":")[0] for line in lines if line and line[0] not in "# "}
    assert top == set(settings.Config.model_fields), "config.yaml and keepset.settings have drifted"
    for at, line in enumerate(lines):
        if line and line[0] not in "# ":
            assert "#" in line or lines[at - 1].startswith("#") or "#" in lines[at + 1], line


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("sparsity", 0.5, "sparsity: unknown key"),
        ("text.blocks", 256, "text.blocks: unknown key"),
        ("text.block", "long", "text.block: .*integer"),
        ("seed", -1, "seed: .*greater than or equal to 0"),
        ("device", "tpu", "device: "),
        ("dtype", "int8", "dtype: .*float32"),
        ("kernels.ffn", "mamba-ssm", "kernels.ffn: .*'auto', 'torch', 'numba' or 'triton'"),
        ("kernels.scan", "triton", "kernels.scan: .*'auto', 'torch', 'numba' or 'mamba-ssm'"),
        ("kernels.up", "torch", "kernels.up: unknown key"),
        ("grid.static.sparsities", [0.5, 1.0], "grid.static.sparsities.1: .*less than 1"),
        ("grid.static.sparsities", [-0.1], "sparsities.0: .*greater than or equal to 0"),
        ("grid.static.sparsities", [], "grid.static.sparsities: .*at least 1"),
        ("grid.static.sparsities", [0.5, 0.5], "grid.static.sparsities: .*not repeat"),
        ("grid.windowed.windows", [0], "windows.0.*greater than or equal to 1"),
        ("grid.windowed.windows", [-4], "windows.0.*greater than or equal to 1"),
        ("grid.windowed.windows", ["forever"], "windows.0"),
        ("grid.windowed.windows", [512], "512 exceeds text.block"),
        ("grid.dynamic.scores", ["taylor"], "grid.dynamic.scores.0"),
        ("grid.static.scores", ["size"], "grid.static.scores.0"),
        ("models.smollm2-135m", {"hub": "a/b", "path": "c"}, "exactly one of"),
        ("models.smollm2-135m", {}, "exactly one of"),
        ("models.smollm2-135m", {"package": "x"}, "package and file go together"),
        ("models.smollm2-135m", {"path": "x", "revision": "main"}, "revision is for hub"),
        ("models.figures", {"path": "x"}, "reserved: figures"),
        ("corpora.wiki", {}, "give either text, or calibration and evaluation"),
        ("corpora.wiki.text", {"hub": "a/b"}, "needs its split"),
        ("tasks.wiki", {"kind": "built", "corpora": ["wiki"]}, "used twice or reserved: wiki"),
        ("tasks.last-word.corpora", ["nope"], "tasks.last-word.corpora: unknown corpus nope"),
        ("tasks.last-word.min_words", 100, "min_words exceeds max_words"),
        ("tasks.recall.max_words", 50, "max_words is for kind: built"),
        ("tasks.last-word.facts", [1], "facts is for kind: recall"),
        (
            "tasks.last-word",
            {"kind": "jsonl", "source": {"path": "a", "field": "b"}},
            "rows of kind jsonl have the fields context and target",
        ),
        ("capability.corpus", "nope", "capability.corpus: unknown corpus nope"),
    ],
)
def test_bad_keys_are_named(path, value, message):
    with pytest.raises(ConfigError, match=message):
        settings.from_mapping(changed(path, value))


def test_sameness_takes_no_less_text_than_everything_else():
    config = settings.from_mapping(changed("text.sameness_tokens", 8192))
    assert config.sameness_tokens("smollm2-135m") == 8192
    left_out = settings.from_mapping(changed("text.sameness_tokens", None))
    assert left_out.sameness_tokens("smollm2-135m") == 4096
    with pytest.raises(ConfigError, match="text: sameness_tokens is less than evaluation_tokens"):
        settings.from_mapping(changed("text.sameness_tokens", 4095))


def test_all_problems_are_listed_at_once():
    config = changed("seed", -1)
    config["text"]["block"] = 0
    with pytest.raises(ConfigError) as caught:
        settings.from_mapping(config)
    assert {"seed", "text.block"} <= {line.split(":")[0] for line in str(caught.value).splitlines()}


def test_only_restricts_and_is_checked():
    config = changed("models.other", {"path": "x"})
    assert list(settings.from_mapping({**config, "only": "other"}).active_models()) == ["other"]
    both = settings.from_mapping({**config, "only": "other,smollm2-135m"})
    assert list(both.active_models()) == ["smollm2-135m", "other"]
    with pytest.raises(ConfigError, match=r"only: unknown model typo; known: .*smollm2-135m"):
        settings.from_mapping({**config, "only": "typo"}).active_models()


@pytest.mark.parametrize(
    ("recipes", "message"),
    [
        ({"nobody": ["a.yaml"]}, r"capability\.recipes\.nobody: there is no model of this name"),
        ({"smollm2-135m": ["a/x.yaml", "b/x.yaml"]}, "two recipes have one name"),
    ],
)
def test_recipes_of_tasks_are_told_apart(recipes, message):
    with pytest.raises(ConfigError, match=message):
        settings.from_mapping(changed("capability.recipes", recipes))


def test_specimens_join_under_their_folders_names(tmp_path):
    for name in ("relu", "swiglu"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    config = settings.from_mapping(changed("specimens", str(tmp_path)))
    models = config.active_models()
    assert list(models) == ["smollm2-135m", "relu", "swiglu"]
    assert models["relu"].origin == "specimen"
    assert config.evaluation_tokens("relu") == 6144
    assert config.evaluation_tokens("smollm2-135m") == 4096


def test_models_stand_in_the_order_that_tells_the_story(tmp_path):
    types = {"a-hybrid": "zamba2", "b-state": "mamba2", "c-gated": "qwen2", "d-relu": "opt"}
    for name, model_type in types.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": model_type}))
    config = changed("models.trained", {"path": "x", "origin": "specimen"})
    config = settings.from_mapping({**config, "specimens": str(tmp_path)})
    specimens = ["c-gated", "d-relu", "b-state", "a-hybrid", "trained"]
    assert list(config.active_models()) == ["smollm2-135m", *specimens]
    some = config.model_copy(update={"only": "a-hybrid,smollm2-135m"})
    assert list(some.active_models()) == ["smollm2-135m", "a-hybrid"]


def test_a_study_without_models_is_refused(tmp_path):
    config = {**changed("models", {}), "specimens": str(tmp_path)}
    with pytest.raises(ConfigError, match="no model is configured"):
        settings.from_mapping(config).active_models()


def test_a_corpus_replaces_parts_of_the_grid():
    config = settings.from_mapping(CONFIG)
    assert config.corpus_grid("speeches").static.scores == ["magnitude"]
    assert "taylor" in config.corpus_grid("wiki").static.scores
    assert config.needs_gradients("wiki")
    assert not config.needs_gradients("speeches")


@pytest.mark.parametrize(
    ("content", "message"),
    [("a: [", "not valid YAML"), ("- a", "mapping"), (None, "no such configuration file")],
)
def test_unreadable_files_are_named(tmp_path, content, message):
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        settings.load(path)
