"""Every kind's module defines what the protocol asks for."""

from __future__ import annotations

import inspect

import pytest
import torch

from keepset import kinds
from keepset.errors import ConfigError, ModelError
from keepset.rules.kinds import KINDS

PROTOCOL = [name for name in vars(kinds.SiteKind) if not name.startswith("_")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PROTOCOL)
def test_a_kind_defines_the_protocol(kind, name):
    asked = inspect.signature(getattr(kinds.SiteKind, name)).parameters.values()
    function = inspect.signature(getattr(kinds.of(kind), name))
    positional = [None for parameter in asked if parameter.kind == parameter.POSITIONAL_OR_KEYWORD]
    keywords = {p.name: None for p in asked if p.kind == p.KEYWORD_ONLY}
    function.bind(*positional[1:], **keywords)  # `self` is the module


def test_an_unknown_kind_is_refused():
    with pytest.raises(ConfigError, match="unknown kind of site 'head'; known: ffn, input, expert"):
        kinds.of("head")


def test_all_sites_of_a_hybrid(tiny_model):
    sites = kinds.find_sites(tiny_model("zamba2"))
    keys = [site.key for site in sites]
    assert len(set(keys)) == len(keys)
    assert [site.kind for site in sites] == sorted(site.kind for site in sites)
    assert {site.kind for site in sites} == {"ffn", "input", "state"}


def test_neurons_cannot_be_cut(tiny_model):
    with pytest.raises(ModelError, match="llama: neurons cannot be cut"):
        kinds.of("ffn").cut(tiny_model("llama"), {"ffn.000": torch.ones(48, dtype=torch.bool)})
    with pytest.raises(ModelError, match="llama: inputs of linear maps cannot be cut"):
        kinds.of("input").cut(tiny_model("llama"), {})
