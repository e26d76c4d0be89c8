import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy

from keepset.calibrate import activations
from keepset.calibrate.sets import RankedSets
from keepset.errors import ModelError
from keepset.measure.runner import Runner
from keepset.rules.rule import Rule, describe
from keepset.sites.ffn import find_ffn_sites
from keepset.text import Encoded

RULES = [
    Rule("magnitude", 0.5, 1),
    Rule("magnitude", 0.5, 4),
    Rule("magnitude", 0.5, 4, "causal"),
    Rule("magnitude", 0.5, "corpus"),
    Rule("impact", 0.5, 1),
]


def blocks(rows=3, tokens=12, seed=2):
    return torch.randint(4, 260, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def runner(model, batch_tokens=24):
    sites = find_ffn_sites(model)
    moments = activations.collect_moments(
        model, sites, blocks(seed=5), gradients=False, batch_tokens=24
    )
    return Runner(model, sites, keep_sets=RankedSets(moments), batch_tokens=batch_tokens)


def test_dense_loss_equals_transformers_own(tiny_model):
    model = tiny_model("llama")
    for block, nll in zip(blocks(), runner(model).block_nll(blocks()), strict=True):
        with torch.inference_mode():
            expected = model(input_ids=block[None], labels=block[None]).loss
        assert float(nll) / (len(block) - 1) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("rule", RULES, ids=describe)
def test_batching_changes_nothing(tiny_model, rule):
    model = tiny_model("llama")
    lead_in = blocks(1, seed=9)
    results = [runner(model, size).block_nll(blocks(), rule, lead_in) for size in (12, 24, 100)]
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(results[0], results[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [1, 4, "sequence", "corpus"])
def test_sparsity_zero_reproduces_dense_bit_for_bit(tiny_model, window):
    run = runner(tiny_model("opt"))
    dense = run.block_nll(blocks())
    assert torch.equal(run.block_nll(blocks(), Rule("magnitude", 0.0, window)), dense)


def test_every_rule_leaves_the_model_as_it_was(tiny_model):
    run = runner(tiny_model("llama"))
    dense = run.block_nll(blocks())
    for rule in RULES:
        assert not torch.equal(run.block_nll(blocks(), rule, blocks(1, seed=9)), dense)
        assert torch.equal(run.block_nll(blocks()), dense)


def test_the_same_run_twice_is_identical(tiny_model):
    for rule in (*RULES, Rule("random", 0.5, 1, seed=3)):
        pair = [
            runner(tiny_model("llama")).block_nll(blocks(), rule, blocks(1, seed=9))
            for _ in range(2)
        ]
        assert torch.equal(*pair)


def test_causal_at_the_start_uses_the_text_before(tiny_model):
    run = runner(tiny_model("llama"))
    rule = Rule("magnitude", 0.8, "sequence", "causal")
    one, other = (run.block_nll(blocks(), rule, blocks(1, seed=seed)) for seed in (9, 10))
    assert one[0] != other[0]
    whole = torch.cat([blocks(1, seed=9), blocks()])
    dense_first = run.lead_in_scores(rule, whole[:1])
    assert torch.equal(
        dense_first["ffn.000"], run.lead_in_scores(rule, blocks(1, seed=9))["ffn.000"]
    )


def test_nan_names_the_layer(tiny_model):
    model = tiny_model("llama")
    run = runner(model)
    model.model.layers[1].mlp.up_proj.weight.data[3, 0] = float("nan")
    with pytest.raises(ModelError, match=r"NaN.*model\.layers\.1\.mlp\.down_proj"):
        run.block_nll(blocks())
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.down_proj"):
        activations.collect_moments(model, run.sites, blocks(), gradients=False, batch_tokens=24)


def items():
    generator = torch.Generator().manual_seed(4)
    lengths = [(9, 2), (5, 1), (12, 3), (7, 1), (9, 1)]
    return [
        Encoded(torch.randint(4, 260, (n,), generator=generator).tolist(), n - target)
        for n, target in lengths
    ]


@pytest.mark.parametrize("family", ["llama", "opt", "mamba2"])
def test_last_words_match_one_plain_pass_per_item(tiny_model, family):
    model = tiny_model(family)
    sites = [] if family == "mamba2" else find_ffn_sites(model)
    table = Runner(model, sites, batch_tokens=30).last_words(items())
    for item, row in zip(items(), table.itertuples(), strict=True):
        ids = torch.tensor([item.ids])
        with torch.inference_mode():
            scores = model(input_ids=ids).logits[0, item.target_start - 1 : -1]
        target = ids[0, item.target_start :]
        expected = -cross_entropy(scores, target, reduction="sum")
        assert row.logprob == pytest.approx(float(expected), rel=1e-4)
        assert row.correct == bool((scores.argmax(dim=-1) == target).all())


def test_a_predicted_target_counts_as_correct(tiny_model):
    model = tiny_model("llama")
    context = items()[0].ids
    with torch.inference_mode():
        best = int(model(input_ids=torch.tensor([context])).logits[0, -1].argmax())
    right = Encoded([*context, best], len(context))
    wrong = Encoded([*context, (best + 1) % 260], len(context))
    table = Runner(model, find_ffn_sites(model)).last_words([right, wrong])
    assert table["correct"].tolist() == [True, False]


@pytest.mark.parametrize("rule", RULES, ids=describe)
def test_items_do_not_feel_their_batch(tiny_model, rule):
    model = tiny_model("llama")
    together = runner(model, 1000).last_words(items(), rule)
    alone = [runner(model, 1).last_words([item], rule) for item in items()]
    pd.testing.assert_frame_equal(
        together, pd.concat(alone, ignore_index=True), rtol=1e-4, check_exact=False
    )


def test_text_longer_than_the_model_is_refused(tiny_model):
    model = tiny_model("opt", max_position_embeddings=16)
    runner = Runner(model, find_ffn_sites(model))
    with pytest.raises(ModelError, match=r"17 tokens are too long for a model of 16 .* text.block"):
        runner.block_nll(torch.ones(1, 17, dtype=torch.long))
    with pytest.raises(ModelError, match=r"passages \(item 3\) of 20 tokens .* the length"):
        runner.last_words([Encoded(list(range(4, 24)), 18, item=3, remedy="the length")])


def test_the_head_is_handed_a_contiguous_slice(tiny_model):
    """Of the slice itself, torch would copy the head's weights once per row of the batch."""
    model = tiny_model("llama")
    seen = []
    head = model.get_output_embeddings()
    with head.register_forward_hook(lambda _, args, __: seen.append(args[0])):
        Runner(model, find_ffn_sites(model)).last_words(items())
    assert seen
    assert all(hidden.is_contiguous() and hidden.shape[1] < 12 for hidden in seen)
    assert not head._forward_pre_hooks
