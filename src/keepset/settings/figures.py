"""The registry of figures; the function `draw` of `keepset.report.figures.NAME` draws each."""

from __future__ import annotations

from collections.abc import Callable

from keepset.settings import Config
from keepset.settings.captions import Figure, Target

_NO_FFN = "No model of this study has feed-forward neurons that were measured."
_NO_STATE = "No model of this study has a recurrent state that was measured."


def _studied(*kinds: str) -> Callable[[Config], bool]:
    return lambda config: all(map(config.has_kind, kinds))


def _has_both_parts(config: Config) -> bool:
    """Whether a memory is studied, and what it can be compared with."""
    return config.has_kind("state") and (config.has_kind("ffn") or config.has_kind("input"))


def _timed(config: Config) -> bool:
    return config.benchmark is not None


_ALL = (
    Figure(
        "decoupling",
        ("significance/correlation",),
        "No model of this study has units to correlate.",
        r"""
        **Size against impact.** Spearman's correlation, over the units of a layer, of a unit's size
        with notions of its impact. Feed-forward neurons, size mean \|h\| on calibration text:
        *weight*, the norm of its column of the down projection, which knows nothing of \|h\|;
        *output*, the root mean square change of the layer's output when the unit alone is left out,
        which contains \|h\|; *taylor*, the first-order change of the loss; *loss*, the size of
        the change of the loss measured by ablating {config.ablation.units} units one at a time, on
        corpora that ask for it. Channels of the recurrent state, size the product of the norms of
        their rows of W_B and W_C: *energy*, the root mean square of H C, GHOST's score (under
        a delta rule, of the measured change of the output without the channel).

        Above: the mean over layers (large marks) and single layers (small dots). Below: *weight*,
        and *energy* of a state, layer by layer. Layers and units are all that a model has: they
        are fixed, and {confidence:g}% intervals cover the calibration text (jackknife over groups
        of its documents). Those of *loss* cover the neurons that were ablated, on fixed text.
        Hollow marks: specimens, trained here.
        """,
    ),
    Figure(
        "predicting",
        ("significance/correlation",),
        _NO_FFN,
        r"""
        **What predicts the loss of a neuron.** Spearman's correlation of four scores of a neuron
        with what the loss does when it alone is left out (its size, without the sign), mean over
        layers. Left: *taylor*, *output* and *magnitude* taken on the text that the loss was
        measured on, of {config.ablation.tokens} tokens or more. There Taylor is the first order of
        what is measured, and it would be odd if it were not ahead. Right: the same scores taken on
        the other calibration text. *weight*, the norm of the neuron's output weights, knows no
        text.

        Bars: {confidence:g}% intervals over the neurons that were ablated (jackknife); model and
        text are given. Hollow marks: specimens, trained here.
        """,
        site="ffn",
        when=lambda config: any(
            corpus.ablation and config.studies(model, "ffn", name)
            for name, corpus in config.corpora.items()
            for model in config.active_models()
        ),
    ),
    Figure(
        "claims",
        ("significance/claims",),
        "No claim was judged.",
        r"""
        **The claims.** Every claim of the papers and of this project, in our words, with the
        papers' value, ours with its {confidence:g}% interval, and a verdict. *Reproduced*: it holds
        in every case (model and corpus, or model and task). *Contradicted*: it fails in one, after
        adjustment for the number of tests. *Inconclusive*: neither. The interval is that of one
        case and is not adjusted, so that it can lie outside of what is asked while the claim is
        open; the last line of a row says why, and what would decide. *Not tested here*: with what
        is missing. p-values are those of the whole claim, adjusted by Holm's method within a family
        of claims.

        Small models trained here (hollow marks) speak about a direction only: their numbers are not
        compared with those of models a thousand times their size. docs/CLAIMS.md explains every
        rule.
        """,
    ),
    Figure(
        "static_dynamic",
        ("significance/ratios",),
        _NO_FFN,
        r"""
        **Static against dynamic.** Token perplexity relative to the dense model (log scale; the
        dotted line at 1 is dense) by sparsity, units scored by magnitude. Static keep sets are
        chosen once on calibration text; dynamic ones at every token. {first_token} Each model has a
        scale of its own.

        Bars: {over_documents}. {rounding} Tests against dense: t-test over documents of the log
        ratio, Holm over model and corpus; see the table of ratios. Hollow marks: specimens, trained
        here.
        """,
        site="ffn",
        when=_studied("ffn"),
    ),
    Figure(
        "scores",
        ("significance/ratios",),
        _NO_FFN,
        r"""
        **How neurons are chosen.** Token perplexity relative to the dense model (log scale) by
        sparsity, for every score, on the corpora on which more than one was run. Static scores are
        averaged over calibration text; dynamic ones are taken at each token, where the weight and
        Taylor scores are not defined. {first_token} Each panel has a scale of its own.

        Bars: {over_documents}. The random score is the mean over {config.random_seeds} seeds of
        each block's loss; its band is the range of the seeds. {rounding} Hollow marks: specimens,
        trained here.
        """,
        site="ffn",
        when=_studied("ffn"),
    ),
    Figure(
        "dial",
        ("significance/ratios",),
        _NO_FFN,
        r"""
        **The dial.** Token perplexity relative to the dense model (log scale) when one keep set,
        scored by magnitude, is held for W tokens; *seq.* holds it for a whole block of
        {config.text.block} tokens. Solid: *oracle*, chosen on the window itself, so that W = 1 is
        dynamic. Dashed: *causal*, chosen on the window before it; before a block's first window
        stands the text before the block. The marks at the right edge are static keep sets, chosen
        on calibration text. {first_token} Each model has a scale of its own.

        Bands and bars: {over_documents}. The table of trends has the slope of the loss on W, and
        tests of whether the loss rises at every step. Hollow marks: specimens, trained here.
        """,
        site="ffn",
        when=_studied("ffn"),
    ),
    Figure(
        "input_dial",
        ("significance/ratios",),
        "Inputs of linear maps were not studied.",
        r"""
        **The dial of the other inputs.** Token perplexity relative to the dense model (log scale)
        when a share of the inputs of every other linear map of the decoder layers is left out, by
        magnitude: those of q, k and v, of the output projection of attention, of gate and up, of
        the projections of recurrent mixers, and of experts. Maps that read one tensor share a keep
        set, which is held for W tokens. Solid: *oracle*, chosen on the window itself, so that W = 1
        is dynamic. Dashed: *causal*, on the window before it. Right edge: chosen once, on
        calibration text. {first_token} Bands and bars: {over_documents}. Hollow: specimens.
        """,
        site="input",
        when=_studied("input"),
    ),
    Figure(
        "expert_dial",
        ("significance/ratios",),
        "No model of this run has routed experts.",
        r"""
        **The dial of routed experts.** Token perplexity relative to the dense model (log scale)
        when a token may be routed to the kept experts alone, those that the router weighs most
        over W tokens. Solid: *oracle*, weighed on the window itself: at W = 1 nothing is lost where
        as many are kept as a token is routed to. Dashed: *causal*, on the window before it. Right
        edge: chosen once, on calibration text. Bands and bars: {over_documents}. Hollow: specimens.
        """,
        site="expert",
        when=_studied("expert"),
    ),
    Figure(
        "capability",
        ("significance/capability",),
        _NO_FFN,
        r"""
        **What is left of a skill.** Share of items whose whole answer (the last word of a passage,
        or the thing that a fact named) is predicted right, or that are right by the metric of a
        task of the evaluation harness, dense and with {task_sparsity:g}% of
        feed-forward neurons left out by {config.capability.score}: dynamic, windowed (W =
        {config.capability.window}) and static (chosen on {config.capability.corpus}). The black
        tick in each row is dense.

        Bars: Wilson's {confidence:g}% intervals over n items. p: exact McNemar test against dense
        on the same items, Holm over model and task. The table of capability adds the paired
        difference with Tango's score interval, equivalence within {accuracy_margin:g} points, and
        the difference that n items could detect. Hollow marks: specimens, trained here.{skilled}
        """,
        site="ffn",
        when=lambda config: bool(config.tasks) and config.has_kind("ffn"),
    ),
    Figure(
        "state_sweep",
        ("significance/ratios",),
        _NO_STATE,
        r"""
        **The memory, cut.** Token perplexity relative to the dense model (log scale) when a share
        of the channels of the recurrent state is removed, chosen once on calibration text. *ghost*:
        the root mean square of H C, layers scored and cut in order, one threshold for the whole
        model; *ghost-uniform*: the same share in every layer; *ghost-oneshot*: all layers scored on
        the dense model; *ghost-separate*: the product of the averages of H² and C² instead of the
        average of their product. *magnitude*: the product of the norms of a channel's rows of W_B
        and W_C.

        Bars: {over_documents}. The random score's band is the range of its {config.random_seeds}
        seeds. The table of state
        pairs tests ghost against magnitude, taylor and random at every sparsity. Hollow marks:
        specimens, trained here.
        """,
        site="state",
        when=_studied("state"),
    ),
    Figure(
        "phantom",
        ("significance/channels", "significance/quadrants"),
        _NO_STATE,
        r"""
        **Phantom and corporeal channels.** Every channel of the recurrent states: the product of
        the norms of its rows of W_B and W_C, which is what pruning by magnitude sees, against its
        energy on calibration text, the root mean square of what the channel contributes to the
        output (GHOST's score, on the dense model; under a delta rule the change of the output
        without the channel, measured). Dotted lines: medians over the model. *Phantom*
        channels have little weight and much energy, *corporeal* ones much weight and little energy;
        numbers are shares of all channels. Since medians halve the channels, there are as many of
        the one as of the other. Two rankings that have nothing in common put a quarter into each
        quadrant.

        Titles: of the half of the channels that energy keeps, the share that the weights would cut.
        The share with half of every layer kept is in the table of quadrants. Hollow marks:
        specimens, trained here.
        """,
        when=_studied("state"),
    ),
    Figure(
        "memory_dial",
        ("significance/ratios",),
        _NO_STATE,
        r"""
        **Two dials.** Token perplexity relative to the dense model (log scale) when one keep set is
        held for W tokens: of the *memory*, the channels of the recurrent state, and of the
        *scratch*, the neurons of the feed-forward layers, at the same sparsity. Channels left out
        are *not read* (the state keeps them; the read-out C does not see them until they are chosen
        again) or *forgotten* (their content is lost). Neurons are chosen by magnitude, channels by
        impact, H² C². {first_token} Solid: *oracle*, chosen on the window itself, so that W = 1 is
        dynamic. Dashed: *causal*, chosen on the window before it. At the right edge: static keep
        sets, those of channels chosen by GHOST and removed.

        Bands and bars: {over_documents}. The table of trends has the slopes on W. Hollow marks:
        specimens, trained here.
        """,
        site="state",
        when=_studied("state"),
    ),
    Figure(
        "state_length",
        ("significance/lengths",),
        _NO_STATE,
        r"""
        **Longer text.** Token perplexity relative to the dense model on text of the same length
        (log scale), by the length of the passages evaluated. Channels were chosen on passages of
        {config.text.block} tokens and removed.

        Bars: {over_documents}; the longer passages are, the fewer there are. The random score's
        band is the range of its seeds. Lengths beyond a model's positions are left out. Hollow
        marks: specimens, trained here.
        """,
        when=_studied("state"),
    ),
    Figure(
        "side_by_side",
        ("significance/side_by_side",),
        "No model of this study has both kinds of site.",
        r"""
        **Memory beside scratch, in one model.** Token perplexity relative to the dense model (log
        scale) with the same share left out of the recurrent state (*memory*) or of the feed-forward
        layers (*scratch*; in a model without them, of the inputs of its projections), chosen once
        (*static*) or at every token (*dynamic*), by *size* or by *impact*. The size of a neuron or
        input is \|h\|, its impact \|h\| times the norm of its output weights. A channel's size is
        the product of its weights' norms when static and H² when dynamic; its impact is GHOST's
        score when static and H² C² when dynamic. Dynamic channels are not read, or forgotten.
        {first_token}

        Bars: {over_documents}. Hollow marks: specimens, trained here.
        """,
        when=_has_both_parts,
    ),
    Figure(
        "recall",
        ("significance/recall",),
        "No recall task was run.",
        r"""
        **Recall.** Share of questions answered right after a number of facts and then other text,
        all distances together: dense (black) and with parts left out. Feed-forward neurons: static,
        dynamic and held for W tokens, by magnitude. State: channels *cut*, chosen once by each
        score, at the largest sparsities; channels *held* for W tokens, those left out not read or
        forgotten. Dotted: chance, one in 64.

        Bars: Wilson's {confidence:g}% intervals; the random score is the mean over its seeds. The
        table of recall has every distance, the table of state pairs the exact McNemar tests between
        scores. Hollow marks: specimens, trained here.
        """,
        when=lambda config: config.has_task("recall"),
    ),
    Figure(
        "speedup",
        ("kernels",),
        "Nothing was timed.",
        r"""
        **Speed-up.** Measured time of dense over time under a keep rule (log scale) against the
        share of neurons left out, one token at a time, {config.benchmark.dtype},
        {config.benchmark.threads} thread(s). Left: the down projection alone, its set given, by
        every path. Middle: an FFN block on random weights, its set chosen exactly at every token
        (*dynamic*: gate and up stay dense), or known beforehand (gate, up and down are cut). Right:
        whole models that decode with a key-value cache. Dotted: the limit of what reads kept rows
        only.

        Bars: 20th to 80th percentile over rounds, each a dense and a sparse run in turn. Weights
        come from memory, not from the cache. Outputs were compared with the reference before they
        were timed.
        """,
        when=_timed,
        target="benchmarks",
    ),
    Figure(
        "frontier",
        ("kernels", "significance/ratios"),
        "Nothing was timed.",
        r"""
        **The frontier.** Token perplexity relative to dense (log scale) against measured tokens per
        second relative to dense, for one keep set held for W tokens at {timed_sparsity:g}%
        sparsity, scored by {config.benchmark.score}. Lower right is better. Dashed: *causal*, which
        can be deployed; its speed holds the cost of choosing. Solid: *oracle*; beyond W = 1 it
        needs tokens that are yet to come, so that it is timed on a given text with sets from a pass
        before: the most that a perfect guess of the sets could save. Bar: static. {first_token}

        Bars across: 20th to 80th percentile over tokens or windows; up and down: {over_documents}.
        Hollow marks: specimens, trained here.
        """,
        when=_timed,
        target="benchmarks",
    ),
    Figure(
        "gain",
        ("gains",),
        "No model of this study was timed under a recipe.",
        r"""
        **Where users live.** Token perplexity relative to dense, at most {within:g}% above it,
        against measured tokens per second relative to the dense model as it is. Lower right is
        better. *slim*: the recipes that ``keepset slim`` chose; *budget*: a share of the bytes of
        all linear maps left out at every token, allotted to sites by the loss, or equally;
        *neurons*, *other inputs*: one share of all feed-forward neurons, or of the inputs of all
        other linear maps, the largest \|h\| kept, or \|h\| times the norm of the weights.
        Numbers: the share of all bytes of a decoded token that is not read. Dotted: the dense model
        by the same kernels, which loses nothing: what lies left of it gains nothing over it.
        {first_token}

        Bars across: 20th to 80th percentile over {config.slim.tokens} tokens, in turn with dense;
        up and down: {over_documents}; of *slim*, on the text that it reports on, its one-sided
        bounds. Hollow marks: specimens, trained here.
        """,
        when=lambda config: config.slim is not None,
        target="slim",
    ),
    Figure(
        "loss_curve",
        (),
        "No specimen was trained.",
        r"""
        **Training of the specimens.** Loss on text (faint: training rows; solid: held-out text),
        loss and accuracy on the answers of recall episodes in the training rows, and the share of
        feed-forward activations that are exactly zero (dotted: the layer with the fewest), by
        training tokens seen. All specimens saw the same rows in the same order. Episodes grow
        harder over the first part of the training. Only ReLU gives exact zeros.
        """,
        target="training",
    ),
)
FIGURES = {figure.name: figure for figure in _ALL}
"""Name -> figure, in the order in which they are drawn."""


def drawn(config: Config, target: Target = "figures") -> list[Figure]:
    """The figures of a study that a target of the workflow draws."""
    return [one for one in FIGURES.values() if one.target == target and one.when(config)]
