"""`keepset slim` and `keepset generate --recipe` as a user calls them."""

from __future__ import annotations

import json

import pytest

from keepset.cli import main
from keepset.files.lock import LOCKS, lock
from keepset.settings.recipes import read_recipe

TEXT = "The river is long and the hills are green. A boat came down in the morning. " * 60


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def slim(checkpoint, text, folder, *options):
    return main(
        ["slim", str(checkpoint), "--text", str(text), "--out", str(folder), "--block", "32",
         "--dtype", "float32", "--calibration-tokens", "256", "--max-tokens", "1600",
         "--tokens", "4", "--no-comparisons", *options]
    )  # fmt: skip


def test_from_a_model_to_a_recipe_that_generates(tiny_checkpoint, text, tmp_path, capsys):
    folder = tmp_path / "out"
    assert slim(tiny_checkpoint, text, folder, "--budget", "5%") == 0
    said = capsys.readouterr().out
    assert "perplexity at most 5% above dense, saving speed" in said
    assert "decoding, tokens/s: dense " in said
    recipe = read_recipe(folder)
    assert recipe.model["name"] == "llama"
    options = ["--prompt", "The river", "--tokens", "3", "--dtype", "float32", "--check"]
    for model, *more in (
        (tiny_checkpoint, "--recipe", str(folder)),
        (folder / "model", "--recipe", str(folder / "recipe.yaml")),
        (folder,),  # a slim folder has its recipe with it
    ):
        assert main(["generate", "--model", str(model), *more, *options]) == 0
        assert "every token is the masked reference's" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "much"], "write a share, such as 3%"),
        (["--budget=-1%"], "a rise of perplexity above 0"),
        (["--points", "2"], "--points are of a task: give --task"),
        (["--max-tokens", "320"], "512 tokens are needed"),
        (["--max-tokens", "31"], "less than one --block of 32 tokens"),
        (["--save", "memory"], "no bytes of recurrent states"),
        (["--save", "size"], "neither experts nor a recurrent state"),
    ],
)
def test_bad_input_is_named(tiny_checkpoint, text, tmp_path, capsys, options, message):
    assert slim(tiny_checkpoint, text, tmp_path / "out", *options) == 1
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named(tiny_checkpoint, text, capsys):
    assert slim(tiny_checkpoint, text, text) == 1
    assert f"--out {text}: this folder cannot be written" in capsys.readouterr().err


@pytest.mark.skipif(not LOCKS, reason="this system has no locks on files")
def test_two_runs_do_not_share_a_folder(tiny_checkpoint, text, tmp_path, capsys):
    (tmp_path / "out" / "journal").mkdir(parents=True)
    with (tmp_path / "out" / "journal" / "lock").open("w") as file:
        assert lock(file.fileno())
        assert slim(tiny_checkpoint, text, tmp_path / "out") == 1
    assert "another `keepset slim` works there" in capsys.readouterr().err


def test_too_few_items_say_how_many_are_needed(tiny_checkpoint, text, tmp_path, capsys):
    items = tmp_path / "items.jsonl"
    rows = [{"context": "The river is", "target": f" long {number}"} for number in range(20)]
    items.write_text("\n".join(map(json.dumps, rows)))
    assert slim(tiny_checkpoint, text, tmp_path / "out", "--task", str(items)) == 1
    assert "10 items are left to report on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give --keep, a rule, or --recipe"),
        (["--keep", "dynamic:0.5", "--recipe", "r.yaml"], "give --keep, a rule, or --recipe"),
        (["--recipe", "none.yaml"], "this recipe cannot be read"),
    ],
)
def test_generate_needs_one_of_two(tiny_checkpoint, capsys, options, message):
    assert main(["generate", "--model", str(tiny_checkpoint), "--prompt", "a", *options]) == 1
    assert message in capsys.readouterr().err


def test_a_stopped_run_says_how_it_goes_on(tiny_checkpoint, text, tmp_path, capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("keepset.slim.slimming.slim", stop)
    assert slim(tiny_checkpoint, text, tmp_path / "out") == 130
    assert "the same command goes on from there" in capsys.readouterr().out
