"""`keepset harness`: the command line of the harness, with the model `keepset`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from keepset.errors import ConfigError
from keepset.harness import INSTALL

NAME = "keepset"
"""The model's name there."""


def add_to(commands: Any) -> None:
    """Enter `harness` among the subcommands of `keepset`."""
    harness = commands.add_parser(
        "harness",
        add_help=False,
        prefix_chars="\0",  # all options are lm_eval's
        help="the evaluation harness, lm_eval, with the model keepset",
    )
    harness.add_argument("given", nargs="*")
    harness.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run `lm_eval` with the arguments given.

    Version 0.4.13 does not look for models in other packages, so that the model is entered here;
    later ones find it by the entry point of this package.

    Raises:
        ConfigError: lm-eval is not installed.
    """
    try:
        from lm_eval.__main__ import cli_evaluate
        from lm_eval.api.registry import get_model, model_registry
    except ImportError as error:
        raise ConfigError(f"keepset harness needs lm-eval ({error}); run `{INSTALL}`") from None
    get_model("dummy")  # fills the registry
    if NAME not in model_registry:
        model_registry.register(NAME, target="keepset.harness.model:KeepsetLM")
    given = sys.argv
    sys.argv = ["keepset harness", *arguments.given]
    try:
        cli_evaluate()
    finally:
        sys.argv = given
