"""The claims, as data. docs/CLAIMS.md explains them."""

from __future__ import annotations

from keepset.analyse.claims import dial, feedforward, modern, skills, state
from keepset.analyse.claims.case import GHOST, OURS, STUDY, TWELL, Claim

_UNASKED = "not in the papers"
_RELU = "a pretrained ReLU transformer such as OPT-1.3B, on a GPU"
_SWIGLU = "a pretrained SwiGLU transformer"
_HYBRID = "a pretrained hybrid such as Zamba2-1.2B, on a GPU"
_MAMBA = "a pretrained Mamba-2 model such as mamba2-1.3b, on a GPU"
_STATE = "a pretrained model with a recurrent state, such as mamba2-1.3b or Zamba2-1.2B, on a GPU"

_TEXT = "t-test over documents"
_CALIBRATION = "layers fixed, calibration documents left out (jackknife)"
_ABLATED = "units left out (jackknife), text fixed"
_TWO_MODELS = "same text; one training of each, so p is over text, not over trainings"

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "C1",
        "FFN size and output weight agree weakly",
        "Neurons that are often large have larger output weights, but only weakly so.",
        STUDY,
        "correlation {C1:dense}",
        f"0 < mean over layers of Spearman(mean |h|, ||w||) < 0.5; {_CALIBRATION}; specimen:"
        " above 0",
        _SWIGLU,
        feedforward.weak_agreement,
    ),
    Claim(
        "C2",
        "... and equally on every corpus",
        "How weakly they agree does not depend on the corpus.",
        STUDY,
        "within {C1:spread} of each other, three corpora",
        f"difference of the means over layers on any two corpora within 0.1; TOST (Welch),"
        f" {_CALIBRATION}",
        _SWIGLU + ", and two corpora",
        feedforward.same_on_corpora,
    ),
    Claim(
        "C3",
        "Weight and energy of the state disagree",
        "In the recurrent state, channels of large weight carry less energy, not more.",
        STUDY,
        "correlation {C3:dense} (Zamba2-1.2B)",
        f"mean over layers of Spearman(weight norm product, energy) < 0; {_CALIBRATION}; not in a"
        " specimen whose training started from a hand-made circuit of its state",
        _STATE,
        state.negative_agreement,
    ),
    Claim(
        "C4",
        "Static 90% breaks transformers (100 x)",
        "With 90% of the neurons chosen once, by size, the perplexity of a transformer rises at"
        " least a hundredfold.",
        STUDY,
        "{C4:static 0.90} times dense",
        f"static magnitude 90% / dense > 100; {_TEXT}; specimen: > 1",
        _SWIGLU,
        feedforward.static_collapse,
    ),
    Claim(
        "C5",
        "Dynamic 95% is lossless for ReLU",
        "A ReLU transformer loses nothing when 95% of its neurons are left out, chosen at every"
        " token.",
        STUDY,
        "{C5:dynamic 0.95} times dense",
        "dynamic magnitude 95% / dense within the perplexity margin, in a specimen too; TOST over"
        " documents, rounding added",
        _RELU,
        feedforward.relu_lossless,
    ),
    Claim(
        "C6",
        "... and costly for SwiGLU",
        "A SwiGLU transformer does lose under the same rule.",
        STUDY,
        "{C6:dynamic 0.95} times dense",
        f"dynamic magnitude 95% / dense above the margin; {_TEXT}; specimen: > 1",
        _SWIGLU,
        feedforward.swiglu_costly,
    ),
    Claim(
        "C7",
        "Capability at 90% dynamic is kept by ReLU",
        "A ReLU transformer's accuracy is the same with 90% of the neurons left out at every"
        " token.",
        STUDY,
        "{C7:dense} dense, {C7:dynamic 0.90} dynamic (n = 300, p = 1.00)",
        "accuracy within the accuracy margin of dense, in a specimen too; TOST on Tango's score",
        _RELU + ", and a task that it does",
        skills.relu_keeps,
    ),
    Claim(
        "C8",
        "... and lost by SwiGLU",
        "A SwiGLU transformer loses accuracy under the same rule.",
        STUDY,
        "{C8:dense} dense, {C8:dynamic 0.90} dynamic (n = 300)",
        "accuracy below dense by more than the margin; Tango's score; specimen: below dense, exact"
        " McNemar",
        _SWIGLU + ", and a task that it does",
        skills.swiglu_loses,
    ),
    Claim(
        "C9",
        "The hybrid's FFN is mild either way",
        "In a hybrid, leaving out FFN neurons costs less than twice the perplexity, static at 90%"
        " or dynamic at 95%.",
        STUDY,
        "{C9:static 0.90} static, {C9:dynamic 0.95} dynamic, times dense",
        f"both / dense < 2, in a specimen too, unless its FFN is idle; {_TEXT}",
        _HYBRID,
        feedforward.hybrid_mild,
    ),
    Claim(
        "C10",
        "The dial rises from dynamic to static",
        "The longer a keep set is held, the more it costs: from every token over windows to once.",
        STUDY,
        "90%: {C10:windowed 0.9 W=1@Qwen2.5-1.5B} (W = 1), {C10:windowed 0.9 W=1024@Qwen2.5-1.5B}"
        " (W = 1024), Qwen2.5-1.5B",
        "at 50% and 90%, a rise at every step; t-tests over documents: the largest p of the steps;"
        " against it, a step that falls (Bonferroni over steps)",
        "a model with windowed runs",
        dial.monotone,
    ),
    Claim(
        "C11",
        "A gradient score does not rescue static",
        "Choosing once by a gradient score still costs more than choosing by size at every token.",
        STUDY,
        "in words",
        f"static Taylor 90% / dynamic magnitude 90% > 1; {_TEXT}",
        "a transformer with static Taylor runs",
        feedforward.gradient_no_rescue,
    ),
    Claim(
        "C12",
        "GHOST beats magnitude and random",
        "On the recurrent state, GHOST's channels cost less perplexity than those of the weights"
        " or of chance; about one point at 50% for Mamba2-1.3B.",
        GHOST,
        "at 50%: GHOST {C12:ghost 0.5@Mamba2-1.3B}, magnitude {C12:magnitude 0.5@Mamba2-1.3B},"
        " random {C12:random 0.5@Mamba2-1.3B}, dense {C12:dense@Mamba2-1.3B} (Mamba2-1.3B)",
        f"GHOST / each < 1 at 50%; {_TEXT}; specimen: at 70% and 90%",
        _MAMBA,
        state.ghost_wins,
    ),
    Claim(
        "C13",
        "An L1-trained ReLU FFN can skip 99%",
        "A ReLU transformer trained with an L1 penalty on its activations loses nearly nothing"
        " with 99% of the neurons left out at every token.",
        TWELL,
        "in words",
        "dynamic magnitude 99% / dense within the perplexity margin, in a specimen too; TOST over"
        " documents, rounding added",
        "a pretrained transformer trained with an L1 penalty",
        feedforward.l1_lossless,
    ),
    Claim(
        "C14",
        "A fifth phantom, a fifth corporeal",
        "About a fifth of the channels have low weight and high energy, a fifth the reverse, so"
        " that the two rankings disagree on about 41% at half.",
        GHOST,
        "{C14:phantom} and {C14:corporeal}; {C14:disagree} at half",
        "disagreement at half between 30% and 50%, so that both fifths are within 5 points of 20%"
        f" (the three numbers are one); TOST, {_CALIBRATION}; specimen, if it did not start from a"
        " hand-made circuit: above 25%, nearer to chance (50%) than to agreement",
        _MAMBA,
        state.quadrants,
    ),
    Claim(
        "C15",
        "Exact recall pays for a pruned state",
        "What a pruned state loses is exact recall.",
        GHOST,
        "{C15:ghost 0.5} points of LAMBADA at 50%",
        "accuracy under GHOST 50% below dense; exact McNemar; specimen: recall at 90%",
        _MAMBA + ", and a task that it does",
        skills.recall_pays,
    ),
    Claim(
        "C16",
        "Scoring forward needs a third of the memory",
        "GHOST, which needs forward passes only, fits in a third of Taylor's memory.",
        GHOST,
        "{C16:ghost} GB against {C16:taylor} GB or more",
        "peak memory of GHOST / Taylor < 1/3, measured, without the weights, which the papers' GB"
        " may include; specimen: < 1",
        _MAMBA,
        state.forward_memory,
    ),
    Claim(
        "D1",
        "A state re-chosen at every token forgets",
        "For memory, dynamic is not the cheap end: what is re-chosen at every token and forgotten"
        " where not kept costs more than one GHOST set for all text.",
        OURS,
        _UNASKED,
        f"dynamic 90% (write), by size and by impact / static GHOST 90% > 1; {_TEXT}",
        _STATE,
        state.rechoice_forgets,
    ),
    Claim(
        "D2",
        "Forgetting costs more than not reading",
        "At the same sparsity, a state that forgets what is not kept loses more than one that only"
        " does not read it.",
        OURS,
        _UNASKED,
        f"dynamic 90%: write / read > 1, by size and by impact; {_TEXT}",
        _STATE,
        state.forgetting_costs,
    ),
    Claim(
        "D3",
        "Causal windows cost more than oracle ones",
        "A keep set chosen on the window before, which can be deployed, costs more than the"
        " paper's, which is chosen on the window itself.",
        OURS,
        _UNASKED,
        f"windowed magnitude 90%: causal / oracle > 1 at every W; {_TEXT}",
        "a model with oracle and causal windows",
        dial.causal_costs_more,
    ),
    Claim(
        "D4",
        "Taylor predicts the measured loss change",
        "Of the notions of impact, first-order Taylor, taken on the text of the ablation, ranks"
        " units most as their measured change of the loss does. It is the first order of just that"
        " change: nearly a tautology.",
        OURS,
        _UNASKED,
        "Spearman with |loss change|, scored on the same text: Taylor above magnitude, weight and"
        f" output; {_ABLATED}",
        "a model with single-unit ablations and gradients",
        dial.taylor_predicts,
    ),
    Claim(
        "D5",
        "... and so does Taylor from other text",
        "Taken on other text, Taylor still ranks units more as their measured change of the loss"
        " does than the other notions do.",
        OURS,
        _UNASKED,
        "Spearman with |loss change|, scored on other text: Taylor above magnitude, weight and"
        f" output; {_ABLATED}",
        "a model with single-unit ablations and gradients, and calibration text of two documents",
        dial.taylor_transfers,
    ),
    Claim(
        "D6",
        "The ReLU specimen pays less than SwiGLU",
        "Of two specimens trained on the same data, the ReLU transformer (OPT) pays less than the"
        " SwiGLU one (Qwen2) for leaving out 95% of its neurons at every token.",
        OURS,
        _UNASKED,
        f"dynamic magnitude 95% / dense, ReLU / SwiGLU < 1; {_TEXT}, {_TWO_MODELS}",
        "ReLU and SwiGLU models that differ in nothing else, several trainings of each",
        feedforward.relu_pays_less,
    ),
    Claim(
        "D7",
        "An L1 penalty makes skipping cheaper",
        "Of two ReLU specimens that differ in the L1 penalty alone, the one trained with it pays"
        " less for leaving out 99% of its neurons at every token.",
        OURS,
        _UNASKED,
        f"dynamic magnitude 99% / dense, with / without the penalty < 1; {_TEXT}, {_TWO_MODELS}",
        "several trainings with the penalty and without",
        feedforward.penalty_pays,
    ),
    Claim(
        "D8",
        "The ReLU specimen keeps more accuracy",
        "Of two specimens trained on the same data, the ReLU transformer (OPT) keeps more of its"
        " accuracy than the SwiGLU one (Qwen2) with 90% of its neurons left out at every token.",
        OURS,
        _UNASKED,
        "accuracy under dynamic magnitude 90% less dense, ReLU less SwiGLU > 0; paired t-test over"
        " items; one training of each, so p is over items, not over trainings",
        "ReLU and SwiGLU models that differ in nothing else, several trainings of each",
        skills.relu_keeps_more,
    ),
    Claim(
        "E1",
        "A routed expert is scratch-work",
        "As many experts cost less chosen at every token, by the router's weight, than chosen once,"
        " by that weight or by measured impact.",
        OURS,
        _UNASKED,
        "dynamic magnitude / static magnitude, and / static impact, < 1, at the largest sparsity of"
        f" both; {_TEXT}",
        "a model with routed experts",
        modern.experts_are_scratch,
    ),
    Claim(
        "E2",
        "The delta rule's memory is like Mamba-2's",
        "In the state of a gated delta rule, weight is no guide to energy, and what is re-chosen at"
        " every token and forgotten where not kept costs more than one GHOST set for all text.",
        OURS,
        _UNASKED,
        "mean over layers of Spearman(weight norm product, energy) < 0.5;"
        f" {_CALIBRATION}, not in a specimen whose training started from a hand-made circuit;"
        f" dynamic 90% (write), by size and by impact / static GHOST 90% > 1; {_TEXT}",
        "a model with a gated delta rule, such as Qwen3.5-0.8B",
        modern.delta_as_mamba,
    ),
    Claim(
        "E3",
        "In one model, two parts want opposites",
        "In a model whose FFN and state are both in use, neurons are cheaper re-chosen at every"
        " token, and state channels cheaper chosen once.",
        OURS,
        _UNASKED,
        "dynamic / static at 90%: < 1 for neurons by size, > 1 for channels (write, by size and by"
        f" impact; static by GHOST); {_TEXT}; not in a specimen that has one of them idle",
        "a hybrid whose FFN and state are both in use",
        modern.parts_want_opposites,
    ),
    Claim(
        "F1",
        "Two parts want opposites without an FFN",
        "In a recurrent model without an FFN, the inputs of its projections are cheaper re-chosen"
        " at every token, and the channels of its state cheaper chosen once.",
        OURS,
        _UNASKED,
        "dynamic / static at 90%: < 1 for inputs of projections by size, > 1 for channels (write,"
        f" by size and by impact; static by GHOST); {_TEXT}; not in a specimen whose state is idle",
        "a recurrent model, its projections and its state studied",
        modern.recurrent_parts_want_opposites,
    ),
)
