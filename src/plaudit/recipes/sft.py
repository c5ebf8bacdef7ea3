"""Supervised fine-tuning: imitate demonstrations, the loss on their completions' tokens alone.

The first step of Ouyang et al. 2022 (section 3.5); read `run` from top to bottom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from plaudit import files
from plaudit.algorithms.nll_loss import nll_loss
from plaudit.config import Config as Base
from plaudit.data.collate import Packed, micro_batches, pack
from plaudit.data.formats import read_records
from plaudit.data.judged import prompt_key
from plaudit.data.tokenizer import Tokenizer
from plaudit.models.branch import Branch, token_logprobs
from plaudit.models.load import Model, load_model
from plaudit.randomness import rng, torch_seed
from plaudit.training import checkpoint, machine
from plaudit.training.metrics import Metrics
from plaudit.training.optim import adam, linear_to_zero, take_step
from plaudit.training.policy import AdapterConfig, make_policy, write_policy
from plaudit.types import Demonstration, UserError


class Config(Base):
    """Settings of the sft recipe; each is described in docs/configs.md."""

    model: str = "smollm2"
    data: list[str] = Field(min_length=1)
    seed: int = 0
    heldout: float = Field(default=0.1, ge=0, lt=1)
    epochs: int = Field(default=3, ge=1)
    batch_size: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=2e-4, gt=0)
    warmup: float = Field(default=0.05, ge=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    adapter: AdapterConfig = AdapterConfig()
    micro_batch_tokens: int = Field(default=4096, ge=1)
    precision: machine.Precision = "auto"
    threads: int = Field(default=0, ge=0)
    checkpoint_every: int = Field(default=20, ge=1)


@dataclass(frozen=True, slots=True)
class Shown:
    """One demonstration as ids; key is equal for equal prompts. The completion ends with the end-of-text token."""

    key: str
    prompt: list[int]
    completion: list[int]


def run(config: Config, directory: Path, *, model: Model | None = None) -> dict[str, Any]:
    """Train in a run directory, from its latest checkpoint if it has one; returns the summary.

    UserError where the data holds anything but demonstrations, one is too long, or the loss is no number.
    """
    # 1. Demonstrations as ids; those of some prompts are held out.
    device, dtype = machine.prepare(config.precision, config.threads)
    model = model or load_model(config.model, dtype, device)
    shown = read_demonstrations(config.data, model.tokenizer, model.trunk.shape.context)
    training, heldout = split(shown, config)

    # 2. An adapter on the frozen trunk, or (rank 0) a copy of the trunk that is trained whole.
    branch = make_policy(model, config.adapter, seed=torch_seed(config.seed, "sft adapter"))
    parameters = branch.parameters()
    optimizer = adam(parameters, learning_rate=config.learning_rate, weight_decay=config.weight_decay)
    before = mean_loss(heldout, branch, config) if heldout else None

    # 3. Every epoch takes each demonstration once, in a keyed order. Go on from the latest checkpoint.
    batches = batches_of(len(training), config)
    warmup = math.ceil(config.warmup * len(batches))
    done, after = 0, before
    if (found := checkpoint.latest(directory / "checkpoints")) is not None:
        tensors, state = found
        done, after = int(state["step"]), state["heldout_loss"]
        branch.load_state(checkpoint.unprefixed("policy", tensors))
        checkpoint.load_optimizer(optimizer, tensors)

    with Metrics(directory, total=len(batches), done=done, title="sft") as metrics:
        for step in range(done, len(batches)):
            # 4. One step: the mean over the batch's completion tokens, whatever the split into micro-batches.
            row = train_on([training[i] for i in batches[step]], branch, config)
            rate = config.learning_rate * linear_to_zero(step, len(batches), warmup)
            row["learning_rate"] = rate
            row["grad_norm"] = take_step(
                optimizer, parameters, learning_rate=rate, max_grad_norm=config.max_grad_norm
            )
            if not math.isfinite(row["loss"]) or not math.isfinite(row["grad_norm"]):
                raise UserError(
                    f"the loss is not a number at step {step + 1}",
                    where=str(directory),
                    fix="lower the learning rate",
                )

            # 5. At an epoch's end, the loss on prompts never trained on. Say so, then save: what a kill cuts off
            # between the two comes again.
            line = f"loss {row['loss']:.3f}"
            if heldout and (step + 1) % (len(batches) // config.epochs) == 0:
                row["heldout_loss"] = after = mean_loss(heldout, branch, config)
                line += f"  held-out loss {after:.3f}"
            metrics.log(step + 1, row, line)
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == len(batches):
                tensors = checkpoint.prefixed("policy", branch.state())
                tensors |= checkpoint.optimizer_tensors(optimizer)
                checkpoint.save(directory / "checkpoints", step + 1, tensors, {"heldout_loss": after})

    # 6. The result as an adapter (peft's format) and as a whole model that transformers loads.
    write_policy(branch, model, directory)
    summary = {
        "steps": len(batches),
        "demonstrations": len(training),
        "heldout_demonstrations": len(heldout),
        "loss": metrics.history[-1]["loss"],
        "heldout_loss_before": before,
        "heldout_loss": after,
    }
    files.write_json(directory / "summary.json", summary)
    return summary


def read_demonstrations(paths: Sequence[str], tokenizer: Tokenizer, context: int) -> list[Shown]:
    """All files' demonstrations as ids. UserError for another kind of record, or one too long for the model."""
    shown = []
    for path in paths:
        for number, record in enumerate(read_records(path), 1):
            where = f"{path}: record {number}"
            if not isinstance(record, Demonstration):
                raise UserError(
                    f"is a {type(record).__name__.lower()}, not a demonstration",
                    where=where,
                    fix='write {"prompt": ..., "completion": ...}, or train a reward model on it',
                )
            prompt, completion = tokenizer.render(record.prompt), tokenizer.complete(record.completion)
            if (length := len(prompt) + len(completion)) > context:
                raise UserError(
                    f"has {length} tokens, the model takes {context}",
                    where=where,
                    fix="shorten it or leave it out",
                )
            shown.append(Shown(prompt_key(record.prompt), prompt, completion))
    return shown


def split(shown: Sequence[Shown], config: Config) -> tuple[list[Shown], list[Shown]]:
    """Training and held-out demonstrations. Which side a prompt is on, with all its demonstrations, depends on the
    seed and the prompt alone. UserError where nothing is left to train on."""
    held = {s.key for s in shown if rng(config.seed, "heldout", s.key).random() < config.heldout}
    training = [s for s in shown if s.key not in held]
    if not training:
        raise UserError(
            f"all {len(shown)} demonstrations are held out", where="heldout", fix="lower it, or add more data"
        )
    return training, [s for s in shown if s.key in held]


def batches_of(count: int, config: Config) -> list[list[int]]:
    """The demonstrations of each step; an epoch's last batch holds what is left."""
    orders = [rng(config.seed, "sft order", epoch).permutation(count) for epoch in range(config.epochs)]
    size = config.batch_size
    return [[int(i) for i in order[at : at + size]] for order in orders for at in range(0, count, size)]


def train_on(batch: Sequence[Shown], branch: Branch, config: Config) -> dict[str, float]:
    """Gradients of one batch, micro-batch after micro-batch; the loss is in nats a completion token."""
    packed = packed_of(batch, branch)
    total = float(packed.mask.sum())
    row = {"loss": 0.0, "tokens": total}
    for rows in micro_batches(packed, config.micro_batch_tokens):
        part, _ = packed.take(rows)
        out = nll_loss(token_logprobs(branch, part).logprobs, part.mask, total=total)
        torch.autograd.backward(out.loss)
        row["loss"] += float(out.metrics["nll"])
    return row


@torch.no_grad()
def mean_loss(shown: Sequence[Shown], branch: Branch, config: Config) -> float:
    """Mean loss in nats a completion token."""
    packed = packed_of(shown, branch)
    total, loss = float(packed.mask.sum()), 0.0
    for rows in micro_batches(packed, config.micro_batch_tokens):
        part, _ = packed.take(rows)
        loss += float(nll_loss(token_logprobs(branch, part).logprobs, part.mask, total=total).loss)
    return loss


def packed_of(shown: Sequence[Shown], branch: Branch) -> Packed:
    return pack([s.prompt for s in shown], [s.completion for s in shown], device=branch.trunk.device)
