"""A made-up study of three jobs: model.json -> m/c/dense.parquet -> significance/ratios.parquet."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from keepset import cli, settings
from keepset.errors import RecordError
from keepset.run import provenance, record
from keepset.run.verify import verify
from keepset.settings import steps

ROOT = Path(__file__).parents[2]
MODULE = "keepset.settings.grid"
TESTED = ["m/c/perplexity.parquet", "m/c/rounding.parquet"]


def configuration(**changes):
    content = yaml.safe_load((ROOT / "config.yaml").read_text())
    content |= {"study": "made", "models": {"m": {"path": "m"}}, "specimens": None, "tasks": {}}
    content |= {"corpora": {"c": {"text": {"path": "c.txt"}}}, "training": None, "seed": 1}
    content |= dict.fromkeys(("benchmark", "input", "state", "expert"))
    content["text"]["specimen_corpora"] = None
    content["capability"]["corpus"] = "c"
    return settings.from_mapping(content | changes)


def run(rule, output, inputs, wildcards, code=MODULE, **settings):
    root = Path("results/made")
    work = SimpleNamespace(
        rule=rule,
        wildcards=wildcards,
        input=[str(root / path) for path in inputs],
        output=[str(root / output)],
        params={"settings": settings, "code": code and provenance.code_hash(code)},
    )
    with record.recording(work):
        (root / output).parent.mkdir(parents=True, exist_ok=True)
        (root / output).write_text(f"{rule} of {inputs}")


@pytest.fixture
def study(tmp_path, monkeypatch):
    """The folder of the study, with all that the configuration asks for."""
    monkeypatch.chdir(tmp_path)
    config = configuration()
    one = {"model": "m", "corpus": "c"}
    for rule, output, inputs, wildcards in (
        ("prepare_model", "m/model.json", [], {"model": "m"}),
        ("evaluate_dense", "m/c/dense.parquet", ["m/model.json"], one),
        ("of_another_version", "m/c/perplexity.parquet", ["m/c/dense.parquet"], one),
        ("of_another_version", "m/c/rounding.parquet", ["m/model.json"], one),
        ("correlate_size_impact", "m/c/correlation.parquet", ["m/model.json"], one),
        ("join_correlations", "significance/correlation.parquet", ["m/c/correlation.parquet"], {}),
        ("test_significance", "significance/ratios.parquet", TESTED, {}),
    ):
        step = steps.all_steps().get(rule)
        run(rule, output, inputs, wildcards, **(step.given(config, wildcards) if step else {}))
    (tmp_path / "results/made/logs").mkdir()
    (tmp_path / "results/made/logs/x.log").write_text("a log is no result")
    return tmp_path / "results/made"


def judged(study, config=None):
    """{status: files} of what is amiss."""
    found = {}
    for finding in verify(study, config or configuration())[0]:
        found.setdefault(finding.status, set()).add(finding.path)
    return found


AFTER_DENSE = {"m/c/perplexity.parquet", "significance/ratios.parquet"}


def test_an_untouched_study_is_clean(study):
    assert verify(study, configuration()) == ([], 7)
    assert verify(study) == ([], 7)


def test_altered(study):
    path = study / "m/c/dense.parquet"
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    assert judged(study) == {"altered": {"m/c/dense.parquet"}, "stale": AFTER_DENSE}


def test_a_changed_input_from_outside_the_study_makes_stale(study):
    outside = Path("specimens/losses.parquet")
    outside.parent.mkdir()
    outside.write_text("a curve")
    given = steps.all_steps()["draw_losses_figures"].given(configuration(), {})
    run("draw_losses_figures", "loss_curve.png", ["../../specimens/losses.parquet"], {}, **given)
    assert judged(study) == {}
    outside.write_text("another")
    assert judged(study) == {"stale": {"loss_curve.png"}}


def test_what_snakemake_leaves_is_no_result(study):
    (study / "m/model").mkdir()
    (study / "m/model/.snakemake_timestamp").touch()
    (study / "report.zip").touch()
    assert judged(study) == {}


def test_a_link_to_a_folder_above_is_not_followed(study):
    expected = verify(study, configuration())
    (study / "again").symlink_to(study)
    (study / "m" / "up").symlink_to("..")
    assert verify(study, configuration()) == expected


def test_missing(study):
    (study / "m/c/dense.parquet").unlink()
    assert judged(study) == {"missing": {"m/c/dense.parquet"}}


def test_foreign(study):
    (study / "m/c/mine.parquet").write_text("mine")
    (study / "m/c/.dense.parquet.x.parquet").write_text("half")
    findings, _ = verify(study)
    assert [(f.path, f.status) for f in findings] == [
        ("m/c/.dense.parquet.x.parquet", "foreign"),
        ("m/c/mine.parquet", "foreign"),
    ]
    assert "a killed job left it" in findings[0].reason


def test_an_input_made_again_with_other_contents_makes_stale(study):
    record_of = study / "records/m/model.json.json"
    content = json.loads(record_of.read_text())
    (study / "m/model.json").write_text("another model")
    content["outputs"]["m/model.json"] = record.sha256(study / "m/model.json")
    record_of.write_text(json.dumps(content))
    after = {"m/c/correlation.parquet", "significance/correlation.parquet", "m/c/dense.parquet"}
    after.add("m/c/rounding.parquet")
    assert judged(study) == {"stale": AFTER_DENSE | after}


def test_changed_code_makes_stale(study, monkeypatch):
    monkeypatch.setattr(provenance, "code_hash", lambda module: f"{module}:other")
    reasons = {finding.reason for finding in verify(study)[0]}
    assert f"the code of {MODULE} has changed" in reasons
    assert len(judged(study)["stale"]) == 7


def test_code_that_is_gone_makes_stale(study, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", study)
    provenance.code_hash.cache_clear()
    provenance.import_closure.cache_clear()
    reasons = {finding.reason for finding in verify(study)[0]}
    provenance.code_hash.cache_clear()
    provenance.import_closure.cache_clear()
    assert f"the code that made it, {MODULE}, is no longer there" in reasons


@pytest.mark.parametrize(
    ("change", "key", "stale"),
    [
        (
            {"dtype": "bfloat16"},
            "run.dtype",
            AFTER_DENSE
            | {"m/c/dense.parquet", "m/c/correlation.parquet", "significance/correlation.parquet"},
        ),
        (
            {"statistics": {"confidence": 0.9}},
            "statistics.confidence",
            {
                "significance/ratios.parquet",
                "m/c/correlation.parquet",
                "significance/correlation.parquet",
            },
        ),
    ],
)
def test_a_changed_setting_makes_stale_what_depends_on_it(study, change, key, stale):
    config = configuration(**change)
    assert judged(study, config) == {"stale": stale}
    assert any(key in finding.reason for finding in verify(study, config)[0])


def test_a_section_that_is_gone_makes_stale(study):
    names = {"model": "m", "corpus": "c"}
    run("score_state", "m/c/state.safetensors", [], names)
    (finding,) = verify(study, configuration())[0]
    assert (finding.path, finding.status) == ("m/c/state.safetensors", "stale")
    assert "state: this section is missing" in finding.reason


def test_an_added_model_is_missing_and_joined_tables_are_stale(study):
    config = configuration(models={"m": {"path": "m"}, "n": {"path": "n"}})
    assert judged(study, config) == {
        "missing": {"n/c/perplexity.parquet", "n/c/correlation.parquet"},
        "stale": {"significance/ratios.parquet", "significance/correlation.parquet"},
    }


def test_results_of_a_removed_model_are_foreign(study):
    config = configuration(models={"n": {"path": "n"}})
    foreign = judged(study, config)["foreign"]
    assert foreign == {
        *("m/model.json", "m/c/dense.parquet", "m/c/perplexity.parquet"),
        *("m/c/correlation.parquet", "m/c/rounding.parquet"),
    }


def test_a_damaged_record_is_named(study):
    (study / "records/m/model.json.json").write_text("{")
    assert judged(study) == {
        "altered": {"records/m/model.json.json"},
        "foreign": {"m/model.json"},
    }


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_without_records_is_refused(tmp_path, make):
    folder = tmp_path / "results/none"
    if make:
        folder.mkdir(parents=True)
    with pytest.raises(RecordError, match="holds no records" if make else "no such folder"):
        verify(folder)


def test_the_command(study, capsys):
    assert cli.main(["verify", "results/made"]) == 0
    assert "7 files on record, 0 to look at, without a configuration" in capsys.readouterr().out
    Path("config.yaml").write_text(yaml.safe_dump(configuration().model_dump(mode="json")))
    (study / "m/c/dense.parquet").unlink()
    assert cli.main(["verify", "results/made"]) == 1
    output = capsys.readouterr().out
    assert "missing  results/made/m/c/dense.parquet: evaluate_dense made it" in output
    assert "against config.yaml" in output
    assert cli.main(["verify", "results/made", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["status"] == "missing"
    changed = configuration().model_dump(mode="json") | {"study": "other"}
    Path("config.yaml").write_text(yaml.safe_dump(changed))
    assert cli.main(["verify", "results/made"]) == 1
    assert "config.yaml is of study other" in capsys.readouterr().err


def write_configuration(path, **changes):
    content = configuration(**changes).model_dump(mode="json")
    Path(path).write_text(yaml.safe_dump(content))


def test_a_configuration_that_is_not_there_is_named(study, capsys):
    assert cli.main(["verify", "results/made", "--config", "typo.yaml"]) == 1
    assert "error: typo.yaml: no such configuration file" in capsys.readouterr().err
    write_configuration("config.yaml", study="other")
    assert cli.main(["verify", "results/made", "--config", "none"]) == 0
    assert "without a configuration" in capsys.readouterr().out
    assert cli.main(["verify", "results/typo"]) == 1
    assert "results/typo: no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["results/made", "results/mine", "kept/copy", "."])
def test_a_study_is_judged_as_what_it_holds_wherever_it_is(
    study, tmp_path, monkeypatch, capsys, folder
):
    outside = Path("specimens/losses.parquet")
    outside.parent.mkdir()
    outside.write_text("a curve")
    given = steps.all_steps()["draw_losses_figures"].given(configuration(), {})
    run("draw_losses_figures", "loss_curve.png", ["../../specimens/losses.parquet"], {}, **given)
    # The folder lies on another disk under another name; so does one of its models.
    (tmp_path / "disk/far/away").mkdir(parents=True)
    (study / "m").rename(tmp_path / "disk/far/model")
    (study / "m").symlink_to(tmp_path / "disk/far/model")
    study.rename(tmp_path / "disk/far/away/run-17")
    for link in (Path("results/made"), Path("results/mine"), Path("kept/copy")):
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(tmp_path / "disk/far/away/run-17")
    write_configuration("config.yaml")
    if folder == ".":
        monkeypatch.chdir(study)
    arguments = ["verify", folder, "--config", str(tmp_path / "config.yaml")]
    assert cli.main(arguments) == 0, capsys.readouterr().out
    outside = tmp_path / outside
    outside.write_text("another")
    assert cli.main(arguments) == int(folder != "."), capsys.readouterr().out
    write_configuration(tmp_path / "config.yaml", study="other")
    assert cli.main(arguments) == 1
    assert "is of study other, and" in capsys.readouterr().err
