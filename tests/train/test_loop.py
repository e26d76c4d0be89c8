"""Training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from keepset.errors import ConfigError, ModelError
from keepset.settings import Specimen, Training
from keepset.train.loop import CHECKPOINT, Trainer, build_model, learning_rate
from keepset.train.rows import Rows

OPT = {
    "hidden_size": 16,
    "word_embed_proj_dim": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "ffn_dim": 32,
    "max_position_embeddings": 32,
    "dropout": 0.0,
}
MOE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 8,
    "router_aux_loss_coef": 0.1,
    "initializer_range": 0.5,
}
SPECIMENS: dict[str, Specimen] = {
    "relu": Specimen(model_type="opt", config=OPT),
    "relu-l1": Specimen(model_type="opt", config=OPT, l1=0.5),
    "mamba2": Specimen(
        model_type="mamba2",
        config={
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "head_dim": 8,
            "num_heads": 4,
            "state_size": 8,
            "n_groups": 1,
            "chunk_size": 16,
        },
    ),
    "moe": Specimen(model_type="qwen3_moe", config=MOE),
}


def training(**changes: Any) -> Training:
    return Training(
        corpora={"wiki": 1},
        specimens=SPECIMENS,
        **{"steps": 8, "warmup": 2, "log_every": 1, "checkpoint_every": 3, **changes},
    )


@pytest.fixture
def trainer(rows: Rows, tokenizer: PreTrainedTokenizerFast) -> Any:
    def make(name: str, **changes: Any) -> Trainer:
        heldout = torch.arange(64).reshape(2, 32)
        where = torch.device("cpu")
        settings = training(**changes)
        return Trainer(
            name, SPECIMENS[name], settings, rows, tokenizer, heldout, where, torch.float32
        )

    return make


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize("name", ["relu-l1", "mamba2", "moe"])
def test_an_interrupted_training_ends_as_an_undisturbed_one(
    trainer: Any, tmp_path: Path, name: str
) -> None:
    undisturbed = trainer(name)
    losses = undisturbed.run(tmp_path / "whole")
    trainer(name).run(tmp_path / "parts", until=5)
    resumed = trainer(name)
    curve = resumed.run(tmp_path / "parts")
    assert resumed.step == undisturbed.step == 8
    assert torch.equal(weights(resumed), weights(undisturbed))
    columns = ["step", "split", "text_nll"]
    # The stop at step 5 adds a point of held-out loss; all others are the same.
    both = curve[(curve["step"] != 5) | (curve["split"] == "training")]
    assert both[columns].reset_index(drop=True).equals(losses[columns])


def test_training_lowers_the_loss(trainer: Any, tmp_path: Path) -> None:
    losses = trainer("relu", steps=60, checkpoint_every=60).run(tmp_path)
    text = losses.loc[losses["split"] == "training", "text_nll"]
    assert text.iloc[-5:].mean() < text.iloc[:5].mean() - 0.5


def test_the_penalty_makes_zeros(trainer: Any, tmp_path: Path) -> None:
    shares = {}
    for name in ("relu", "relu-l1"):
        losses = trainer(name, steps=60, checkpoint_every=60).run(tmp_path / name)
        shares[name] = losses["zeros_mean"].dropna().iloc[-1]
    assert shares["relu-l1"] > shares["relu"] + 0.1


def test_the_balance_spreads_tokens_over_experts(trainer: Any, tmp_path: Path) -> None:
    """1 is the least, where every expert gets as many tokens."""
    last = {}
    for weight in (1e-6, 0.5):
        one = trainer("moe", steps=40, checkpoint_every=40, learning_rate=1e-2)
        one.specimen = SPECIMENS["moe"].model_copy(deep=True)
        one.specimen.config["router_aux_loss_coef"] = weight
        one.model.config.router_aux_loss_coef = weight
        last[weight] = one.run(tmp_path / str(weight))["penalty"].dropna().iloc[-5:].mean() / weight
    assert last[0.5] < 1.15 < 1.3 < last[1e-6]


def test_a_balance_needs_routers(trainer: Any, tmp_path: Path) -> None:
    specimen = SPECIMENS["relu"]
    specimen = specimen.model_copy(update={"config": {**OPT, "router_aux_loss_coef": 0.1}})
    one = trainer("relu")
    one.specimen = specimen
    with pytest.raises(ConfigError, match=r"relu.config.router_aux_loss_coef: a opt gives no"):
        one.run(tmp_path)


def test_a_checkpoint_of_other_settings_is_set_aside(trainer: Any, tmp_path: Path) -> None:
    trainer("relu", steps=4).run(tmp_path)
    other = trainer("relu", steps=4, learning_rate=1e-4)
    other.resume(tmp_path)
    assert other.step == 0
    assert (tmp_path / f"{CHECKPOINT}.other").is_file()
    assert not (tmp_path / CHECKPOINT).exists()


def test_an_architecture_that_scales_its_logits_is_refused(
    rows: Rows, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config |= {"num_key_value_heads": 2, "intermediate_size": 8, "logits_scaling": 2.0}
    specimen = Specimen(model_type="granite", config=config)
    heldout, cpu = torch.zeros(1, 8, dtype=torch.long), torch.device("cpu")
    with pytest.raises(ConfigError, match="granite scales or shifts its logits"):
        Trainer("g", specimen, training(), rows, tokenizer, heldout, cpu, torch.float32)


def test_the_learning_rate_rises_and_falls() -> None:
    settings = training(steps=102, warmup=2, learning_rate=1.0, final=0.1)
    rates = [learning_rate(step, settings) for step in (0, 1, 2, 52, 102)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.55, 0.1])


@pytest.mark.parametrize(
    ("specimen", "message"),
    [
        (Specimen(model_type="nonsense", config={}), "nonsense"),
        (Specimen(model_type="opt", config={**OPT, "num_attention_heads": 3}), "opt"),
    ],
)
def test_an_impossible_architecture_is_refused(
    specimen: Specimen, message: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ConfigError, match=rf"training\.specimens\.x: cannot build a {message}"):
        build_model("x", specimen, tokenizer, 0)


@pytest.mark.parametrize("name", ["mamba2", "moe"])
def test_a_penalty_needs_an_ffn(rows: Rows, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    specimen = SPECIMENS[name].model_copy(update={"l1": 0.1})
    with pytest.raises(ConfigError, match="has no FFN"):
        Trainer(
            "m",
            specimen,
            training(),
            rows,
            tokenizer,
            torch.zeros(1, 8, dtype=torch.long),
            torch.device("cpu"),
            torch.float32,
        )


def test_a_training_that_diverges_is_stopped(trainer: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"loss is not finite at step \d; lower training.learning"):
        trainer("relu", learning_rate=1e30, clip=1e30).run(tmp_path)
