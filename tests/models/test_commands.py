"""`keepset perplexity` and `generate`: which tokenizer, and whether a BOS stands before a text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from keepset.cli import main

TEXT = "The river runs past the old mill, and the mill turns no more. " * 9


@pytest.fixture
def passage(tmp_path: Path) -> Path:
    path = tmp_path / "passage.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def words(tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    tiny_tokenizer.save_pretrained(tmp_path / "words")
    return tmp_path / "words"


@pytest.fixture
def wordless(checkpoint: Path) -> Path:
    """A checkpoint without tokenizer files."""
    for file in (*checkpoint.glob("token*"), *checkpoint.glob("special*")):
        file.unlink()
    return checkpoint


def nats(output: str) -> float:
    match = re.search(r"\(([0-9.]+) nats per token", output)
    assert match is not None, output
    return float(match[1])


def expected(checkpoint: Path, tokenizer: PreTrainedTokenizerBase, bos: list[int]) -> float:
    """Nats per predicted token of blocks of 64, by plain transformers."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    ids = tokenizer(TEXT, add_special_tokens=False).input_ids
    total, count = 0.0, 0
    for start in range(0, len(ids) // 64 * 64, 64):
        row = torch.tensor([bos + ids[start : start + 64]])
        with torch.no_grad():
            total += float(model(input_ids=row, labels=row).loss) * (row.shape[1] - 1)
        count += row.shape[1] - 1
    return total / count


def test_perplexity_with_a_tokenizer_of_that_name(
    wordless: Path,
    words: Path,
    passage: Path,
    tiny_tokenizer: PreTrainedTokenizerBase,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["perplexity", str(wordless), str(passage), "--block", "64", "--dtype", "float32"]
    assert main(command) == 1
    assert "--tokenizer" in capsys.readouterr().err
    assert main([*command, "--tokenizer", str(words)]) == 0
    found = nats(capsys.readouterr().out)
    assert found == pytest.approx(expected(wordless, tiny_tokenizer, []), abs=2e-6)


@pytest.mark.parametrize(("bos", "before"), [("auto", []), ("true", [1]), ("false", [])])
def test_perplexity_with_a_bos(
    checkpoint: Path,
    passage: Path,
    tiny_tokenizer: PreTrainedTokenizerBase,
    capsys: pytest.CaptureFixture[str],
    bos: str,
    before: list[int],
) -> None:
    command = ["perplexity", str(checkpoint), str(passage), "--block", "64", "--dtype", "float32"]
    assert main([*command, "--bos", bos]) == 0
    found = nats(capsys.readouterr().out)
    assert found == pytest.approx(expected(checkpoint, tiny_tokenizer, before), abs=2e-6)


@pytest.mark.parametrize(("bos", "before"), [("true", [1]), ("false", [])])
def test_generate_with_a_tokenizer_and_a_bos(
    wordless: Path,
    words: Path,
    tiny_tokenizer: PreTrainedTokenizerBase,
    capsys: pytest.CaptureFixture[str],
    bos: str,
    before: list[int],
) -> None:
    command = ["generate", "--model", str(wordless), "--prompt", "old", "--keep", "dynamic:0.0"]
    options = ["--tokens", "6", "--dtype", "float32", "--tokenizer", str(words), "--bos", bos]
    assert main([*command, *options]) == 0
    model = AutoModelForCausalLM.from_pretrained(wordless)
    ids = before + tiny_tokenizer("old", add_special_tokens=False).input_ids
    new = model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)[0, len(ids) :]
    assert capsys.readouterr().out.startswith("old" + tiny_tokenizer.decode(new))


def test_a_tokenizer_that_is_not_there(
    checkpoint: Path, passage: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = ["perplexity", str(checkpoint), str(passage), "--tokenizer", str(tmp_path / "none")]
    assert main(command) == 1
    assert "none is no folder; correct the path" in capsys.readouterr().err


def test_a_model_that_is_not_there(
    passage: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["perplexity", str(tmp_path / "none"), str(passage)]) == 1
    assert "none does not exist; correct the path" in capsys.readouterr().err
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert main(["perplexity", str(tmp_path), str(passage)]) == 1
    assert "config.json is missing; give the path of m.gguf" in capsys.readouterr().err
