"""Decoding under recipes: the tokens of the masked reference, and every weight as it was."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from decoding import prompt
from keepset.calibrate import activations
from keepset.calibrate.sets import RankedSets
from keepset.decode import sparse_decoding
from keepset.decode.generate import compare, disagreement, generate
from keepset.decode.joined import JoinedBlock
from keepset.decode.layout import unit_major
from keepset.decode.recipe import linear_sites
from keepset.errors import ConfigError, KernelError, ModelError
from keepset.kernels.selection import NUMBA, TRITON_DOWN, Selection
from keepset.kinds import find_sites
from keepset.kinds.recipes import hold_recipe
from keepset.rules.masks import top_mask
from keepset.rules.recipe import Recipe
from keepset.rules.rule import Rule, n_kept

pytest.importorskip("keepset.kernels.numba_jit", exc_type=KernelError)

BY_KERNEL = Selection("numba")
TOKENS, PROMPT = 6, 5
SHARES = (0.3, 0.5, 0.7)


def mixed(model, score="magnitude"):
    """A recipe with a share of its own for every site."""
    return Recipe(
        {
            site.key: Rule(score, SHARES[place % 3], 1, site=site.kind)
            for place, site in enumerate(linear_sites(model))
        }
    )


def greedy(model, ids, tokens=TOKENS):
    """New tokens and their logits, with a cache: rows (batch, tokens)."""
    logits, rows, cache = [], [], {}
    name = "cache_params" if model.config.model_type == "mamba2" else "past_key_values"
    with torch.inference_mode():
        for _ in range(tokens):
            out = model(input_ids=ids, use_cache=True, **cache)
            logits.append(out.logits[:, -1])
            ids, cache = logits[-1].argmax(dim=-1)[:, None], {name: out[name]}
            rows.append(ids)
    return torch.cat(rows, dim=1), torch.stack(logits, dim=1)


def reference(model, ids, recipe, tokens=TOKENS):
    """The same by running whole masked passages in torch."""
    logits = []
    with hold_recipe(model, find_sites(model), recipe), torch.inference_mode():
        for _ in range(tokens):
            logits.append(model(input_ids=ids, use_cache=False).logits[:, -1])
            ids = torch.cat([ids, logits[-1].argmax(dim=-1)[:, None]], dim=1)
    return ids[:, -tokens:], torch.stack(logits, dim=1)


def parameters(model):
    return {name: (value.clone(), value.stride()) for name, value in model.named_parameters()}


def assert_as_before(model, before):
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name][0])
        assert value.stride() == before[name][1]
    assert not any("forward" in vars(module) for module in model.modules())


def check(model, recipe, ids=None, kernels=BY_KERNEL, rule=None):
    """The paths of decoding under `recipe`; tokens and logits are the reference's.

    `rule` says the same in another way.
    """
    ids = prompt(PROMPT) if ids is None else ids
    before = parameters(model)
    with sparse_decoding(model, rule or recipe, kernels=kernels) as session:
        decoded, logits = greedy(model, ids)
    assert_as_before(model, before)
    expected, expected_logits = reference(model, ids, recipe)
    assert torch.equal(decoded, expected)
    torch.testing.assert_close(logits, expected_logits, atol=2e-4, rtol=1e-3)
    return session.paths


# Gate; biases and ReLU; Conv1D; one map for q, k and v, and for gate and up; states alone; states
# and attention.
@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "phi3", "mamba2", "granitemoehybrid"])
def test_tokens_equal_the_masked_references(tiny_model, family):
    model = tiny_model(family)
    paths = check(model, mixed(model))
    assert paths[NUMBA] > 0


def centred(model):
    """A recipe by `centred`, with centres that matter; the first site has a threshold."""
    recipe = mixed(model, "magnitude")
    rules = {key: replace(rule, score="centred") for key, rule in recipe.rules.items()}
    centres = {key: 0.02 * (place - 3) for place, key in enumerate(rules)}
    return Recipe(rules, {next(iter(rules)): 0.02}, centres=centres)


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "phi3", "mamba2"])
def test_what_is_left_out_takes_its_centre(tiny_model, family):
    model = tiny_model(family)
    recipe = centred(model)
    assert check(model, recipe)[NUMBA] > 0
    zeroed = Recipe(recipe.rules, recipe.thresholds, centres=dict.fromkeys(recipe.rules, 0.0))
    ids = prompt(PROMPT)
    assert not torch.equal(reference(model, ids, recipe)[1], reference(model, ids, zeroed)[1])


def test_centres_on_a_gpu(tiny_model):
    """In Triton's interpreter."""
    model = tiny_model("llama")
    paths = check(model, centred(model), kernels="triton")
    assert paths == {TRITON_DOWN: 2 * 4 * (TOKENS - 1)}


def test_every_site_of_a_plain_model_runs_by_kernel(tiny_model):
    model = tiny_model("llama")
    # Per layer q/k/v, o, gate/up and down; the prompt runs masked.
    assert check(model, mixed(model)) == {NUMBA: 2 * 4 * (TOKENS - 1)}


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_kernels_of_a_gpu_give_the_same_tokens(tiny_model, family):
    """In Triton's interpreter; with exact shares, thresholds and a static set."""
    model = tiny_model(family)
    recipe = mixed(model)
    first, *_, last = recipe.rules
    static = Rule("magnitude", 0.5, "corpus", site=last.partition(".")[0])
    units = next(site.n_units for site in linear_sites(model) if site.key == last)
    recipe = Recipe({**recipe.rules, last: static}, {first: 0.02}, {last: list(range(0, units, 2))})
    paths = check(model, recipe, kernels="triton")
    assert paths == {TRITON_DOWN: 2 * 4 * (TOKENS - 1)}


def test_one_rule_on_inputs_is_a_recipe_of_all_of_them(tiny_model):
    model, rule = tiny_model("llama"), Rule("impact", 0.4, 1, site="input")
    inputs = [site.key for site in linear_sites(model) if site.kind == "input"]
    paths = check(model, Recipe(dict.fromkeys(inputs, rule)), rule=rule)
    assert paths == {NUMBA: 2 * 3 * (TOKENS - 1)}


@pytest.fixture
def joined_runs(monkeypatch):
    """The blocks that run as one step, a module at every token."""
    runs, tokens = [], JoinedBlock._tokens

    def counted(block, x):
        runs.append(block._module)
        return tokens(block, x)

    monkeypatch.setattr(JoinedBlock, "_tokens", counted)
    return runs


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_a_block_with_rules_at_both_its_sites_is_one_step(tiny_model, family, joined_runs):
    model = tiny_model(family)
    check(model, mixed(model))
    assert list(Counter(joined_runs).values()) == [TOKENS - 1] * 2


def test_a_block_that_does_more_than_its_layout_says_runs_itself(tiny_model, joined_runs):
    model = tiny_model("llama")
    model.model.layers[0].mlp.act_fn = torch.nn.Tanh()
    check(model, mixed(model))
    runs = Counter(joined_runs)
    assert runs[model.model.layers[0].mlp] == 1  # the trial
    assert runs[model.model.layers[1].mlp] == TOKENS - 1


def test_an_empty_recipe_is_dense(tiny_model):
    assert not check(tiny_model("llama"), Recipe({}))


@pytest.mark.parametrize("kernels", [BY_KERNEL, "torch"], ids=["numba", "torch"])
def test_thresholds_and_static_sets(tiny_model, kernels):
    model = tiny_model("opt")
    rules, keys = dict(mixed(model).rules), [site.key for site in linear_sites(model)]
    thresholds = {key: 0.02 * place for place, key in enumerate(keys[1:-1:2])}
    rules["ffn.000"] = Rule("magnitude", 0.4, "corpus")
    rules[keys[-1]] = Rule("impact", 0.4, "corpus", site="input")
    kept = {"ffn.000": list(range(1, 48, 2)), keys[-1]: [0, 3, 5, 31]}
    check(model, Recipe(rules, thresholds, kept), kernels=kernels)


def test_one_static_rule_on_inputs(tiny_model):
    model, rule = tiny_model("llama"), Rule("magnitude", 0.4, "corpus", site="input")
    sites = linear_sites(model)
    sums = activations.collect_moments(model, sites, prompt(24, seed=9), gradients=False)
    masks = RankedSets(sums, "input")[rule]
    kept = {key: mask.nonzero()[:, 0].tolist() for key, mask in masks.items()}
    expected, _ = reference(model, prompt(PROMPT), Recipe(dict.fromkeys(kept, rule), kept=kept))
    decoded = generate(model, prompt(PROMPT), TOKENS, rule, moments=sums, kernels=BY_KERNEL)
    assert torch.equal(decoded.tokens, expected[0])


def test_channels_of_a_state_are_left_out_beside_inputs(tiny_model):
    model = tiny_model("mamba2")
    state = Rule("ghost", 0.5, "corpus", site="state")
    (site,) = (site for site in find_sites(model, ["state"]) if site.key == "state.001")
    kept = {site.key: [list(range(0, site.n_state, 2))] * site.n_groups}
    check(model, Recipe({**mixed(model).rules, site.key: state}, kept=kept))


def test_gates_choose_by_masks(tiny_model):
    model = tiny_model("llama")
    rules = dict(mixed(model).rules)
    recipe = Recipe(rules | {"ffn.001": Rule("gate", 0.5, 1)})
    assert check(model, recipe)["masked"] == PROMPT + TOKENS - 1


# Weights that depths share wholly, by modules of their own; in part, with adapters; experts.
@pytest.mark.parametrize(("family", "masked"), [("zamba", 0), ("zamba2", 8), ("mixtral", 4)])
def test_what_no_kernel_can_run_is_masked(tiny_model, family, masked):
    model = tiny_model(family)
    sites = check(model, mixed(model))["masked"] / (PROMPT + TOKENS - 1)
    assert sites == masked


def test_a_module_that_depths_share_is_masked(tiny_model):
    model = tiny_model("llama")
    model.model.layers[1].mlp = model.model.layers[0].mlp
    assert check(model, mixed(model))["masked"] == 4 * (PROMPT + TOKENS - 1)


def test_without_kernels_everything_is_masked(tiny_model):
    model = tiny_model("llama")
    assert check(model, mixed(model), kernels="torch").keys() == {"masked"}


def test_rows_of_a_batch_choose_for_themselves(tiny_model):
    model = tiny_model("llama")
    rows = torch.cat([prompt(PROMPT, seed) for seed in (1, 2, 3)])
    assert check(model, mixed(model), ids=rows) == {NUMBA: 3 * 2 * 4 * (TOKENS - 1)}


@pytest.mark.parametrize("family", ["llama", "mamba2"])
def test_generate_goes_on_and_begins_again(tiny_model, family):
    """Caches that exist before the first token, and a second context after the first."""
    model, ids = tiny_model(family), prompt(PROMPT)
    recipe = mixed(model)
    with sparse_decoding(model, recipe, kernels=BY_KERNEL):
        runs = [
            model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False,
                eos_token_id=None,
            )
            for _ in range(2)
        ]  # fmt: skip
    expected, _ = reference(model, ids, recipe)
    for run in runs:
        assert torch.equal(run[:, PROMPT:], expected)


def test_a_context_that_opens_in_pieces(tiny_model):
    """Only the first token of a context is dense: not that of its second piece."""
    model, ids = tiny_model("llama"), prompt(24)
    recipe = mixed(model)
    with sparse_decoding(model, recipe, kernels=BY_KERNEL), torch.inference_mode():
        first = model(input_ids=ids[:, :1], use_cache=True)
        few = model(input_ids=ids[:, 1:4], past_key_values=first.past_key_values, use_cache=True)
        many = model(input_ids=ids[:, 4:], past_key_values=few.past_key_values, use_cache=True)
    _, expected = reference(model, ids, recipe, tokens=1)
    torch.testing.assert_close(many.logits[:, -1:], expected, atol=2e-4, rtol=1e-3)


def test_outputs_are_handed_out_to_who_reads_the_same_tensor(tiny_model):
    model = tiny_model("llama")
    attention, recipe = model.model.layers[0].self_attn, mixed(model)
    site = next(site for site in linear_sites(model) if attention.q_proj in dict(site.readers))
    k = n_kept(site.n_units, recipe.rules[site.key].sparsity)
    one, other = (torch.randn(1, 1, site.n_units) for _ in range(2))
    # In another order than the model's; the same map again; another tensor in between.
    calls = [("k", one), ("q", one), ("q", one), ("k", other), ("v", one), ("q", other)]
    with sparse_decoding(model, recipe, kernels=BY_KERNEL) as session, torch.inference_mode():
        greedy(model, prompt(PROMPT), 2)
        before = session.paths[NUMBA]
        outs = [getattr(attention, f"{name}_proj")(x) for name, x in calls]
    assert session.paths[NUMBA] == before + 5  # all but the second call
    for (name, x), out in zip(calls, outs, strict=True):
        held = x * top_mask(x.abs(), k)
        torch.testing.assert_close(out, getattr(attention, f"{name}_proj")(held))


@pytest.mark.parametrize("is_centred", [False, True])
def test_bfloat16_runs_by_kernel(tiny_model, is_centred):
    model = tiny_model("opt").bfloat16()
    recipe = centred(model) if is_centred else mixed(model)
    with sparse_decoding(model, recipe, kernels=BY_KERNEL) as session:
        _, logits = greedy(model, prompt(PROMPT))
    _, expected = reference(model, prompt(PROMPT), recipe, tokens=1)
    assert session.paths == {NUMBA: 2 * 4 * (TOKENS - 1)}
    torch.testing.assert_close(logits[:, :1], expected, atol=0.05, rtol=0.05)


def test_what_is_not_a_number_is_refused_by_name(tiny_model):
    model = tiny_model("llama")
    with sparse_decoding(model, mixed(model), kernels=BY_KERNEL), torch.inference_mode():
        out = model(input_ids=prompt(PROMPT), use_cache=True)
        model.model.layers[1].self_attn.o_proj.weight.fill_(torch.nan)
        with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.gate_proj"):
            model(input_ids=prompt(1), past_key_values=out.past_key_values, use_cache=True)


def test_everything_is_put_back_after_an_exception(tiny_model):
    model = tiny_model("llama")
    before = parameters(model)
    held = sparse_decoding(model, mixed(model), kernels=BY_KERNEL)
    with pytest.raises(ModelError, match="NaN"), held:  # noqa: PT012
        weight = model.model.layers[0].mlp.gate_proj.weight
        assert not weight.is_contiguous()
        raise ModelError("NaN")
    assert_as_before(model, before)


def test_weights_are_stored_once(tiny_model):
    model = tiny_model("llama")
    mlp = model.model.layers[0].mlp
    with sparse_decoding(model, mixed(model), kernels=BY_KERNEL):
        gate, up = mlp.gate_proj.weight, mlp.up_proj.weight
        shared = gate.untyped_storage()
        assert shared.data_ptr() == up.untyped_storage().data_ptr()
        assert shared.nbytes() == gate.nbytes + up.nbytes


def test_nothing_is_kept_of_the_other_layout(tiny_model):
    sites = linear_sites(tiny_model("llama"))
    with unit_major(sites) as rows:
        assert all(len(rows[site.key]) == site.n_units for site in sites)
    assert not any(len(one) for one in rows.values())


def refused(lm, rules, match, error=ConfigError, **parts):
    with pytest.raises(error, match=match), sparse_decoding(lm, Recipe(rules, **parts)):
        pass


def test_recipes_that_do_not_fit_are_refused(tiny_model):
    model, ffn = tiny_model("llama"), Rule("magnitude", 0.5, 1)
    refused(model, {"ffn.007": ffn}, "the recipe names ffn.007", ModelError)
    refused(model, {"ffn.000": Rule("random", 0.5, 1)}, "ffn.000: score random cannot choose")
    refused(model, {"ffn.000": ffn}, "made with token 3 before every text", bos=3)
    owner = {"name": "another", "weights": "0" * 64}
    refused(model, {"ffn.000": ffn}, "belongs to another", ModelError, model=owner)


def test_a_cache_that_does_not_say_what_it_holds_is_refused(tiny_model):
    """Each token would count as the first of a context, and run dense."""
    model = tiny_model("rwkv")
    held = sparse_decoding(model, Rule("magnitude", 0.5, 1), kernels="torch")
    with held, pytest.raises(ConfigError, match="does not say whether it holds tokens"):
        model.generate(prompt(PROMPT), max_new_tokens=3, do_sample=False, eos_token_id=None)


def test_dense_and_a_recipe_take_turns(tiny_model):
    model = tiny_model("llama")
    recipe = mixed(model)
    dense, sparse = compare(model, prompt(PROMPT), TOKENS, recipe, kernels=BY_KERNEL)
    assert torch.equal(dense.tokens, greedy(model, prompt(PROMPT))[0][0])
    with sparse_decoding(model, recipe, kernels=BY_KERNEL):
        assert torch.equal(sparse.tokens, greedy(model, prompt(PROMPT))[0][0])
    assert disagreement(model, prompt(PROMPT), sparse.tokens, recipe) is None
    wrong = disagreement(model, prompt(PROMPT), sparse.tokens + 1, recipe)
    assert wrong is not None
    again = generate(model, prompt(PROMPT), TOKENS, recipe, kernels=BY_KERNEL)
    assert torch.equal(again.tokens, sparse.tokens)
    assert again.paths == sparse.paths
