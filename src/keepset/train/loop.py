"""Train one specimen; resume from its checkpoint if there is one."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from keepset.errors import ConfigError, ModelError
from keepset.files import store
from keepset.hold.inputs import watching
from keepset.kernels.dispatch import torch_scans
from keepset.settings import Specimen, Training
from keepset.sites.expert_neurons import ExpertNeurons
from keepset.sites.ffn import Site, find_ffn_sites
from keepset.train.induction import start_induction
from keepset.train.loss import BALANCE, balance_loss, weighted_loss
from keepset.train.rows import Batch, Rows

logger = logging.getLogger("keepset.train")

CHECKPOINT = "checkpoint.pt"


def build_model(
    name: str, specimen: Specimen, tokenizer: PreTrainedTokenizerFast, seed: int
) -> PreTrainedModel:
    """A newly initialized model of a Hugging Face architecture, weights in float32.

    Raises:
        ConfigError: transformers does not know the architecture or a key of its configuration,
            or the architecture has no start for `induction`.
    """
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eos_token_id)
    arguments = {"vocab_size": len(tokenizer), **tokens, **specimen.config}
    try:
        config = AutoConfig.for_model(specimen.model_type, **arguments)
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"training.specimens.{name}: cannot build a {specimen.model_type}: {error}"
        ) from None
    if specimen.induction:
        try:
            start_induction(model, seed)
        except ConfigError as error:
            raise ConfigError(f"training.specimens.{name}.{error}") from None
    return model.float()


@dataclass
class Activity:
    """The activations of the FFN sites in one forward pass."""

    l1: list[Tensor] = field(default_factory=list)
    """Per site: sum of |h| over units, mean over tokens."""
    zeros: list[Tensor] = field(default_factory=list)
    """Per site: share of activations that are exactly zero."""


@contextmanager
def _observing(model: PreTrainedModel, sites: list[Site]) -> Iterator[Activity]:
    activity = Activity()

    def action(_: Site, h: Tensor) -> None:
        activity.l1.append(h.abs().sum(dim=-1).mean())
        activity.zeros.append((h.detach() == 0).float().mean())

    with watching(model, sites, action):
        yield activity


def learning_rate(step: int, training: Training) -> float:
    """The rate of a step: linear warm-up, then linear decay to `final` times the peak."""
    if step < training.warmup:
        return training.learning_rate * (step + 1) / training.warmup
    progress = (step - training.warmup) / max(1, training.steps - training.warmup)
    return training.learning_rate * (1 - (1 - training.final) * min(1.0, progress))


@dataclass(eq=False)
class Trainer:
    """The training of one specimen.

    Raises:
        ConfigError: see `build_model`; or the specimen's penalty or logits do not fit its model.
    """

    name: str
    specimen: Specimen  # its architecture and L1 penalty
    training: Training  # the schedule
    rows: Rows
    tokenizer: PreTrainedTokenizerFast
    heldout: Tensor  # (rows, tokens) int64, text for the held-out loss
    device: torch.device
    dtype: torch.dtype  # bfloat16 or float16 for autocast; float32 for none

    def __post_init__(self) -> None:
        name, training = self.name, self.training
        self.model = build_model(name, self.specimen, self.tokenizer, training.seed).to(self.device)
        _prepare(name, self.model)
        # A routed expert has no activations at the tokens that pass it by.
        sites = find_ffn_sites(self.model)
        self.sites = [site for site in sites if not isinstance(site, ExpertNeurons)]
        if self.specimen.l1 > 0 and not self.sites:
            raise ConfigError(
                f"training.specimens.{name}.l1: the architecture has no FFN that sees every token"
            )
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(self.model, training.weight_decay),
            lr=training.learning_rate,
            betas=(0.9, 0.95),
            fused=True,
        )
        self.step = 0
        self.seconds = 0.0
        self.records: list[dict[str, Any]] = []
        self._compiled = torch.compile(self.model.base_model) if training.compile else None

    def run(self, folder: Path, until: int | None = None) -> pd.DataFrame:
        """Train to the end or to step `until`; resumes from a checkpoint in `folder`.

        Returns:
            The loss curve: step, tokens, split ("training", "heldout"), text_nll, answer_nll
            (nats per token), answer_accuracy, zeros_mean and zeros_min (over sites), penalty
            (nats: L1, and balance of experts), learning_rate, seconds (of training so far).
        """
        self.resume(folder)
        training = self.training
        n_steps = training.steps if until is None else min(until, training.steps)
        start = time.monotonic() - self.seconds
        # On a CPU, keepset's scan is faster than that of transformers; on a GPU, mamba-ssm is.
        with torch_scans(self.model) if self.device.type == "cpu" else nullcontext():
            while self.step < n_steps:
                is_last = self.step + 1 == n_steps
                is_logged = is_last or (self.step + 1) % training.log_every == 0
                record = self._train_step(observed=is_logged)
                self.step += 1
                self.seconds = time.monotonic() - start
                if is_logged:
                    self._record(record)
                if is_last or self.step % training.checkpoint_every == 0:
                    self._record({"split": "heldout", "text_nll": self.heldout_nll()})
                    self.save(folder)
        return pd.DataFrame(self.records)

    def _record(self, record: dict[str, Any]) -> None:
        tokens = self.step * self.rows.batch_tokens
        position = {"specimen": self.name, "step": self.step, "tokens": tokens}
        row = {**position, **record, "seconds": self.seconds}
        self.records.append(row)
        texts = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items())
        logger.info("%s", " ".join(texts))

    def _train_step(self, observed: bool) -> dict[str, Any]:
        """One step. The sites are observed if `observed`, or if a penalty needs it."""
        training, batch = self.training, self._batch()
        rate = learning_rate(self.step, training)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        body, sites = self.model.base_model, self.sites
        if self._compiled is not None and not observed and self.specimen.l1 == 0:
            body, sites = self._compiled, []
        balanced = self.specimen.config.get(BALANCE, 0.0) > 0
        routing = {"output_router_logits": True} if balanced else {}
        with _observing(self.model.base_model, sites) as activity, self._autocast():
            outputs = body(input_ids=batch.ids, use_cache=False, **routing)
        hidden = outputs.last_hidden_state
        head = self.model.get_output_embeddings().weight
        loss = weighted_loss(hidden, head, batch, training.recall.answer_weight, self.dtype)
        total, penalty = loss.total, 0.0
        if self.specimen.l1 > 0:
            warmth = min(1.0, (self.step + 1) / max(1, training.warmup))
            term = warmth * self.specimen.l1 * torch.stack(activity.l1).mean()
            total, penalty = total + term, float(term.detach())
        if balanced:
            term = self._balance(outputs)
            total, penalty = total + term, penalty + float(term.detach())
        if not bool(torch.isfinite(total)):
            raise ModelError(
                f"training: the loss is not finite at step {self.step}; lower"
                " training.learning_rate or training.clip, or set dtype: float32"
            )
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), training.clip)
        self.optimizer.step()
        zeros = torch.stack(activity.zeros) if activity.zeros else torch.full((1,), math.nan)
        return {
            "split": "training",
            "text_nll": loss.text,
            "answer_nll": loss.answers,
            "answer_accuracy": loss.correct,
            "zeros_mean": float(zeros.mean()),
            "zeros_min": float(zeros.min()),
            "penalty": penalty,
            "learning_rate": rate,
        }

    def _balance(self, outputs: Any) -> Tensor:
        """The loss that spreads tokens over experts.

        Raises:
            ConfigError: the model does not say how its routers decide.
        """
        logits = getattr(outputs, "router_logits", None)
        if not logits:
            raise ConfigError(
                f"training.specimens.{self.name}.config.{BALANCE}: a"
                f" {self.model.config.model_type} gives no router logits; leave the key out"
            )
        return balance_loss(logits, self.model.config)

    def _batch(self) -> Batch:
        batch = self.rows.batch(self.step)
        return Batch(*(part.to(self.device) for part in (batch.ids, batch.answers, batch.recall)))

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    @torch.inference_mode()
    def heldout_nll(self) -> float:
        """Mean negative log-likelihood of the held-out rows, in nats per token."""
        self.model.eval()
        total = 0.0
        for rows in self.heldout.split(8):
            ids = rows.to(self.device)
            with self._autocast():
                logits = self.model(input_ids=ids, use_cache=False).logits
            targets = ids[:, 1:].flatten()
            logits = logits[:, :-1].flatten(0, 1).float()
            total += float(cross_entropy(logits, targets, reduction="sum"))
        return total / (self.heldout.shape[0] * (self.heldout.shape[1] - 1))

    def fingerprint(self) -> str:
        """SHA-256 of what a checkpoint belongs to: architecture, schedule and data."""
        training = self.training.model_dump_json(
            exclude={"specimens", "checkpoint_every", "compile"}
        )
        return store.fingerprint(self.specimen.model_dump_json(), training, self.rows.fingerprint)

    def save(self, folder: Path) -> None:
        """Write the checkpoint, atomically."""
        state = {
            "identity": self.fingerprint(),
            "step": self.step,
            "seconds": self.seconds,
            "records": self.records,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with store.replacing(folder / CHECKPOINT) as temporary:
            torch.save(state, temporary)

    def resume(self, folder: Path) -> None:
        """Resume from the checkpoint in `folder`; one of other settings is renamed, not used."""
        path = folder / CHECKPOINT
        if not path.is_file():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["identity"] != self.fingerprint():
            path.replace(path.with_suffix(".pt.other"))
            logger.warning("%s has other settings; renamed to %s.other", path, path.name)
            return
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.records = state["step"], state["seconds"], state["records"]
        logger.info("%s: resumed at step %d", self.name, self.step)


def _prepare(name: str, model: PreTrainedModel) -> None:
    """Choose the attention that trains faster, and check that `weighted_loss` fits the model.

    Raises:
        ConfigError: the logits are not the product of hidden states and output embedding.
    """
    if (
        next(model.parameters()).device.type == "cpu"
        and model.config._attn_implementation == "sdpa"
    ):
        # On a CPU, the backward pass of fused attention is several times slower than two products.
        model.set_attn_implementation("eager")
    ids = torch.arange(4, device=model.device)[None]
    with torch.no_grad():
        expected = model.eval()(input_ids=ids, use_cache=False).logits
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    head = model.get_output_embeddings()
    if not torch.allclose(hidden @ head.weight.T, expected, rtol=1e-3, atol=1e-4):
        raise ConfigError(
            f"training.specimens.{name}.model_type: {model.config.model_type} scales or shifts its"
            " logits, which the training does not support; choose another architecture"
        )


def _parameter_groups(model: PreTrainedModel, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices, none for vectors (biases, norms, time constants)."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
