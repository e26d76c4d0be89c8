"""The configuration's names of scores are the registry's."""

from __future__ import annotations

from typing import get_args

import pytest

from keepset import settings
from keepset.cli import main
from keepset.settings import base


@pytest.mark.parametrize(
    ("literal", "names"),
    [
        (base.ScoreName, ["magnitude", "impact", "weight", "taylor", "random"]),
        (base.TokenScoreName, ["magnitude", "impact", "random", "centred", "gate"]),
        (base.InputTokenScoreName, ["magnitude", "impact", "random", "centred"]),
        (base.DecodingScoreName, ["magnitude", "impact"]),
        (base.StateTokenScoreName, ["magnitude", "impact", "random"]),
        (
            base.StateScoreName,
            [
                *("ghost", "ghost-uniform", "ghost-oneshot", "ghost-separate"),
                *("magnitude", "magnitude-uniform", "taylor", "random"),
            ],
        ),
    ],
)
def test_names_in_the_registrys_order(literal, names):
    """The order is that of the schema and of messages."""
    assert list(get_args(literal)) == names


def test_the_schema_lists_them():
    parts = settings.json_schema()["$defs"]
    for part, literal in (
        ("StaticGrid", base.ScoreName),
        ("DynamicGrid", base.TokenScoreName),
        ("StateStaticGrid", base.StateScoreName),
        ("StateDial", base.StateTokenScoreName),
    ):
        assert parts[part]["properties"]["scores"]["items"]["enum"] == list(get_args(literal))
    assert parts["Benchmark"]["properties"]["score"]["enum"] == list(
        get_args(base.DecodingScoreName)
    )


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("perplexity", "magnitude, impact, random or gate"),
        ("generate", "magnitude or impact"),
    ],
)
def test_help_names_them(command, text, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert text in " ".join(capsys.readouterr().out.split())
