import math
import re

import pytest
import torch
from transformers import AutoModelForCausalLM

from keepset.cli import main


@pytest.fixture
def passage(tmp_path):
    path = tmp_path / "passage.txt"
    path.write_text("The river runs past the old mill, and the mill turns no more. " * 9)
    return path


def perplexity(output):
    return float(re.search(r"token perplexity ([0-9.e+]+)", output)[1])


def test_perplexity_of_a_file_equals_plain_transformers(
    capsys, passage, tiny_checkpoint, tiny_tokenizer
):
    command = ["perplexity", str(tiny_checkpoint), str(passage), "--block", "64"]
    assert main([*command, "--dtype", "float32"]) == 0
    ids = torch.tensor(tiny_tokenizer(passage.read_text()).input_ids)
    blocks = ids[: len(ids) // 64 * 64].view(-1, 64)
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    with torch.no_grad():
        losses = [float(model(input_ids=row[None], labels=row[None]).loss) for row in blocks]
    output = capsys.readouterr().out
    assert perplexity(output) == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert f"{len(blocks)} blocks of 64" in output


def test_perplexity_under_a_rule_differs(capsys, passage, tiny_checkpoint):
    values = []
    for extra in ([], ["--sparsity", "0.9"], ["--sparsity", "0.9", "--window", "sequence"]):
        assert main(["perplexity", str(tiny_checkpoint), str(passage), *extra]) == 0
        values.append(perplexity(capsys.readouterr().out))
    assert len(set(values)) == 3


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--sparsity", "1.0"], "sparsity must be in [0, 1)"),
        (["--sparsity", "0.5", "--window", "0"], "window must be a positive number"),
        (["--sparsity", "0.5", "--window", "corpus"], "needs calibration text"),
        (["--sparsity", "0.5", "--score", "taylor"], "cannot be taken per token"),
        (["--device", "cuda"], "cuda"),
        (["--block", "100000"], "tokens"),
    ],
)
def test_bad_arguments_end_with_a_message(capsys, passage, tiny_checkpoint, extra, message):
    if message == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert main(["perplexity", str(tiny_checkpoint), str(passage), *extra]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error.lower() if message == "cuda" else message in error


def test_check_names_the_models(capsys, tmp_path):
    assert main(["check", str(tmp_path / "absent.yaml")]) == 1
    assert "no such configuration file" in capsys.readouterr().err
