import re

import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy

from keepset import kinds
from keepset.calibrate import activations
from keepset.calibrate.sets import RankedSets
from keepset.errors import ConfigError, ModelError
from keepset.measure.runner import Runner, perplexity
from keepset.rules.rule import Rule, describe
from keepset.sites.ffn import find_ffn_sites
from keepset.text import Encoded
from naive_rules import row_masks

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
    lead_in = blocks(seed=9)
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
        assert not torch.equal(run.block_nll(blocks(), rule, blocks(seed=9)), dense)
        assert torch.equal(run.block_nll(blocks()), dense)


def test_the_same_run_twice_is_identical(tiny_model):
    for rule in (*RULES, Rule("random", 0.5, 1, seed=3)):
        pair = [
            runner(tiny_model("llama")).block_nll(blocks(), rule, blocks(seed=9)) for _ in range(2)
        ]
        assert torch.equal(*pair)


def naive_nll(model, run, row, rule, bos=None, before=None):
    """A block's loss, token by token as rules are defined: one site sees dense activations."""
    (site,) = run.sites
    static = run._keep_sets[rule][site.key] if rule.window == "corpus" else None
    context = row if bos is None else torch.cat([torch.tensor([bos]), row])

    def mask(_, args):
        masks = row_masks(args[0][0], rule, bos=bos is not None, before=before, static=static)
        return (args[0] * masks,)

    handle = site.down.register_forward_pre_hook(mask)
    with torch.inference_mode():
        logits = model(input_ids=context[None], use_cache=False).logits[0, :-1]
    handle.remove()
    return cross_entropy(logits.double(), context[1:], reduction="none")


def lead_in_means(model, site, row, width, bos=None):
    """Mean |h| over the last tokens of a text that is run dense."""
    context = row if bos is None else torch.cat([torch.tensor([bos]), row])
    seen = []
    handle = site.down.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    with torch.inference_mode():
        model(input_ids=context[None], use_cache=False)
    handle.remove()
    return seen[0][-width:].abs().mean(dim=0)


CASES = [
    Rule("magnitude", 0.5, 1),
    Rule("magnitude", 0.5, "corpus"),
    Rule("magnitude", 0.5, 4),
    Rule("magnitude", 0.5, "sequence"),
    *(Rule("magnitude", 0.5, window, "causal") for window in (1, 4, "sequence")),
]


def one_layer(model, bos, batch_tokens=30):
    sites = find_ffn_sites(model)
    moments = activations.collect_moments(model, sites, blocks(seed=5), batch_tokens=24)
    keep_sets = RankedSets(moments)
    return Runner(model, sites, keep_sets=keep_sets, batch_tokens=batch_tokens, bos=bos)


@pytest.mark.parametrize("bos", [None, 7], ids=["text", "bos"])
@pytest.mark.parametrize("rule", CASES, ids=describe)
def test_losses_are_those_of_the_rule_token_by_token(tiny_model, rule, bos):
    model = tiny_model("llama", num_hidden_layers=1)
    run, lead_in = one_layer(model, bos), blocks(seed=9)
    nll = run.block_nll(blocks(), rule, lead_in)
    width = rule.window if isinstance(rule.window, int) else 12
    for row, before, found in zip(blocks(), lead_in, nll, strict=True):
        scores = lead_in_means(model, run.sites[0], before, width, bos)
        expected = naive_nll(model, run, row, rule, bos, scores).sum()
        assert float(found) == pytest.approx(float(expected), rel=1e-5)
    alone = run.block_nll(blocks(), rule)  # nothing stands before
    for row, found in zip(blocks(), alone, strict=True):
        expected = naive_nll(model, run, row, rule, bos).sum()
        assert float(found) == pytest.approx(float(expected), rel=1e-5)
    # A first window of one token that is run dense anyway uses nothing before it.
    uses_lead_in = rule.choice == "causal" and (rule.window != 1 or bos is not None)
    assert bool((nll != alone).any()) == uses_lead_in


def test_a_bos_token_makes_the_first_token_count(tiny_model):
    model = tiny_model("llama")
    run = Runner(model, find_ffn_sites(model), bos=7)
    assert (run.n_predicted(blocks()), runner(model).n_predicted(blocks())) == (3 * 12, 3 * 11)
    with torch.inference_mode():
        logits = model(input_ids=torch.cat([torch.full((3, 1), 7), blocks()], dim=1)).logits
    losses = cross_entropy(logits[:, :-1].flatten(0, 1), blocks().flatten(), reduction="none")
    expected = losses.view(3, 12).sum(dim=1).double()
    torch.testing.assert_close(run.block_nll(blocks()), expected, rtol=1e-5, atol=1e-5)
    assert perplexity(run, blocks()) == pytest.approx(float(losses.mean().exp()), rel=1e-5)


def test_lead_ins_belong_to_their_blocks(tiny_model):
    run, rule = runner(tiny_model("llama")), Rule("magnitude", 0.8, "sequence", "causal")
    one = run.block_nll(blocks(), rule, blocks(seed=9))
    changed = blocks(seed=9)
    changed[1] = blocks(seed=10)[1]
    other = run.block_nll(blocks(), rule, changed)
    assert (one != other).tolist() == [False, True, False]
    with pytest.raises(ConfigError, match="3 blocks need as many lead-ins, got 1"):
        run.block_nll(blocks(), rule, blocks(1))


@pytest.mark.parametrize(("family", "kind"), [("llama", "ffn"), ("mamba2", "state")])
@pytest.mark.parametrize("bos", [None, 7], ids=["text", "bos"])
@pytest.mark.parametrize(("most", "passes"), [(2**28, 1), (1, 6)], ids=["room", "no room"])
def test_one_pass_scores_lead_ins_for_all_rules(
    tiny_model, monkeypatch, family, kind, bos, most, passes
):
    model, texts = tiny_model(family), blocks(seed=9)
    names = ["magnitude", "impact"] if kind == "ffn" else ["magnitude", "random"]
    access = "none" if kind == "ffn" else "read"
    words = {"choice": "causal", "site": kind, "access": access}
    rules = [Rule(names[0], 0.5, window, **words) for window in (1, 4, "sequence", 12)]
    rules += [Rule(names[0], 0.8, 4, **words), Rule(names[1], 0.5, 4, **words)]
    oracle = Rule(names[0], 0.5, 2, site=kind, access=access)
    rules += [Rule(names[1], 0.5, 3, **words), None, oracle]
    run = Runner(model, kinds.find_sites(model), batch_tokens=30, bos=bos)
    alone = [run.block_nll(blocks(), rule, texts) for rule in rules]
    monkeypatch.setattr("keepset.measure.runner._LEAD_IN_BYTES", most)
    seen, module = [], kinds.of(kind)
    original = module.lead_in_scores
    count = lambda *args: seen.append(len(args[2])) or original(*args)  # noqa: E731
    monkeypatch.setattr(module, "lead_in_scores", count)
    run = Runner(model, kinds.find_sites(model), batch_tokens=30, bos=bos)
    for place, (rule, nll) in enumerate(zip(rules, alone, strict=True)):
        assert torch.equal(nll, run.block_nll(blocks(), rule, texts, coming=rules[place + 1 :]))
    # Two batches a pass; the fourth window is the third. Another sparsity is no other score,
    # but where there is no room, its scores are gone.
    n_batches = 2
    assert len(seen) == passes * n_batches
    assert max(seen) == (5 if passes == 1 else 1)


def test_noise_changes_dynamic_rules_a_little(tiny_model):
    run = runner(tiny_model("llama"))
    rule = Rule("magnitude", 0.5, 1)
    plain, one, same, other = (run.block_nll(blocks(), rule, noise=n) for n in (None, 1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    torch.testing.assert_close(plain, one, rtol=1e-3, atol=0)


def broken(model):
    model.model.layers[1].mlp.up_proj.weight.data[3, 0] = float("nan")
    return model


def test_nan_names_the_layer(tiny_model):
    model = tiny_model("llama")
    run = runner(model)
    broken(model)
    with pytest.raises(ModelError, match=r"NaN.*model\.layers\.1\.mlp\.down_proj"):
        run.block_nll(blocks())
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.down_proj"):
        activations.collect_moments(model, run.sites, blocks(), gradients=False, batch_tokens=24)


@pytest.mark.parametrize("rule", [None, *RULES], ids=describe)
def test_nan_gives_no_answer_to_a_task(tiny_model, rule):
    model = tiny_model("llama")
    run = runner(model)
    broken(model)
    message = rf"NaN.*model\.layers\.1\.mlp\.down_proj under {re.escape(describe(rule))}"
    with pytest.raises(ModelError, match=message):
        run.last_words(items(), rule)
    with pytest.raises(ModelError, match=message):
        run.block_nll(blocks(), rule, blocks(seed=9))


def test_an_infinite_weight_behind_all_sites_is_refused(tiny_model):
    model = tiny_model("llama")
    run = runner(model)
    model.model.norm.weight.data[0] = float("inf")
    with pytest.raises(ModelError, match="a target's log-probability is not finite under dense"):
        run.last_words(items())


def test_tokens_without_a_row_are_refused(tiny_model):
    run = runner(tiny_model("llama"))
    beyond = blocks()
    beyond[2, 3] = 260
    with pytest.raises(ModelError, match="blocks: token id 260 is beyond the 260 rows"):
        run.block_nll(beyond)
    rule = Rule("magnitude", 0.5, 4, "causal")
    with pytest.raises(ModelError, match="lead-ins: token id 260"):
        run.block_nll(blocks(), rule, beyond)
    for ids in ([5, 260, 6], [5, 6, 260]):
        with pytest.raises(ModelError, match="item 1: token id 260"):
            run.last_words([items()[0], Encoded(ids, 2, item=1)])


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


@pytest.mark.parametrize("bos", [None, 7], ids=["text", "bos"])
@pytest.mark.parametrize("rule", CASES, ids=describe)
def test_items_run_under_the_rule_token_by_token(tiny_model, rule, bos):
    model = tiny_model("llama", num_hidden_layers=1)
    run = one_layer(model, bos, batch_tokens=1000)
    for item, logprob in zip(items(), run.last_words(items(), rule)["logprob"], strict=True):
        # The last token is predicted, but not read: it is in no window.
        read, last = torch.tensor(item.ids[:-1]), torch.tensor(item.ids[-1:])
        losses = naive_nll(model, run, read, rule, bos)
        n_target = len(item.ids) - item.target_start
        expected = -losses[len(losses) - n_target + 1 :].sum() if n_target > 1 else 0.0
        expected = float(expected) + last_logprob(model, run, read, last, rule, bos)
        assert logprob == pytest.approx(expected, rel=1e-4, abs=1e-5)


def last_logprob(model, run, read, last, rule, bos):
    """Of the token that comes after a text: the windows are those of the text alone."""
    head = []
    handle = model.register_forward_hook(lambda _, __, out: head.append(out.logits[0, -1]))
    naive_nll(model, run, read, rule, bos)
    handle.remove()
    return float(head[0].double().log_softmax(dim=-1)[last])


@pytest.mark.parametrize("rule", [None, *RULES], ids=describe)
def test_a_target_may_stand_behind_a_bos_token_alone(tiny_model, rule):
    model, run = tiny_model("llama"), runner(tiny_model("llama"))
    run.bos = 7
    with torch.inference_mode():
        scores = model(input_ids=torch.tensor([[7]])).logits[0, 0].log_softmax(dim=-1)
    table = run.last_words([Encoded([9], 0)], rule)
    assert float(table["logprob"][0]) == pytest.approx(float(scores[9]), rel=1e-5)


def test_a_bos_token_alone_may_be_the_context(tiny_model):
    model = tiny_model("llama")
    table = Runner(model, find_ffn_sites(model), bos=7).last_words([Encoded([9, 11], 0)])
    with torch.inference_mode():
        scores = model(input_ids=torch.tensor([[7, 9]])).logits[0].log_softmax(dim=-1)
    expected = float(scores[0, 9] + scores[1, 11])
    assert float(table["logprob"][0]) == pytest.approx(expected, rel=1e-5)


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
    # The last token of a passage is only predicted: 17 tokens are as many as 16 positions take.
    assert len(runner.last_words([Encoded(list(range(4, 21)), 16)])) == 1
    with pytest.raises(ModelError, match=r"passages \(item 3\) of 17 tokens .* the length"):
        runner.last_words([Encoded(list(range(4, 22)), 16, item=3, remedy="the length")])


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


def test_text_in_which_nothing_is_predicted_is_refused(tiny_model):
    run = runner(tiny_model("llama"))
    for nothing in (blocks()[:, :1], blocks()[:0], blocks()[:, :0]):
        with pytest.raises(ConfigError, match="no token is predicted"):
            perplexity(run, nothing)
    rule = Rule("magnitude", 0.8, 4, "causal")
    with pytest.raises(ConfigError, match="3 blocks need as many lead-ins, got 3 of 0 tokens"):
        run.block_nll(blocks(), rule, blocks()[:, :0])
    with pytest.raises(ConfigError, match="no items"):
        run.last_words([])


def test_ids_that_no_model_knows_are_refused(tiny_model):
    with pytest.raises(ModelError, match="the BOS token: token id 9999 is beyond"):
        Runner(tiny_model("llama"), [], bos=9999)
    with pytest.raises(ModelError, match="blocks: -100 is no token id"):
        runner(tiny_model("llama")).block_nll(blocks() * 0 - 100)
