import copy
import gzip
import json
import math
import re

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM

from keepset import models, settings
from keepset.calibrate import activations
from keepset.cli import main
from keepset.decode import generate as gen
from keepset.decode.generate import parse_keep
from keepset.sites.ffn import find_ffn_sites
from keepset.steps.claims import read_ledger


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
        (["--sparsity", "0.5", "--score", "magntiude"], "'magntiude' cannot be taken per token"),
        (["--sparsity", "0.5", "--score", "centred"], "--score centred needs calibration text"),
        (["--device", "cuda"], "cuda"),
        (["--block", "100000"], "tokens"),
        (["--block", "1"], "--block 1: give at least 2"),
        (["--block", "0"], "--block 0: give at least 2"),
        (["--batch-tokens", "0"], "--batch-tokens 0: give at least 1"),
        (["--threads", "0"], "--threads 0: give at least 1"),
        (["--score", "random"], "give its --sparsity"),
        (["--window", "8"], "give its --sparsity"),
        (["--sparsity", "0.5", "--window", "512"], "--window 512 exceeds --block 256"),
        (["--field", "body"], "is text without rows; leave field out"),
        (["--format", "jsonl"], "line 1 is not JSON"),
    ],
)
def test_bad_arguments_end_with_a_message(capsys, passage, tiny_checkpoint, extra, message):
    if message == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert main(["perplexity", str(tiny_checkpoint), str(passage), *extra]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error.lower() if message == "cuda" else message in error


def test_perplexity_of_a_field_of_rows(capsys, tmp_path, passage, tiny_checkpoint):
    rows = tmp_path / "c4-validation.00000-of-00008.json.gz"
    row = json.dumps({"body": passage.read_text()})
    rows.write_bytes(gzip.compress(row.encode()))
    values = []
    for extra in ([str(passage)], [str(rows), "--field", "body"]):
        assert main(["perplexity", str(tiny_checkpoint), *extra, "--dtype", "float32"]) == 0
        values.append(perplexity(capsys.readouterr().out))
    assert values[0] == values[1]


def generate(checkpoint, keep, *extra):
    return main(
        ["generate", "--model", str(checkpoint), "--prompt", "The old mill", "--keep", keep,
         "--tokens", "12", "--dtype", "float32", *extra]
    )  # fmt: skip


@pytest.mark.parametrize("keep", ["dynamic:0.9", "windowed:4:0.9", "static:0.5"])
def test_generates_the_masked_references_tokens(
    capsys, tmp_path, tiny_checkpoint, tiny_tokenizer, keep
):
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    info = models.prepare("model", settings.Model(path=str(tiny_checkpoint)), tmp_path)
    moments = activations.collect_moments(
        model, find_ffn_sites(model), torch.arange(4, 68)[None], gradients=False, batch_tokens=64
    )
    cache = tmp_path / "activations.safetensors"
    activations.save(moments, cache, {"model": info["fingerprint"]})
    rule = parse_keep(keep)
    extra = ["--activations", str(cache)] if rule.window == "corpus" else []
    assert generate(tiny_checkpoint, keep, "--check", "--threads", "1", *extra) == 0
    output = capsys.readouterr().out
    ids = tiny_tokenizer("The old mill", return_tensors="pt").input_ids
    expected = gen.generate(model, ids, 12, rule, moments=moments, stop=gen.stops(model)).tokens
    assert output.startswith("The old mill" + tiny_tokenizer.decode(expected))
    assert "every token is the masked reference's" in output
    assert "tokens x layers by path: " + ("cut weights" if "static" in keep else "") in output
    rates = re.findall(r"([0-9.]+) tokens/s of CPU time", output)
    speedup = float(re.search(r"speed-up ([0-9.]+)", output)[1])
    assert speedup == pytest.approx(float(rates[1]) / float(rates[0]), rel=0.02)


@pytest.mark.parametrize("keep", ["dynamic:0.5", "windowed:4:0.5"])
def test_one_new_token_is_none_decoded(capsys, tiny_checkpoint, keep):
    assert generate(tiny_checkpoint, keep, "--tokens", "1", "--check") == 0
    output = capsys.readouterr().out
    assert re.findall(r"^(?:dense|dynamic|windowed).*: (0 decoded)$", output, re.MULTILINE) == [
        "0 decoded",
        "0 decoded",
    ]
    assert "speed-up" not in output


def test_a_first_new_token_that_ends_the_text(capsys, monkeypatch, tiny_checkpoint):
    monkeypatch.setattr(gen, "stops", lambda _: set(range(260)))
    assert generate(tiny_checkpoint, "dynamic:0.5", "--check") == 0
    assert capsys.readouterr().out.count(": 0 decoded") == 2


def test_nan_ends_with_the_layer(capsys, tmp_path, tiny_checkpoint, tiny_tokenizer):
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    model.model.layers[0].mlp.gate_proj.weight.data[0, 0] = float("nan")
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    assert generate(tmp_path, "dynamic:0.5", "--check") == 1
    error = capsys.readouterr().err
    assert "NaN or infinity in the activations of model.layers.0.mlp.down_proj" in error


def test_a_prompt_runs_without_the_token_that_closes_texts(
    capsys, tmp_path, tiny_checkpoint, tiny_tokenizer
):
    """A tokenizer that wraps texts, <bos> $A <eos>: the model goes on after the text."""
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    model.save_pretrained(tmp_path)
    wrapping = copy.deepcopy(tiny_tokenizer)
    bos, eos = tiny_tokenizer.bos_token, tiny_tokenizer.eos_token
    ids = [(token, tiny_tokenizer.convert_tokens_to_ids(token)) for token in (bos, eos)]
    template = TemplateProcessing(single=f"{bos} $A {eos}", special_tokens=ids)
    wrapping.backend_tokenizer.post_processor = template
    wrapping.save_pretrained(tmp_path)
    assert generate(tmp_path, "dynamic:0.5", "--check") == 0
    prompt = wrapping("The old mill", return_tensors="pt").input_ids
    assert prompt[0, [0, -1]].tolist() == [ids[0][1], ids[1][1]]
    rule = parse_keep("dynamic:0.5")
    text = prompt[:, 1:-1]
    new = gen.generate(model, text, 12, rule, stop=gen.stops(model), bos=ids[0][1]).tokens
    assert capsys.readouterr().out.startswith("The old mill" + tiny_tokenizer.decode(new))


@pytest.mark.parametrize(
    ("kernels", "paths"), [("torch", "masked|bag|select"), ("triton", "triton-ffn")]
)
def test_says_which_path_ran(capsys, tiny_checkpoint, kernels, paths):
    extra = ("--kernels", kernels, "--check", "--tokens", "3")
    assert generate(tiny_checkpoint, "dynamic:0.5", *extra) == 0
    assert re.search(rf"by path: .*\b({paths}) \d+", capsys.readouterr().out)


def test_unknown_kernels_end_with_a_message(capsys, tiny_checkpoint):
    assert generate(tiny_checkpoint, "dynamic:0.5", "--kernels", "cuda") == 1
    assert "'cuda' is not known; choose auto, torch, numba, triton" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("dynamic", "write dynamic:SPARSITY"),
        ("static:0.9", "give the activation cache"),
        ("dynamic:1.0", "sparsity must be in"),
    ],
)
def test_bad_keep_rules_end_with_a_message(capsys, tiny_checkpoint, keep, message):
    assert generate(tiny_checkpoint, keep) == 1
    assert message in capsys.readouterr().err


def test_a_wrong_token_fails_the_check(capsys, monkeypatch, tiny_checkpoint):
    wrong = gen.Disagreement(index=3, token=5, expected=7, gap=0.25)
    monkeypatch.setattr(gen, "disagreement", lambda *_, **__: wrong)
    assert generate(tiny_checkpoint, "dynamic:0.9", "--check") == 1
    assert "new token 3 is 5; the masked reference prefers 7" in capsys.readouterr().err


def test_a_path_that_does_not_run_is_refused(capsys, tiny_checkpoint):
    assert generate(tiny_checkpoint, "dynamic:0.5", "--path", "nope") == 1
    assert "--path nope did not run; what ran: " in capsys.readouterr().err
    assert generate(tiny_checkpoint, "dynamic:0.5", "--tokens", "0") == 1
    assert "--tokens 0: give at least 1" in capsys.readouterr().err


def test_shipping_needs_a_training(capsys, tmp_path):
    assert main(["ship", str(tmp_path / "nope"), str(tmp_path / "specimens")]) == 1
    assert "nope/gates.json: no such file; give results/STUDY/training" in capsys.readouterr().err
    (tmp_path / "gates.json").write_text('{"measured": {"relu": {}}, "gates": []}')
    assert main(["ship", str(tmp_path), str(tmp_path / "specimens")]) == 1
    assert "relu/model: no such file" in capsys.readouterr().err
    assert not (tmp_path / "specimens").exists()


def test_names_in_a_ledger_stay_as_they_are(tmp_path):
    for name in ("claims.csv", "claims_cases.csv"):
        (tmp_path / name).write_text("claim,model,where,n\nC1,1.30,NA,\nC2,2024,nan,3\n")
    for table in read_ledger(tmp_path):
        assert table["model"].tolist() == ["1.30", "2024"]
        assert table["where"].tolist() == ["NA", "nan"]
        assert table["n"].isna().tolist() == [True, False]


def test_check_names_the_models(capsys, tmp_path):
    assert main(["check", str(tmp_path / "absent.yaml")]) == 1
    assert "no such configuration file" in capsys.readouterr().err
