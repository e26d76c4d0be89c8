"""A kind of site of its own: the inputs of attention's output projection. All that a kind needs."""

from __future__ import annotations

from keepset.calibrate import activations
from keepset.calibrate.sets import RankedSets
from keepset.errors import ModelError
from keepset.hold.inputs import hold_windows, lead_in_scores  # noqa: F401
from keepset.hold.static import hold_static  # noqa: F401
from keepset.rules.kinds import Kind
from keepset.rules.scores import NEURON_SCORES
from keepset.sites.ffn import Site

KIND = Kind(name="attention", units="attention outputs", module="toy_kind", scores=NEURON_SCORES)


def find(model):
    projections = [
        (name, module)
        for name, module in model.named_modules()
        if name.endswith("self_attn.o_proj")
    ]
    return [
        Site(
            kind="attention",
            layer=layer,
            name=name,
            down=module,
            n_units=module.in_features,
            call=0,
            n_calls=1,
            activation="none",
            gated=False,
            up=(),
        )
        for layer, (name, module) in enumerate(projections)
    ]


def sets_owner(owner, settings):
    return {**owner, "gradients": settings["gradients"]}


def load_sets(path, owner):
    return RankedSets(activations.load(path, owner), "attention")


def cut(model, masks):
    raise ModelError("attention outputs cannot be cut out of a checkpoint")
