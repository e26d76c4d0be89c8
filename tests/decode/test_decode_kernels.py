"""Whole blocks by Triton's kernels, inside models that decode: the masked reference's tokens."""

from contextlib import ExitStack

import pytest
import torch

from decoding import DEVICE, prompt, reference, sums
from keepset.decode import generate as gen, sparse_decoding
from keepset.decode.block import ffn_weights
from keepset.errors import ConfigError
from keepset.kernels import naive, selection, triton_ffn
from keepset.kernels.selection import TRITON_DOWN, TRITON_FFN, Selection
from keepset.kernels.torch_ffn import neuron_major
from keepset.kernels.triton_gemv import GemvConfig
from keepset.rules.rule import Rule, describe
from keepset.sites.ffn import find_ffn_sites

DYNAMIC = Rule("magnitude", 0.7, 1)
WINDOWED = Rule("magnitude", 0.7, 3, "causal")
STATIC = Rule("magnitude", 0.6, "corpus")
TOKENS, PROMPT = 7, 4


@pytest.fixture
def model_of(tiny_model):
    """`tiny_model` where kernels run."""
    return lambda family, **overrides: tiny_model(family, **overrides).to(DEVICE)


WITHOUT_GPU = pytest.mark.skipif(DEVICE == "cuda", reason="kernels are fast on a GPU")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several tiles and shares at test sizes; interpreted, each program costs time."""
    config = triton_ffn.DecodeConfig(
        tile=32, block_in=32, down=GemvConfig(block_in=32, block_out=32, shares=2)
    )
    monkeypatch.setattr(triton_ffn, "decode_config", lambda *_: config)


def run(model, rule, kernels="triton", tokens=TOKENS):
    """Tokens x sites by path, and what was refused; the tokens are the reference's."""
    moments = sums(model) if rule.window == "corpus" else None
    ids, chosen = prompt(PROMPT, device=DEVICE), Selection.of(kernels)
    decoded = gen.generate(model, ids, tokens, rule, moments=moments, kernels=chosen)
    assert torch.equal(decoded.tokens, reference(model, ids, tokens, rule, moments))
    return decoded.paths, chosen.refusals


# ReLU with biases; gate; Conv1D, which stores weights the other way; gate and up in one.
@pytest.mark.parametrize("family", ["opt", "llama", "gpt2", "phi3"])
@pytest.mark.parametrize("rule", [DYNAMIC, WINDOWED, STATIC], ids=describe)
def test_tokens_equal_the_masked_references(model_of, family, rule):
    paths, refusals = run(model_of(family), rule)
    assert not refusals
    # Layers x tokens. A prompt is masked, as its first token is run dense; so what a cut block
    # computes is known after the first step.
    assert paths[TRITON_FFN] == 2 * (TOKENS - (2 if rule is STATIC else 1))


def test_the_score_impact(model_of):
    paths, _ = run(model_of("llama"), Rule("impact", 0.8, 1))
    assert paths[TRITON_FFN] == 2 * (TOKENS - 1)


def test_a_kernel_that_is_wrong_within_the_trial_shows_in_the_output(model_of, monkeypatch):
    """The model's output is the kernel's: nothing is computed beside it."""
    model, ids = model_of("llama"), prompt(4, device=DEVICE)
    right = triton_ffn.sparse_decode
    calls = []

    def doubled(*arguments, **options):
        calls.append(1)
        return right(*arguments, **options) * (1.0 if len(calls) <= 1 else 2.0)

    def logits():
        with sparse_decoding(model, DYNAMIC, kernels="triton"), torch.inference_mode():
            cache = model(input_ids=ids, use_cache=True).past_key_values
            return model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True).logits

    before = logits()
    monkeypatch.setattr(triton_ffn, "sparse_decode", doubled)
    assert not torch.allclose(logits(), before, atol=1e-2)
    assert len(calls) == 3  # the trial, and two layers


def test_rows_of_a_batch_have_sets_of_their_own(model_of):
    model = model_of("opt")
    rows = torch.cat([prompt(4, seed, DEVICE) for seed in (1, 2, 3)])
    with sparse_decoding(model, DYNAMIC, kernels="triton") as session:
        out = model.generate(
            rows, attention_mask=torch.ones_like(rows), max_new_tokens=4, do_sample=False,
            eos_token_id=None,
        )  # fmt: skip
    assert session.paths[TRITON_FFN] == 3 * 2 * 3
    for row, ids in zip(out, rows, strict=True):
        assert torch.equal(row[4:].cpu(), reference(model, ids[None], 4, DYNAMIC, None))


def test_a_block_that_cannot_be_apart_reads_kept_rows_only(model_of):
    """Zamba2 adds adapters to a block that its depths share: the down projection alone."""
    paths, _ = run(model_of("zamba2"), DYNAMIC, tokens=3)
    assert paths[TRITON_DOWN] > 0
    assert TRITON_FFN not in paths


@pytest.mark.parametrize("rule", [DYNAMIC, WINDOWED, STATIC], ids=describe)
def test_a_refused_dtype_runs_in_torch(model_of, rule):
    paths, refusals = run(model_of("llama").double(), rule)
    assert TRITON_FFN not in paths
    assert any("float64" in text for text in refusals)


@pytest.mark.parametrize("rule", [DYNAMIC, WINDOWED, STATIC], ids=describe)
def test_a_block_that_is_not_what_its_layout_says_runs_in_torch(model_of, rule):
    model = model_of("llama")
    for layer in model.model.layers:
        layer.mlp.act_fn = torch.nn.Tanh()
    assert TRITON_FFN not in run(model, rule)[0]


def test_an_activation_without_a_kernel_runs_in_torch(model_of):
    paths, refusals = run(model_of("llama", hidden_act="mish"), DYNAMIC)
    assert TRITON_FFN not in paths
    assert any("mish" in text for text in refusals)


@WITHOUT_GPU
def test_torch_is_torch_and_auto_is_torch_on_a_cpu(model_of):
    for word in ("torch", "auto"):
        paths, _ = run(model_of("llama"), DYNAMIC, Selection(word, forced=["bag"]))
        assert set(paths) == {"bag"}


def test_two_decodings_with_different_kernels_do_not_see_each_other(model_of):
    """At the same time, in one process, token by token."""
    model, ids = model_of("llama"), prompt(PROMPT, device=DEVICE)
    models = {"triton": model, "torch": gen.twin(model)}
    steps: dict[str, list[torch.Tensor]] = {word: [] for word in models}
    sessions = {}
    with ExitStack() as stack, torch.inference_mode():
        for word, twin in models.items():
            decoding = sparse_decoding(twin, WINDOWED, kernels=word)
            sessions[word] = stack.enter_context(decoding)
        outs = {word: twin(input_ids=ids, use_cache=True) for word, twin in models.items()}
        for _ in range(TOKENS):
            for word, twin in models.items():
                token = outs[word].logits[:, -1:].argmax(dim=-1)
                steps[word].append(token)
                cache = outs[word].past_key_values
                outs[word] = twin(input_ids=token, past_key_values=cache, use_cache=True)
    assert set(sessions["triton"].paths) == {TRITON_FFN}
    assert TRITON_FFN not in sessions["torch"].paths
    assert not sessions["triton"].selection.crossovers_ms()
    assert sessions["torch"].selection.crossovers_ms()
    expected = reference(model, ids, TOKENS, WINDOWED, None)
    for tokens in steps.values():
        assert torch.equal(torch.cat(tokens, dim=1)[0].cpu(), expected)


@WITHOUT_GPU
def test_the_faster_one_is_taken(model_of, monkeypatch):
    """Without a name the clock decides, here between torch and the interpreter."""
    monkeypatch.setattr(Selection, "may_use_triton", lambda *_: True)
    model, ids, timed = model_of("opt"), prompt(4, device=DEVICE), Selection(rounds=1)
    moments = sums(model)
    for rule in (DYNAMIC, WINDOWED, STATIC):
        paths = gen.generate(model, ids, 6, rule, moments=moments, kernels=timed).paths
        assert not {TRITON_FFN, TRITON_DOWN} & set(paths)
    labels = {label.partition(" ")[0]: set(took) for label, took in timed.crossovers_ms().items()}
    assert labels["dynamic"] == labels["static"] == {"plain", TRITON_FFN}
    assert labels["window"] == {"plain", "held", "turn", TRITON_FFN, "turn in place"}


def stopped_within(model, rule, moments):
    with sparse_decoding(model, rule, moments=moments, kernels="triton"):
        model.generate(
            prompt(4, device=DEVICE), max_new_tokens=3, do_sample=False, eos_token_id=None
        )
        raise RuntimeError("stop")


def test_the_model_is_put_back(model_of):
    for family in ("llama", "gpt2"):
        model = model_of(family)
        moments = sums(model)
        for rule in (DYNAMIC, WINDOWED, STATIC):
            with pytest.raises(RuntimeError, match="stop"):
                stopped_within(model, rule, moments)
            assert not any(m._forward_pre_hooks or "forward" in m.__dict__ for m in model.modules())


def test_what_is_named_and_missing_is_an_error(model_of, monkeypatch):
    monkeypatch.setattr(selection, "why_not_triton", lambda _: "no Triton here")
    with (
        pytest.raises(ConfigError, match=r"kernels\.ffn: no Triton here"),
        sparse_decoding(model_of("llama"), DYNAMIC, kernels="triton"),
    ):
        pass


@pytest.mark.parametrize("family", ["opt", "llama", "gpt2", "phi3", "gpt_neox"])
def test_weights_are_those_of_the_block(model_of, family):
    model = model_of(family)
    site = find_ffn_sites(model)[0]
    ffn = ffn_weights(site, neuron_major(site.down_weight()))
    seen = {}
    hook = site.down.register_forward_hook(lambda _, args, out: seen.update(h=args[0], y=out))
    inputs = site.up[0].module.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    with torch.no_grad():
        model(input_ids=prompt(4, device=DEVICE), use_cache=False)
    hook.remove()
    inputs.remove()
    torch.testing.assert_close(naive.hidden(seen["x"], ffn), seen["h"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(naive.down(seen["h"], ffn), seen["y"], rtol=1e-5, atol=1e-5)
