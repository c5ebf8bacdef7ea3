"""Kahneman-Tversky optimisation: a policy learns from completions that are each called good or bad, without pairs.

Ethayarajh et al. 2024: read `run` from top to bottom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from plaudit import files
from plaudit.algorithms.preference_loss import kto_baseline, kto_loss
from plaudit.config import Config as Base
from plaudit.data.collate import micro_batches, pack
from plaudit.data.formats import read_records
from plaudit.data.judged import Judged, group_by_prompt, known_ids, prompt_key, split_by_prompt
from plaudit.evaluation.profile_page import page_if
from plaudit.evaluation.run_report import write_run_report
from plaudit.models.branch import Branch, token_logprobs
from plaudit.models.load import Model, load_model
from plaudit.phases import phase
from plaudit.randomness import rng, torch_seed
from plaudit.training import checkpoint, machine
from plaudit.training.metrics import Metrics
from plaudit.training.optim import adam, check_weights, linear_to_zero, take_step
from plaudit.training.policy import AdapterConfig, check_start, make_policy, write_policy
from plaudit.training.stop import check_finite
from plaudit.types import Preference, Ranking, Rating, Record, UserError

AT_ONCE = 256  # completions that are packed together where nothing is learned, so that memory has a bound


class Config(Base):
    """Settings of the kto recipe; each is described in docs/configs.md."""

    model: str = "smollm2"
    data: list[str] = Field(min_length=1)
    samples: list[str] = Field(default=[])
    start: str | None = None
    seed: int = 0
    heldout: float = Field(default=0.1, ge=0, lt=1)
    threshold: float = Field(default=0.5, gt=0, le=1)
    beta: float = Field(default=0.1, gt=0)
    desirable_weight: float = Field(default=1.0, gt=0)
    undesirable_weight: float = Field(default=1.0, gt=0)
    epochs: int = Field(default=1, ge=1)
    batch_size: int = Field(default=16, ge=2)
    learning_rate: float = Field(default=5e-5, gt=0)
    warmup: float = Field(default=0.1, ge=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    adapter: AdapterConfig = AdapterConfig()
    precision: machine.Precision = "auto"
    micro_batch_tokens: machine.MicroBatchTokens = 0
    threads: int = Field(default=0, ge=0)
    profile: bool = False
    checkpoint_every: int = Field(default=20, ge=1)

    @model_validator(mode="after")
    def _settings_fit(self) -> Config:
        check_start(self.start, self.adapter)
        return self


@dataclass(frozen=True, slots=True)
class Labelled:
    """One completion that was called good or bad, as ids. key: equal for equal prompts; weight: how much it counts."""

    key: str
    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    desirable: bool
    weight: float = 1.0


Text = tuple[tuple[int, ...], tuple[int, ...]]
"""A prompt's ids and the ids that follow it."""


def run(config: Config, directory: Path, *, model: Model | None = None) -> dict[str, Any]:
    """Train in a run directory, from its latest checkpoint if it has one; returns the summary.

    UserError where the data holds demonstrations, says nothing to learn, or the loss is no number.
    """
    # 1. Each completion once, good or bad by the majority of what was said of it; those of some prompts are held out.
    device, dtype = machine.prepare(config.precision, config.threads)
    model = model or load_model(config.model, dtype, device)
    ids = known_ids(config.samples, model.tokenizer.fingerprint)
    records = read_judgements(config.data)
    judged = group_by_prompt(records, model.tokenizer, ids, context=model.trunk.shape.context)
    votes = votes_of(records, config.threshold)
    training, heldout = (
        labelled(side, votes) for side in split_by_prompt(judged, config.heldout, config.seed)
    )
    check(training, heldout, config)

    # 2. An adapter on the frozen trunk, or (rank 0) a copy of the trunk that is trained whole.
    policy = make_policy(
        model, config.adapter, seed=torch_seed(config.seed, "policy adapter"), start=config.start
    )
    parameters = policy.parameters()
    optimizer = adam(parameters, learning_rate=config.learning_rate, weight_decay=config.weight_decay)

    # 3. Every epoch takes each completion once, in a keyed order; beside each stands another prompt's completion,
    # for the baseline. The reference is the policy before its first step: one pass over all texts that will ever
    # be asked for, kept in every checkpoint. Go on from the latest.
    batches = batches_of(training, config)
    measured = (heldout, mismatched(heldout, [*heldout, *training])) if heldout else ([], [])
    own = {(s.prompt, s.completion) for side in (training, heldout) for s in side}
    texts = sorted(own.union(*(others for _, others in [*batches, measured])))  # neighbours share a prompt
    if (found := checkpoint.latest(directory / "checkpoints")) is not None:
        tensors, state = found
        done, before, after = int(state["step"]), state["before"], state["after"]
        reference = dict(zip(texts, tensors["reference"].to(device), strict=True))
        policy.load_state(checkpoint.unprefixed("policy", tensors))
        checkpoint.load_optimizer(optimizer, tensors)
    else:
        done = 0
        reference = dict(zip(texts, sums_of(texts, policy, config), strict=True))
        before = after = measure(*measured, policy, reference, config) if heldout else {}

    def save(step: int) -> None:
        tensors = checkpoint.prefixed("policy", policy.state()) | checkpoint.optimizer_tensors(optimizer)
        tensors["reference"] = torch.stack([reference[text] for text in texts])
        checkpoint.save(directory / "checkpoints", step, tensors, {"before": before, "after": after})

    warmup = math.ceil(config.warmup * len(batches))
    with Metrics(
        directory, total=len(batches), done=done, title="kto", profile=page_if(config.profile)
    ) as metrics:
        for step in range(done, len(batches)):
            # 4. One step: the mean over the batch's completions, whatever the split into micro-batches.
            row = take_gradients(*batches[step], policy, reference, config)
            rate = config.learning_rate * linear_to_zero(step, len(batches), warmup)
            row["learning_rate"] = rate
            row["grad_norm"] = take_step(
                optimizer, parameters, learning_rate=rate, max_grad_norm=config.max_grad_norm
            )
            check_finite(step, directory, row["loss"], row["grad_norm"])

            # 5. At an epoch's end, prompts never trained on. Say so, then save: what a kill cuts off between the two
            # comes again.
            line = f"loss {row['loss']:.3f}  accuracy {row['accuracy']:.2f}  baseline {row['baseline']:.3f}"
            if heldout and (step + 1) % (len(batches) // config.epochs) == 0:
                after = measure(*measured, policy, reference, config)
                row |= {f"heldout_{name}": value for name, value in after.items()}
                line += "  held-out " + " ".join(f"{name} {value:.3g}" for name, value in after.items())
            metrics.log(step + 1, row, line)
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == len(batches):
                save(step + 1)

    # 6. The result as an adapter (peft's format) and as a whole model that transformers loads.
    check_weights(parameters, directory)
    write_policy(policy, model, directory)
    good = sum(s.desirable for s in training)
    summary = {
        "steps": len(batches),
        "desirable": good,
        "undesirable": len(training) - good,
        "undecided": sum(vote == 0 for vote in votes.values()),
        "empty": sum(not text for _, text in votes),
        "heldout_completions": len(heldout),
        "loss": metrics.history[-1]["loss"],
        "heldout_loss_before": before.get("loss"),
        **{f"heldout_{name}": after.get(name) for name in ("loss", "accuracy")},
    }
    write_run_report(directory, summary)
    files.write_json(directory / "summary.json", summary)
    return summary


def read_judgements(paths: Sequence[str]) -> list[Record]:
    """All files' comparisons, rankings and ratings. UserError for another kind of record."""
    records: list[Record] = []
    for path in paths:
        for number, record in enumerate(read_records(path), 1):
            if not isinstance(record, Preference | Ranking | Rating):
                raise UserError(
                    "is a demonstration, which says what is good and not what is bad",
                    where=f"{path}: record {number}",
                    fix="leave it out, or train sft on it",
                )
            records.append(record)
    return records


def votes_of(records: Sequence[Record], threshold: float) -> dict[tuple[str, str], int]:
    """(prompt's key, completion's text) -> judgements for it less judgements against it.

    A comparison is one for the chosen and one against the other; a tie says nothing; both bad is one against each.
    A ranking is one for every completion below, and one against for every one above. A rating is one for it from
    the threshold up (overall, or the mean of the criteria), else one against.
    """
    votes: dict[tuple[str, str], int] = {}
    for record in records:
        said: list[tuple[str, int]] = []
        if isinstance(record, Preference) and record.completions[0] != record.completions[1]:
            signs = {0: (1, -1), 1: (-1, 1), "tie": (0, 0), "both_bad": (-1, -1)}[record.choice]
            said = list(zip(record.completions, signs, strict=True))
        elif isinstance(record, Ranking):
            last = len(record.ranking) - 1
            said = [(record.completions[i], last - 2 * place) for place, i in enumerate(record.ranking)]
        elif isinstance(record, Rating):
            said = [(record.completion, 1 if record.overall >= threshold else -1)]
        for text, vote in said:
            key = (prompt_key(record.prompt), text)
            votes[key] = votes.get(key, 0) + vote
    return votes


def labelled(judged: Sequence[Judged], votes: dict[tuple[str, str], int]) -> list[Labelled]:
    """The completions on which the judgements do not cancel out."""
    return [
        Labelled(group.key, tuple(group.prompt), tuple(completion), votes[group.key, text] > 0)
        for group in judged
        for completion, text in zip(group.completions, group.texts, strict=True)
        if votes.get((group.key, text), 0) != 0
    ]


def check(training: Sequence[Labelled], heldout: Sequence[Labelled], config: Config) -> None:
    """UserError where there is nothing to learn from."""
    where = ", ".join(config.data)
    if not training and heldout:
        raise UserError(
            f"all {len(heldout)} completions are held out", where="heldout", fix="lower it, or add more data"
        )
    if not training:
        raise UserError(
            "calls no completion good or bad", where=where, fix="collect judgements that are no ties"
        )
    if len({s.desirable for s in training}) < 2:
        side, other = ("desirable", "above") if training[0].desirable else ("undesirable", "below")
        raise UserError(
            f"all {len(training)} completions are {side}, so there is nothing to tell apart",
            where=where,
            fix=f"collect the other kind, or where these are ratings set threshold {other} {config.threshold}",
        )
    if len({s.key for s in training}) < 2:
        raise UserError(
            "judges completions of one prompt, and the baseline needs another's",
            where=where,
            fix="add judgements of other prompts",
        )


Batch = tuple[list[Labelled], list[Text]]
"""Completions to learn from, and as many mismatched texts for the baseline."""


def batches_of(training: Sequence[Labelled], config: Config) -> list[Batch]:
    """Each step's; an epoch's last batch holds what is left."""
    batches, size = [], config.batch_size
    for epoch in range(config.epochs):
        order = rng(config.seed, "preference order", epoch).permutation(len(training))
        ordered = [training[int(i)] for i in order]
        for at in range(0, len(ordered), size):
            batch = ordered[at : at + size]
            batches.append((batch, mismatched(batch, ordered, at)))
    return batches


def mismatched(batch: Sequence[Labelled], order: Sequence[Labelled], start: int = 0) -> list[Text]:
    """Each sample's prompt with the completion of the next sample of another prompt: in the batch, which goes round,
    or, where the batch has one prompt only, in the order in which it stands at `start`."""
    texts: list[Text] = []
    for i, sample in enumerate(batch):
        here = (batch[(i + k) % len(batch)] for k in range(1, len(batch)))
        beyond = (order[(start + k) % len(order)] for k in range(len(order)))
        other = next(s for s in chain(here, beyond) if s.key != sample.key)
        texts.append((sample.prompt, other.completion))
    return texts


@torch.no_grad()
def sums_of(texts: Sequence[Text], policy: Branch, config: Config) -> Tensor:
    """[texts]: the log-probability of each, summed over its tokens, without gradients."""
    out = torch.zeros(len(texts), dtype=policy.trunk.wide, device=policy.trunk.device)
    for at in range(0, len(texts), AT_ONCE):
        packed = pack(*zip(*texts[at : at + AT_ONCE], strict=True), device=policy.trunk.device)
        for rows in micro_batches(packed, config.micro_batch_tokens):
            part, index = packed.take(rows)
            out[at + index] = token_logprobs(policy, part).logprobs.sum(1).to(out.dtype)
    return out


Reference = dict[Text, Tensor]


@phase("learning")
def take_gradients(
    batch: Sequence[Labelled], others: Sequence[Text], policy: Branch, reference: Reference, config: Config
) -> dict[str, float]:
    """Gradients of one batch, micro-batch after micro-batch (none where they are off), and what it says of the
    policy before the step. others: none where no other prompt is known; the baseline, nats a completion, is then 0."""
    ref = torch.stack([reference[s.prompt, s.completion] for s in batch])
    baseline = torch.zeros((), dtype=ref.dtype, device=ref.device)
    weight = torch.tensor([s.weight for s in batch], dtype=ref.dtype, device=ref.device)
    if others:
        expected = torch.stack([reference[text] for text in others])
        baseline = kto_baseline(sums_of(others, policy, config), expected, weight)
    packed = pack([s.prompt for s in batch], [s.completion for s in batch], device=policy.trunk.device)
    desirable = torch.tensor([s.desirable for s in batch], device=policy.trunk.device)
    sums: dict[str, float] = {}
    for rows in micro_batches(packed, config.micro_batch_tokens):
        part, index = packed.take(rows)
        out = kto_loss(
            token_logprobs(policy, part).logprobs.sum(1),
            ref[index],
            desirable[index],
            baseline,
            weight[index],
            total=weight.sum(),
            beta=config.beta,
            desirable_weight=config.desirable_weight,
            undesirable_weight=config.undesirable_weight,
        )
        if torch.is_grad_enabled():
            torch.autograd.backward(out.loss)
        for name, value in {"loss": out.loss, **out.metrics}.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
    row = {"loss": sums["loss"], "accuracy": sums["correct"], "baseline": float(baseline)}
    for side in ("desirable", "undesirable"):
        row[f"reward_{side}"] = sums[f"reward_{side}"] / sums[side] if sums[side] else math.nan
    return row


@phase("held out")
@torch.no_grad()
def measure(
    batch: Sequence[Labelled], others: Sequence[Text], policy: Branch, reference: Reference, config: Config
) -> dict[str, float]:
    """Loss and accuracy (the share of completions whose reward is on their side of the baseline)."""
    row = take_gradients(batch, others, policy, reference, config)
    return {name: row[name] for name in ("loss", "accuracy") if math.isfinite(row[name])}
