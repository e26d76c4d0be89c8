from dataclasses import replace

import pytest
import torch

from decoding import prompt, reference, sums
from keepset.calibrate import activations
from keepset.decode import generate as gen, sparse_decoding
from keepset.errors import CacheError, ConfigError, ModelError
from keepset.hold.contexts import with_bos
from keepset.hold.inputs import watching
from keepset.kernels.selection import Selection
from keepset.kinds import find_sites
from keepset.measure.runner import Runner
from keepset.rules.rule import Rule, describe
from keepset.sites.ffn import find_ffn_sites

FAMILIES = ("opt", "llama", "qwen2", "gpt2", "phi3", "gpt_neox", "zamba2")
RULES = [
    Rule("magnitude", 0.5, 1),
    Rule("impact", 0.8, 1),
    Rule("magnitude", 0.5, 1, "causal"),
    Rule("magnitude", 0.7, 4, "causal"),
    Rule("impact", 0.7, 4, "causal"),
    Rule("magnitude", 0.7, 16, "causal"),
    Rule("magnitude", 0.6, "corpus"),
]


@pytest.mark.parametrize("rule", RULES, ids=describe)
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_equal_the_masked_references(tiny_model, family, rule):
    model = tiny_model(family)
    moments = sums(model)
    for length in (1, 6, 9):
        ids = prompt(length)
        new = gen.generate(model, ids, 14, rule, moments=moments).tokens
        assert torch.equal(new, reference(model, ids, 14, rule, moments))
        assert gen.disagreement(model, ids, new, rule, moments) is None


@pytest.mark.parametrize("rule", RULES, ids=describe)
@pytest.mark.parametrize("family", ["opt", "llama", "gpt2", "zamba2"])
def test_tokens_after_a_bos_token_equal_the_masked_references(tiny_model, family, rule):
    model = tiny_model(family)
    moments = sums(model)
    for length in (0, 1, 6):
        ids = prompt(length)
        new = gen.generate(model, ids, 14, rule, moments=moments, bos=7).tokens
        assert torch.equal(new, reference(model, ids, 14, rule, moments, bos=7))
        assert gen.disagreement(model, ids, new, rule, moments, bos=7) is None
        dense, sparse = gen.compare(model, ids, 14, rule, moments=moments, bos=7)
        assert torch.equal(sparse.tokens, new)
        assert torch.equal(dense.tokens, gen.generate(model, with_bos(ids, 7), 14).tokens)


@pytest.mark.parametrize("rule", RULES, ids=describe)
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_the_first_token_of_a_context_runs_dense(tiny_model, family, rule):
    """A rule that leaves out nearly everything leaves the first token alone."""
    model, ids = tiny_model(family), prompt(5)
    few = replace(rule, sparsity=0.97)
    with torch.inference_mode():
        dense = model(input_ids=ids, use_cache=False).logits
        with sparse_decoding(model, few, moments=sums(model)):
            out = model(input_ids=ids[:, :1], use_cache=True)
            later = model(input_ids=ids[:, 1:2], past_key_values=out.past_key_values).logits
            again = model(input_ids=ids, use_cache=True).logits
    torch.testing.assert_close(out.logits[:, 0], dense[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again[:, 0], dense[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again[:, 1], later[:, 0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(later[:, 0], dense[:, 1], atol=1e-2)


def test_a_static_prompt_is_masked_and_later_tokens_are_cut(tiny_model):
    model, ids, rule = tiny_model("llama"), prompt(6), Rule("magnitude", 0.5, "corpus")
    down = model.model.layers[0].mlp.down_proj
    with sparse_decoding(model, rule, moments=sums(model)), torch.inference_mode():
        out = model(input_ids=ids, use_cache=True)
        assert down.weight.shape[1] == 48
        model(input_ids=ids[:, :1], past_key_values=out.past_key_values)
        assert down.weight.shape[1] == 24
        model(input_ids=ids)
        assert down.weight.shape[1] == 48
        model(input_ids=ids[:, :1], past_key_values=out.past_key_values)
    assert down.weight.shape[1] == 48


@pytest.mark.parametrize("rule", [None, *RULES], ids=describe)
def test_nan_is_no_token(tiny_model, rule):
    model, ids = tiny_model("llama"), prompt(6)
    moments = sums(model)
    model.model.layers[1].mlp.gate_proj.weight.data[3, 0] = float("nan")
    with pytest.raises(ModelError, match=r"NaN.*model\.layers\.1\.mlp\.down_proj"):
        gen.generate(model, ids, 4, rule, moments=moments)
    with pytest.raises(ModelError, match=r"NaN.*model\.layers\.1\.mlp\.down_proj"):
        gen.disagreement(model, ids, torch.tensor([0, 0]), rule, moments)


def test_infinite_logits_are_refused(tiny_model):
    model, ids = tiny_model("llama"), prompt(6)
    model.lm_head.weight.data[5] = float("inf")
    rule = Rule("magnitude", 0.5, 1)
    with pytest.raises(ModelError, match="the logits are not finite under dynamic"):
        gen.generate(model, ids, 4, rule)
    with pytest.raises(ModelError, match="the logits are not finite under dynamic"):
        gen.disagreement(model, ids, torch.tensor([5, 5]), rule)


def test_a_prompt_with_tokens_without_a_row_is_refused(tiny_model):
    with pytest.raises(ModelError, match="the prompt: token id 260 is beyond the 260 rows"):
        gen.generate(tiny_model("llama"), torch.tensor([[5, 260]]), 4)


def test_one_token_has_no_rate(tiny_model):
    dense, sparse = gen.compare(tiny_model("llama"), prompt(6), 1, Rule("magnitude", 0.5, 1))
    assert len(dense.tokens) == len(sparse.tokens) == 1
    assert dense.rate == sparse.rate == 0.0


@pytest.mark.parametrize(("path", "width"), [("held", 1), ("held", 4), ("plain", 4)])
@pytest.mark.parametrize("family", ["opt", "llama", "gpt2", "phi3"])
def test_every_path_of_a_window_gives_the_same_tokens(tiny_model, family, path, width):
    model, ids = tiny_model(family), prompt(6)
    rule = Rule("magnitude", 0.7, width, "causal")
    dense = gen.generate(model, ids, 14).tokens
    run = gen.generate(model, ids, 14, rule, kernels=Selection(forced=[path, "bag"]))
    assert set(run.paths) <= ({"held"} if path == "held" else {"bag"})
    assert torch.equal(run.tokens, reference(model, ids, 14, rule, None))
    assert not torch.equal(run.tokens, dense)


@pytest.mark.parametrize("path", ["masked", "bag", "select"])
@pytest.mark.parametrize("family", ["opt", "llama", "gpt2"])
def test_every_path_of_a_dynamic_rule_gives_the_same_tokens(tiny_model, family, path):
    model, ids = tiny_model(family), prompt(6)
    rule = Rule("magnitude", 0.7, 1)
    run = gen.generate(model, ids, 14, rule, kernels=Selection(forced=[path]))
    assert set(run.paths) == {path}
    assert torch.equal(run.tokens, reference(model, ids, 14, rule, None))


@pytest.mark.parametrize("score", ["magnitude", "impact"])
@pytest.mark.parametrize("family", ["opt", "llama", "gpt2"])  # ReLU and bias, gate, Conv1D
def test_numba_decodes_the_references_tokens(tiny_model, family, score):
    model, ids = tiny_model(family), prompt(6)
    rule = Rule(score, 0.7, 1)
    run = gen.generate(model, ids, 14, rule, kernels="numba")
    assert run.paths["numba"] == 13 * len(find_ffn_sites(model))
    assert torch.equal(run.tokens, reference(model, ids, 14, rule, None))


def test_a_long_prompt_runs_as_a_passage_does(tiny_model):
    model, ids, rule = tiny_model("opt"), prompt(23), Rule("magnitude", 0.7, 1)
    sites = find_ffn_sites(model)
    runner = Runner(model, sites, kernels=Selection("torch"))
    with runner.holding(rule), torch.inference_mode():
        expected = model(input_ids=ids, use_cache=False).logits
    with sparse_decoding(model, rule, kernels="numba") as session, torch.inference_mode():
        assert torch.equal(model(input_ids=ids, use_cache=True).logits, expected)
    assert session.paths == {"numba": 23 * len(sites)}


def test_numba_decodes_in_low_precision(tiny_model):
    model, ids, rule = tiny_model("llama").bfloat16(), prompt(6), Rule("magnitude", 0.7, 1)
    tokens = gen.generate(model, ids, 14, rule, kernels="torch").tokens
    assert torch.equal(gen.generate(model, ids, 14, rule, kernels="numba").tokens, tokens)


def test_auto_times_numba_beside_torch_where_it_is_installed(tiny_model):
    model, rule, selection = tiny_model("llama"), Rule("magnitude", 0.7, 1), Selection()
    gen.generate(model, prompt(6), 3, rule, kernels=selection)
    timed = {key: set(took) for key, took in selection.crossovers_ms().items()}
    assert timed["dynamic magnitude kept=0.3 48x32 tokens=1 cpu float32 threads=1"] == {
        "torch",
        "numba",
    }
    assert timed["up 48x32 tokens=1 cpu float32 threads=1"] == {"torch", "numba"}


def test_without_numba_torch_decodes(tiny_model, without_numba):
    model, rule = tiny_model("llama"), Rule("magnitude", 0.7, 1)
    run = gen.generate(model, prompt(6), 4, rule)
    assert "numba" not in run.paths
    with pytest.raises(ConfigError, match=r"kernels.ffn: .*pip install numba"):
        gen.generate(model, prompt(6), 4, rule, kernels="numba")


def test_rows_of_a_batch_have_sets_of_their_own(tiny_model):
    model = tiny_model("llama")
    rows = torch.cat([prompt(6, seed) for seed in (1, 2)])
    for rule in RULES[:5]:
        with sparse_decoding(model, rule):
            out = model.generate(
                rows, attention_mask=torch.ones_like(rows), max_new_tokens=8, do_sample=False,
                eos_token_id=None,
            )  # fmt: skip
        for row, ids in zip(out, rows, strict=True):
            assert torch.equal(row[6:], reference(model, ids[None], 8, rule, None))


def test_several_tokens_at_once_go_on_with_the_window(tiny_model):
    model, rule, ids = tiny_model("llama"), Rule("magnitude", 0.7, 4, "causal"), prompt(23)
    runner = Runner(model, find_ffn_sites(model))
    with runner.holding(rule), torch.inference_mode():
        expected = model(input_ids=ids, use_cache=False).logits
    held = Selection(forced=["held"])
    with sparse_decoding(model, rule, kernels=held), torch.inference_mode():
        parts, cache = [], None
        for piece in ids.split([6, 1, 1, 5, 1, 1, 1, 7], dim=1):
            out = model(input_ids=piece, past_key_values=cache, use_cache=True)
            parts.append(out.logits)
            cache = out.past_key_values
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=1e-4, atol=1e-4)


def stopped_within(model, rule, ids):
    moments = sums(model)
    with sparse_decoding(model, rule, moments=moments, kernels=Selection(forced=["held"])):
        model.generate(ids, max_new_tokens=9, do_sample=False, eos_token_id=None)
        raise RuntimeError("stop")


def test_the_model_is_put_back(tiny_model):
    for family in ("llama", "gpt2"):
        model, ids = tiny_model(family), prompt(6)
        before = gen.generate(model, ids, 8).tokens
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for rule in RULES:
            with pytest.raises(RuntimeError, match="stop"):
                stopped_within(model, rule, ids)
            assert all(torch.equal(model.state_dict()[name], state[name]) for name in state)
            assert not any(m._forward_pre_hooks or "forward" in m.__dict__ for m in model.modules())
        assert torch.equal(gen.generate(model, ids, 8).tokens, before)


def test_given_sets_are_replayed(tiny_model):
    model, ids = tiny_model("llama"), prompt(11)
    rule = Rule("magnitude", 0.7, 4)
    sites = find_ffn_sites(model)
    sets = {site.key: torch.rand(4, site.n_units) < 0.3 for site in sites}

    def mask(site, h):
        held = h * sets[site.key].repeat_interleave(4, dim=0)[: h.shape[1]]
        return torch.cat([h[:, :1], held[:, 1:]], dim=1)

    with watching(model, sites, mask), torch.inference_mode():
        expected = model(input_ids=ids, use_cache=False).logits
    given = sparse_decoding(model, rule, given=sets, kernels=Selection(forced=["held"]))
    with given, torch.inference_mode():
        out = model(input_ids=ids[:, :3], use_cache=True)
        parts = [out.logits]
        for token in ids[:, 3:].split(1, dim=1):
            out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
            parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=1e-4, atol=1e-4)


def test_a_block_that_is_not_what_its_activation_says_is_computed_whole(tiny_model):
    model, ids = tiny_model("llama"), prompt(6)
    for layer in model.model.layers:
        layer.mlp.act_fn = torch.nn.Tanh()
    rule = Rule("magnitude", 0.7, 4, "causal")
    run = gen.generate(model, ids, 14, rule, kernels=Selection(forced=["held", "bag"]))
    assert "held" not in run.paths
    assert torch.equal(run.tokens, reference(model, ids, 14, rule, None))


def test_comparing_leaves_both_runs_what_they_are_alone(tiny_model):
    model, ids, rule = tiny_model("llama"), prompt(6), RULES[3]
    dense, sparse = gen.compare(model, ids, 12, rule)
    assert torch.equal(dense.tokens, gen.generate(model, ids, 12).tokens)
    assert torch.equal(sparse.tokens, gen.generate(model, ids, 12, rule).tokens)
    assert len(dense.steps_s) == 11
    other = gen.twin(model)
    assert all(a is b for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_generation_stops_after_a_stop_token(tiny_model):
    model, ids = tiny_model("llama"), prompt(6)
    tokens = gen.generate(model, ids, 9).tokens
    stopped = gen.generate(model, ids, 9, stop={int(tokens[2])}).tokens
    assert torch.equal(stopped, tokens[: tokens.tolist().index(int(tokens[2])) + 1])


def test_a_wrong_token_is_found(tiny_model):
    model, ids, rule = tiny_model("llama"), prompt(6), RULES[3]
    new = gen.generate(model, ids, 12, rule).tokens
    expected = int(new[5])
    new[5] = (expected + 1) % 260
    wrong = gen.disagreement(model, ids, new, rule)
    assert (wrong.index, wrong.expected, wrong.token) == (5, expected, int(new[5]))
    assert wrong.gap > 0


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule("random", 0.5, 1), "cannot choose while decoding"),
        (Rule("magnitude", 0.5, "sequence", "causal"), "still grows"),
        (Rule("magnitude", 0.5, 4), "yet to come"),
        (Rule("magnitude", 0.5, "corpus"), "activation cache"),
        (Rule("magnitude", 0.5, 1, site="state", access="read"), "only rules on FFN neurons"),
    ],
)
def test_rules_that_cannot_be_decoded_under(tiny_model, rule, message):
    with pytest.raises(ConfigError, match=message):
        gen.generate(tiny_model("llama"), prompt(), 4, rule)


@pytest.mark.parametrize("keep", ["dynamic:0.5", "windowed:4:0.5"])
def test_a_model_without_neurons_is_refused(tiny_model, keep):
    with pytest.raises(ModelError, match="the model has no neurons"):
        gen.generate(tiny_model("mamba2"), prompt(), 4, gen.parse_keep(keep))


def test_sites_of_all_kinds_may_be_given(tiny_model):
    model, rule = tiny_model("zamba2"), Rule("magnitude", 0.5, 1)
    with sparse_decoding(model, rule, sites=find_sites(model), kernels="torch") as session:
        model(input_ids=prompt())
    assert session.paths


def test_what_windows_cannot_follow_is_refused(tiny_model):
    model, ids = tiny_model("llama"), prompt(6)
    with sparse_decoding(model, RULES[3]), torch.inference_mode():
        with pytest.raises(ConfigError, match="padded"):
            model(input_ids=ids, attention_mask=torch.tensor([[0, 1, 1, 1, 1, 1]]))
        cache = model(input_ids=ids, use_cache=True).past_key_values
        cache.crop(-2)
        with pytest.raises(ConfigError, match="cache holds 4 tokens"):
            model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)


def test_empty_and_overlong_prompts(tiny_model):
    model = tiny_model("llama")
    with pytest.raises(ConfigError, match="a prompt of one token"):
        gen.generate(model, prompt(0), 4)
    with pytest.raises(ModelError, match=r"513 tokens .*; lower --tokens, or shorten the prompt"):
        gen.generate(model, prompt(500), 13)
    for several in (prompt(3).expand(2, -1), prompt(3)[0]):
        with pytest.raises(ConfigError, match="one prompt is continued"):
            gen.generate(model, several, 4)


def test_keep_rules_as_text():
    assert gen.parse_keep("dynamic:0.9") == Rule("magnitude", 0.9, 1)
    assert gen.parse_keep("windowed:16:0.5", "impact") == Rule("impact", 0.5, 16, "causal")
    assert gen.parse_keep("static:0.9").window == "corpus"
    for text in ("dynamic", "dynamic:x", "windowed:0.9", "windowed:1.5:0.9", "dense:0.9"):
        with pytest.raises(ConfigError, match="write dynamic:SPARSITY"):
            gen.parse_keep(text)
    with pytest.raises(ConfigError, match="sparsity must be"):
        gen.parse_keep("dynamic:1.5")


def test_a_cache_of_another_model_is_refused(tiny_model, tmp_path):
    path = tmp_path / "activations.safetensors"
    activations.save(sums(tiny_model("llama")), path, {"model": "this", "text": "t"})
    assert set(gen.read_moments(path, "this")) == {"ffn.000", "ffn.001"}
    with pytest.raises(CacheError, match="another model"):
        gen.read_moments(path, "that")
    with pytest.raises(CacheError, match="cannot be read"):
        gen.read_moments(tmp_path / "absent", "this")
