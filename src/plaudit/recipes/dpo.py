"""Direct preference optimisation: a policy learns from comparisons and rankings, without a reward model.

Rafailov et al. 2023, with the losses beside it that learn from pairs (robust DPO, IPO, SimPO, ORPO): read `run` from
top to bottom.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from plaudit import files
from plaudit.algorithms import LossOutput
from plaudit.algorithms.preference_loss import PAIRED, Pairs, smoothed
from plaudit.config import Config as Base
from plaudit.data.collate import Packed, micro_batches, pack
from plaudit.data.formats import read_records
from plaudit.data.judged import Judged, all_cancel, group_by_prompt, known_ids, split_by_prompt
from plaudit.evaluation.profile_page import page_if
from plaudit.evaluation.run_report import write_run_report
from plaudit.models.branch import Branch, token_logprobs
from plaudit.models.load import Model, load_model
from plaudit.phases import phase
from plaudit.randomness import batches_of, torch_seed
from plaudit.training import checkpoint, machine
from plaudit.training.metrics import Metrics
from plaudit.training.optim import adam, check_weights, linear_to_zero, take_step
from plaudit.training.policy import AdapterConfig, check_start, make_policy, write_policy
from plaudit.training.stop import check_finite
from plaudit.types import Preference, Ranking, Record, UserError

WITH_REFERENCE = ("dpo", "robust", "ipo")
OWN = {
    "dpo": ("beta",),
    "robust": ("beta",),
    "ipo": ("beta", "ipo_average"),
    "simpo": ("beta", "simpo_gamma"),
    "orpo": ("orpo_lambda",),
}
"""Of the settings that not every loss reads, those that each one does."""
AT_ONCE = 64  # prompts that are packed together where nothing is learned, so that memory has a bound


class Config(Base):
    """Settings of the dpo recipe; each is described in docs/configs.md."""

    model: str = "smollm2"
    data: list[str] = Field(min_length=1)
    samples: list[str] = Field(default=[])
    start: str | None = None
    seed: int = 0
    heldout: float = Field(default=0.1, ge=0, lt=1)
    loss: Literal["dpo", "robust", "ipo", "simpo", "orpo"] = "dpo"
    beta: float | None = Field(default=None, gt=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    margin: float = Field(default=0.0, ge=0)
    ties: Literal["half", "drop"] = "half"
    ipo_average: bool = True
    simpo_gamma: float = Field(default=1.0, ge=0)
    orpo_lambda: float = Field(default=0.1, ge=0)
    epochs: int = Field(default=1, ge=1)
    prompts_per_step: int = Field(default=8, ge=1)
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
        if self.loss == "robust" and self.label_smoothing == 0:
            raise ValueError(
                "robust with label_smoothing 0 is dpo; set the share of labels taken to be wrong"
            )
        for name in sorted({name for own in OWN.values() for name in own} - {*OWN[self.loss]}):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{self.loss} does not read {name}; it reads {', '.join(OWN[self.loss])}")
        return self


Reference = dict[str, Tensor]
"""By a prompt's key, the reference's log-probability of each of its completions, summed over tokens."""


def run(config: Config, directory: Path, *, model: Model | None = None) -> dict[str, Any]:
    """Train in a run directory, from its latest checkpoint if it has one; returns the summary.

    UserError where the data holds anything but comparisons and rankings, says nothing to learn, or the loss or a
    weight is no number.
    """
    # 1. Comparisons, grouped by prompt; those of some prompts are held out.
    device, dtype = machine.prepare(config.precision, config.threads)
    model = model or load_model(config.model, dtype, device)
    ids = known_ids(config.samples, model.tokenizer.fingerprint)
    records = read_comparisons(config.data)
    judged = with_pairs(
        group_by_prompt(records, model.tokenizer, ids, context=model.trunk.shape.context), config
    )
    training, heldout = split_by_prompt(judged, config.heldout, config.seed)
    check(training, heldout, config)

    # 2. An adapter on the frozen trunk, or (rank 0) a copy of the trunk that is trained whole.
    policy = make_policy(
        model, config.adapter, seed=torch_seed(config.seed, "policy adapter"), start=config.start
    )
    parameters = policy.parameters()
    optimizer = adam(parameters, learning_rate=config.learning_rate, weight_decay=config.weight_decay)

    # 3. The reference is the policy before its first step: one pass over all data, kept in every checkpoint.
    # Go on from the latest.
    if (found := checkpoint.latest(directory / "checkpoints")) is not None:
        tensors, state = found
        done, before, after = int(state["step"]), state["before"], state["after"]
        reference = by_prompt([*training, *heldout], tensors["reference"].to(device))
        policy.load_state(checkpoint.unprefixed("policy", tensors))
        checkpoint.load_optimizer(optimizer, tensors)
    else:
        done = 0
        reference = by_prompt([*training, *heldout], reference_sums([*training, *heldout], policy, config))
        before = after = measure(heldout, policy, reference, config)

    def save(step: int) -> None:
        tensors = checkpoint.prefixed("policy", policy.state()) | checkpoint.optimizer_tensors(optimizer)
        tensors["reference"] = torch.cat([reference[group.key] for group in [*training, *heldout]])
        checkpoint.save(directory / "checkpoints", step, tensors, {"before": before, "after": after})

    # 4. Every epoch takes each prompt once, in a keyed order, with all of its pairs.
    batches = batches_of(
        len(training), config.prompts_per_step, config.epochs, config.seed, "preference order"
    )
    warmup = math.ceil(config.warmup * len(batches))
    with Metrics(
        directory, total=len(batches), done=done, title=config.loss, profile=page_if(config.profile)
    ) as metrics:
        for step in range(done, len(batches)):
            # 5. One step: the mean over the batch's pairs, whatever the split into micro-batches.
            row = train_on([training[i] for i in batches[step]], policy, reference, config)
            rate = config.learning_rate * linear_to_zero(step, len(batches), warmup)
            row["learning_rate"] = rate
            row["grad_norm"] = take_step(
                optimizer, parameters, learning_rate=rate, max_grad_norm=config.max_grad_norm
            )
            check_finite(step, directory, row["loss"], row["grad_norm"])

            # 6. At an epoch's end, prompts never trained on. Say so, then save: what a kill cuts off between the two
            # comes again.
            line = f"loss {row['loss']:.3f}  accuracy {row['accuracy']:.2f}  margin {row['margin']:+.3g}"
            if heldout and (step + 1) % (len(batches) // config.epochs) == 0:
                after = measure(heldout, policy, reference, config)
                row |= {f"heldout_{name}": value for name, value in after.items()}
                line += "  held-out " + " ".join(f"{name} {value:.3g}" for name, value in after.items())
            metrics.log(step + 1, row, line)
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == len(batches):
                save(step + 1)

    # 7. The result as an adapter (peft's format) and as a whole model that transformers loads.
    check_weights(parameters, directory)
    write_policy(policy, model, directory)
    summary = {
        "steps": len(batches),
        "prompts": len(training),
        "comparisons": sum(len(group.pairs) for group in training),
        "ties": sum(pair.target == 0.5 for group in training for pair in group.pairs),
        "empty": sum(not text for group in training for text in group.texts),
        "heldout_prompts": len(heldout),
        "loss": metrics.history[-1]["loss"],
        "heldout_loss_before": before.get("loss"),
        **{f"heldout_{name}": after.get(name) for name in ("loss", "accuracy", "margin")},
    }
    write_run_report(directory, summary)
    files.write_json(directory / "summary.json", summary)
    return summary


def read_comparisons(paths: Sequence[str]) -> list[Record]:
    """All files' comparisons and rankings. UserError for another kind of record."""
    records: list[Record] = []
    for path in paths:
        for number, record in enumerate(read_records(path), 1):
            if not isinstance(record, Preference | Ranking):
                raise UserError(
                    f"is a {type(record).__name__.lower()}, not a comparison or a ranking",
                    where=f"{path}: record {number}",
                    fix="leave it out, or train kto (ratings) or sft (demonstrations) on it",
                )
            records.append(record)
    return records


def with_pairs(judged: Sequence[Judged], config: Config) -> list[Judged]:
    """The prompts that have pairs, ties dropped where they are to be."""
    for group in judged:
        group.pairs = [pair for pair in group.pairs if config.ties == "half" or pair.target != 0.5]
    return [group for group in judged if group.pairs]


def check(training: Sequence[Judged], heldout: Sequence[Judged], config: Config) -> None:
    """UserError where there is nothing to learn from."""
    where = ", ".join(config.data)
    pairs = [pair for group in training for pair in group.pairs]
    if not pairs and heldout:
        raise UserError(
            f"all {len(heldout)} prompts are held out", where="heldout", fix="lower it, or add more data"
        )
    if not pairs:
        dropped = " that is no tie" if config.ties == "drop" else " of two different completions"
        raise UserError(f"holds no comparison{dropped}", where=where, fix="collect judgements first")
    if all(pair.target == 0.5 for pair in pairs):
        raise UserError(
            f"all {len(pairs)} comparisons are ties, so there is nothing to learn",
            where=where,
            fix="judge more varied completions",
        )
    if all_cancel(training, lambda pair: config.margin * (pair.strength or 0)):
        raise UserError(
            f"all {len(pairs)} comparisons cancel each other, so there is nothing to learn",
            where=where,
            fix="collect more judgements, or leave out those that are wrong",
        )


def packed_of(groups: Sequence[Judged], policy: Branch) -> Packed:
    """One row a prompt, however long: all its pairs are in one micro-batch."""
    prompts = [group.prompt for group in groups for _ in group.completions]
    completions = [completion for group in groups for completion in group.completions]
    return pack(prompts, completions, max_row=sys.maxsize, device=policy.trunk.device)


@torch.no_grad()
def reference_sums(groups: Sequence[Judged], policy: Branch, config: Config) -> Tensor:
    """[completions] of all prompts in order; zeros where the loss has no reference."""
    device = policy.trunk.device
    count = sum(len(group.completions) for group in groups)
    out = torch.zeros(count, dtype=policy.trunk.wide, device=device)
    if config.loss not in WITH_REFERENCE:
        return out
    start = 0
    for at in range(0, len(groups), AT_ONCE):
        packed = packed_of(groups[at : at + AT_ONCE], policy)
        for rows in micro_batches(packed, config.micro_batch_tokens):
            part, index = packed.take(rows)
            out[start + index] = token_logprobs(policy, part).logprobs.sum(1).to(out.dtype)
        start += len(packed.row)
    return out


def by_prompt(groups: Sequence[Judged], sums: Tensor) -> Reference:
    parts = torch.split(sums, [len(group.completions) for group in groups])
    return {group.key: part for group, part in zip(groups, parts, strict=True)}


def losses_of(
    groups: Sequence[Judged], policy: Branch, reference: Reference, config: Config, total: int
) -> Iterator[LossOutput]:
    """The loss of each micro-batch; they sum to the mean over `total` pairs."""
    packed = packed_of(groups, policy)
    ref = torch.cat([reference[group.key] for group in groups])
    offsets = [sum(len(g.completions) for g in groups[:i]) for i in range(len(groups))]
    pairs = [(start + p.a, start + p.b, p) for start, g in zip(offsets, groups, strict=True) for p in g.pairs]
    beta = config.beta or (2.0 if config.loss == "simpo" else 0.1)
    settings: dict[str, dict[str, float]] = {
        "dpo": {"beta": beta},
        "robust": {"beta": beta, "flip": config.label_smoothing},
        "ipo": {"beta": beta},
        "simpo": {"beta": beta, "gamma": config.simpo_gamma},
        "orpo": {"lam": config.orpo_lambda},
    }
    smoothing = 0.0 if config.loss == "robust" else config.label_smoothing
    average = config.loss != "ipo" or config.ipo_average
    for rows in micro_batches(packed, config.micro_batch_tokens):
        part, index = packed.take(rows)
        sums = token_logprobs(policy, part).logprobs.sum(1)
        place = {int(sample): i for i, sample in enumerate(index)}
        here = [(place[a], place[b], p) for a, b, p in pairs if a in place]
        a, b = (torch.tensor([pair[side] for pair in here], device=sums.device) for side in (0, 1))
        tokens, expected = part.mask.sum(1), ref[index].to(sums.dtype)

        def column(values: list[float], like: Tensor = sums) -> Tensor:
            return torch.tensor(values, dtype=like.dtype, device=like.device)

        yield PAIRED[config.loss](
            Pairs(
                first=sums[a],
                second=sums[b],
                target=smoothed(column([p.target for _, _, p in here]), smoothing),
                ref_first=expected[a],
                ref_second=expected[b],
                first_tokens=tokens[a] if average else None,
                second_tokens=tokens[b] if average else None,
                margin=column([config.margin * (p.strength or 0) for _, _, p in here]),
            ),
            total=total,
            **settings[config.loss],
        )


@phase("learning")
def train_on(
    groups: Sequence[Judged], policy: Branch, reference: Reference, config: Config
) -> dict[str, float]:
    """Gradients of one batch, micro-batch after micro-batch, and what it says of the policy before the step."""
    total = sum(len(group.pairs) for group in groups)
    sums: dict[str, float] = {}
    for out in losses_of(groups, policy, reference, config, total):
        torch.autograd.backward(out.loss)
        add(sums, out)
    return {**described(sums), "comparisons": total}


@phase("held out")
@torch.no_grad()
def measure(
    groups: Sequence[Judged], policy: Branch, reference: Reference, config: Config
) -> dict[str, float]:
    """Loss, accuracy and margin, as far as there are any."""
    total = sum(len(group.pairs) for group in groups)
    sums: dict[str, float] = {}
    for at in range(0, len(groups), AT_ONCE):
        for out in losses_of(groups[at : at + AT_ONCE], policy, reference, config, total):
            add(sums, out)
    row = described(sums) if groups else {}
    return {
        name: row[name] for name in ("loss", "accuracy", "margin") if math.isfinite(row.get(name, math.nan))
    }


def add(sums: dict[str, float], out: LossOutput) -> None:
    for name, value in {"loss": out.loss, **out.metrics}.items():
        sums[name] = sums.get(name, 0.0) + float(value.detach())


def described(sums: dict[str, float]) -> dict[str, float]:
    """Means over all pairs (loss, nll), and over those that are no ties (the rest)."""
    decided = sums["decided"] or math.nan
    row = {name: value for name, value in sums.items() if name in ("loss", "nll")}
    row["accuracy"] = sums["correct"] / decided
    return row | {name: sums[name] / decided for name in ("margin", "reward_chosen", "reward_rejected")}
