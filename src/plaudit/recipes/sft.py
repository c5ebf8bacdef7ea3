"""Supervised fine-tuning: imitate demonstrations, the loss on their completions' tokens alone; or learn plain text.

The first step of Ouyang et al. 2022 (section 3.5); read `run` from top to bottom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from plaudit import files
from plaudit.algorithms.nll_loss import nll_loss
from plaudit.config import Config as Base
from plaudit.data.collate import Packed, micro_batches, pack
from plaudit.data.demonstrations import Shown, read_demonstrations, split
from plaudit.evaluation.profile_page import page_if
from plaudit.evaluation.run_report import write_run_report
from plaudit.models.branch import Branch, token_logprobs
from plaudit.models.dropout import row_dropout
from plaudit.models.load import Model, load_model
from plaudit.phases import phase
from plaudit.randomness import rng, torch_seed
from plaudit.training import checkpoint, machine
from plaudit.training.metrics import Metrics
from plaudit.training.mixture import (
    MixtureConfig,
    draw_batch,
    first_weights,
    next_weights,
    reference_losses,
    task_names,
)
from plaudit.training.optim import (
    OptimizerConfig,
    ScheduleName,
    add_l1,
    check_weights,
    make_optimizer,
    scheduled,
    take_step,
)
from plaudit.training.policy import AdapterConfig, make_policy, write_policy
from plaudit.training.stop import Best, check_finite, measured
from plaudit.types import UserError


class Config(Base):
    """Settings of the sft recipe; each is described in docs/configs.md."""

    model: str = "smollm2"
    data: list[str] = Field(min_length=1)
    window: int = Field(default=512, ge=1)
    seed: int = 0
    heldout: float = Field(default=0.1, ge=0, lt=1)
    evaluate_every: int | None = Field(default=None, ge=1)
    patience: int | None = Field(default=None, ge=1)
    keep: Literal["last", "best"] = "last"
    epochs: int = Field(default=3, ge=1)
    batch_size: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=2e-4, gt=0)
    schedule: ScheduleName = "linear"
    warmup: float = Field(default=0.05, ge=0, le=1)
    rate_end: float = Field(default=0.0, ge=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0)
    l1: float = Field(default=0.0, ge=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    optimizer: OptimizerConfig = OptimizerConfig()
    mixture: MixtureConfig = MixtureConfig()
    adapter: AdapterConfig = AdapterConfig()
    precision: machine.Precision = "auto"
    micro_batch_tokens: machine.MicroBatchTokens = 0
    threads: int = Field(default=0, ge=0)
    profile: bool = False
    checkpoint_every: int = Field(default=20, ge=1)

    @model_validator(mode="after")
    def _settings_fit(self) -> Config:
        wants = {"keep best": self.keep == "best", "patience": self.patience is not None}
        wants |= {f"mixture rule {self.mixture.rule}": self.mixture.rule in ("excess", "ratio")}
        for name, wanted in wants.items():
            if wanted and self.heldout == 0:
                raise ValueError(f"{name} goes by the held-out loss, and heldout 0 measures none")
        if self.schedule == "exponential" and self.rate_end == 0:
            raise ValueError("an exponential schedule never reaches 0; set rate_end, such as 0.01")
        if len(set(self.data)) < len(self.data):
            raise ValueError("data names a file twice; mixture.weights says how often a task is seen")
        if self.mixture.weights and len(self.mixture.weights) != len(self.data):
            raise ValueError(
                f"mixture.weights are {len(self.mixture.weights)}, data's files {len(self.data)}"
            )
        return self


@dataclass(frozen=True, slots=True)
class Task:
    """What one file shows: to train on, and to measure with."""

    name: str
    training: list[Shown]
    heldout: list[Shown]


def run(config: Config, directory: Path, *, model: Model | None = None) -> dict[str, Any]:
    """Train in a run directory, from its latest checkpoint if it has one; returns the summary.

    UserError where the data holds anything but demonstrations, one is too long, or the loss is no number.
    """
    # 1. Demonstrations as ids, a task a file; those of some prompts are held out.
    device, dtype = machine.prepare(config.precision, config.threads)
    model = model or load_model(config.model, dtype, device)
    tasks = read_tasks(config, model)
    training = {task.name: task.training for task in tasks}
    sizes = {name: len(shown) for name, shown in training.items()}
    begun = first_weights(config.mixture, task_names(config.data), sizes)
    goals = reference_losses(config.mixture, list(sizes))

    # 2. An adapter on the frozen trunk, or (rank 0) a copy of the trunk that is trained whole.
    branch = make_policy(model, config.adapter, seed=torch_seed(config.seed, "sft adapter"))
    parameters = branch.parameters()
    optimizer = make_optimizer(
        config.optimizer, parameters, learning_rate=config.learning_rate, weight_decay=config.weight_decay
    )
    before, first = heldout_losses(tasks, branch, config)

    # 3. An epoch has as many examples as there are. Go on from the latest checkpoint.
    epoch = math.ceil(sum(sizes.values()) / config.batch_size)
    steps = config.epochs * epoch
    warmup = math.ceil(config.warmup * steps)
    every = epoch if config.evaluate_every is None else config.evaluate_every
    done, after, by_task, stopped = 0, before, first, None
    best, weights, taken = Best(0, before or 0.0), begun, dict.fromkeys(sizes, 0)
    if (found := checkpoint.latest(directory / "checkpoints")) is not None:
        tensors, state = found
        done, after, by_task, stopped = (
            state[name] for name in ("step", "heldout_loss", "heldout_losses", "stopped")
        )
        best, weights, taken = Best(**state["best"]), state["weights"], state["taken"]
        branch.load_state(checkpoint.unprefixed("policy", tensors))
        checkpoint.load_optimizer(optimizer, tensors)

    with Metrics(directory, total=steps, done=done, title="sft", profile=page_if(config.profile)) as metrics:
        for step in range(done, steps):
            if stopped is not None:
                break

            # 4. This step's examples: the next of one keyed order of all, or drawn by the tasks' weights.
            if config.mixture.rule == "all":
                batch = batch_of(step, training, config)
            else:
                drawn, taken = draw_batch(
                    sizes, weights, taken, count=config.batch_size, seed=config.seed, step=step
                )
                batch = [training[name][place] for name, place in drawn]

            # 5. One step: the mean over the batch's completion tokens, whatever the split into micro-batches.
            row = train_on(batch, branch, config, step)
            if config.l1 > 0:
                row["l1_norm"] = add_l1(parameters, config.l1)
            factor = scheduled(config.schedule, step, steps, warmup=warmup, end=config.rate_end)
            row["learning_rate"] = rate = config.learning_rate * factor
            row["grad_norm"] = take_step(
                optimizer, parameters, learning_rate=rate, max_grad_norm=config.max_grad_norm
            )
            line = f"loss {row['loss']:.3f}"
            if config.mixture.rule != "all":
                row |= {f"weight/{name}": weight for name, weight in weights.items()}

            # 6. Now and then the loss on prompts never trained on: what is best, when to stop, what to draw next.
            better = False
            if before is not None and ((step + 1) % every == 0 or step + 1 == steps):
                after, by_task = heldout_losses(tasks, branch, config)
                assert after is not None
                row |= {"heldout_loss": after} | {f"heldout_loss/{name}": x for name, x in by_task.items()}
                line += f"  held-out loss {after:.3f}"
                best = measured(best, step + 1, after)
                better = best.step == step + 1
                if config.patience is not None and best.since >= config.patience:
                    stopped = f"the held-out loss has not fallen below {best.loss:.4f}, its value at step {best.step}"
                weights = next_weights(
                    config.mixture, weights, by_task, begun=begun, first=first, goals=goals
                )
            check_finite(step, directory, row["loss"], row["grad_norm"], row.get("heldout_loss", 0.0))

            # 7. Say so, then save: what a kill cuts off between the two comes again.
            metrics.log(step + 1, row, line)
            due = (step + 1) % config.checkpoint_every == 0 or step + 1 == steps or stopped is not None
            if due or (better and config.keep == "best"):
                tensors = checkpoint.prefixed("policy", branch.state())
                tensors |= checkpoint.optimizer_tensors(optimizer)
                state = {"heldout_loss": after, "heldout_losses": by_task, "stopped": stopped}
                state |= {"best": asdict(best), "weights": weights, "taken": taken}
                spare = best.step if config.keep == "best" else None
                checkpoint.save(directory / "checkpoints", step + 1, tensors, state, spare=spare)

    # 8. The result as an adapter (peft's format) and as a whole model that transformers loads: the last one, or that
    # of the lowest held-out loss (which is the model as it was, where training never lowered it).
    if config.keep == "best":
        branch = make_policy(model, config.adapter, seed=torch_seed(config.seed, "sft adapter"))
        if best.step > 0:
            tensors, _ = checkpoint.at(directory / "checkpoints", best.step)
            branch.load_state(checkpoint.unprefixed("policy", tensors))
        after, by_task = heldout_losses(tasks, branch, config)
    check_weights(branch.parameters(), directory)
    write_policy(branch, model, directory)
    last = metrics.history[-1]
    summary = {
        "steps": last["step"],
        "stopped": stopped,
        "kept_step": best.step if config.keep == "best" else last["step"],
        "demonstrations": sum(sizes.values()),
        "heldout_demonstrations": sum(len(task.heldout) for task in tasks),
        "loss": last["loss"],
        "heldout_loss_before": before,
        "heldout_loss": after,
        "heldout_losses": by_task,
    }
    write_run_report(directory, summary)
    files.write_json(directory / "summary.json", summary)
    return summary


def read_tasks(config: Config, model: Model) -> list[Task]:
    """The files' tasks, in the order of their names. UserError where nothing is left to train on."""
    tasks = []
    for name, path in sorted(zip(task_names(config.data), config.data, strict=True)):
        shown = read_demonstrations([path], model.tokenizer, model.trunk.shape.context, config.window)
        tasks.append(Task(name, *split(shown, config.heldout, config.seed)))
    follows = config.mixture.rule in ("excess", "ratio")
    if not any(task.training for task in tasks):
        count = sum(len(task.heldout) for task in tasks)
        raise UserError(
            f"all {count} demonstrations are held out", where="heldout", fix="lower it, or add more data"
        )
    if (config.keep == "best" or config.patience is not None) and not any(task.heldout for task in tasks):
        raise UserError("no prompt is held out", where="heldout", fix="raise it, or add more data")
    for task in tasks:
        if config.mixture.rule != "all" and not task.training:
            raise UserError(
                f"all of {task.name} is held out", where="heldout", fix="lower it, or add more data"
            )
        if follows and not task.heldout:
            raise UserError(
                f"nothing of {task.name} is, so its weight cannot follow its loss",
                where="heldout",
                fix="raise it, or add more data",
            )
    return tasks


def batch_of(step: int, training: dict[str, list[Shown]], config: Config) -> list[Shown]:
    """The demonstrations of a step where each comes once an epoch; an epoch's last batch holds what is left."""
    shown = [s for task in training.values() for s in task]
    epoch, at = divmod(step, math.ceil(len(shown) / config.batch_size))
    order = rng(config.seed, "sft order", epoch).permutation(len(shown))
    return [shown[int(i)] for i in order[at * config.batch_size : (at + 1) * config.batch_size]]


@phase("learning")
def train_on(batch: Sequence[Shown], branch: Branch, config: Config, step: int) -> dict[str, float]:
    """Gradients of one batch, micro-batch after micro-batch; the loss is in nats a completion token."""
    packed = packed_of(batch, branch)
    total = float(packed.mask.sum())
    row = {"loss": 0.0, "tokens": total}
    for rows in micro_batches(packed, config.micro_batch_tokens):
        part, _ = packed.take(rows)
        dropout = row_dropout(config.dropout, part, rows, (config.seed, "dropout", step))
        out = nll_loss(token_logprobs(branch, part, dropout=dropout).logprobs, part.mask, total=total)
        torch.autograd.backward(out.loss)
        row["loss"] += float(out.metrics["nll"])
    return row


@phase("held out")
@torch.no_grad()
def heldout_losses(
    tasks: Sequence[Task], branch: Branch, config: Config
) -> tuple[float | None, dict[str, float]]:
    """The mean loss in nats a held-out completion token (None where nothing is held out), and each task's own."""
    sums, counts = dict[str, float](), dict[str, float]()
    for task in tasks:
        if not task.heldout:
            continue
        packed = packed_of(task.heldout, branch)
        sums[task.name], counts[task.name] = 0.0, float(packed.mask.sum())
        for rows in micro_batches(packed, config.micro_batch_tokens):
            part, _ = packed.take(rows)
            sums[task.name] -= float(token_logprobs(branch, part).logprobs.sum())
    by_task = {name: sums[name] / counts[name] for name in sums}
    return (sum(sums.values()) / sum(counts.values()) if sums else None), by_task


def packed_of(shown: Sequence[Shown], branch: Branch) -> Packed:
    return pack([s.prompt for s in shown], [s.completion for s in shown], device=branch.trunk.device)
