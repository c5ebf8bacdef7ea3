"""Learn a reward from comparisons, rankings and ratings, on few trained blocks, and if asked know who judged.

Stiennon et al. 2020, section 3.4, with ratings, criteria and raters beside: read `run` from top to bottom.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator

from plaudit import files
from plaudit.config import Config as Base
from plaudit.config import Score
from plaudit.data.collate import micro_batches, pack
from plaudit.data.formats import read_records
from plaudit.data.judged import Judged, group_by_prompt, known_ids, split_by_prompt
from plaudit.data.sources import rows
from plaudit.evaluation.profile_page import page_if
from plaudit.evaluation.reward import measure
from plaudit.evaluation.run_report import write_run_report
from plaudit.models.branch import Branch, Pool, ScalarHead, pooled_states
from plaudit.models.load import Model, load_model, make_adapter
from plaudit.phases import phase
from plaudit.randomness import rng, torch_seed
from plaudit.reward.criteria import CriteriaHead
from plaudit.reward.judgements import Judgements, Reading, begin, check_varied, starts_of
from plaudit.reward.measure_raters import measure_raters
from plaudit.reward.model import RewardModel
from plaudit.reward.probe import fit_head, states_of
from plaudit.reward.rater_figures import rater_figures
from plaudit.reward.raters import GOLD_RATER, RaterEffects
from plaudit.reward.score import ids_of
from plaudit.training import checkpoint, machine
from plaudit.training.metrics import Metrics
from plaudit.training.optim import adam, check_weights, linear_to_zero, take_step
from plaudit.training.stop import check_finite
from plaudit.types import UserError


class AdapterConfig(Base):
    """rank: of the low-rank update; alpha: its scale is alpha / rank; blocks: how many top blocks (0: all)."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    blocks: int = Field(default=6, ge=0)


class Config(Base):
    """Settings of the reward_model recipe; each is described in docs/configs.md."""

    model: str = "smollm2"
    data: list[str] = Field(min_length=1)
    gold: list[str] = Field(default=[])
    samples: list[str] = Field(default=[])
    reference: list[str] = Field(default=[])
    seed: int = 0
    heldout: float = Field(default=0.2, ge=0, lt=1)
    pool: Pool = "last"
    exit: float = Field(default=1.0, gt=0, le=1)
    probe: bool = False
    adapter: AdapterConfig = AdapterConfig()
    epochs: int = Field(default=1, ge=0)
    prompts_per_step: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=3e-4, ge=0)
    comparison: Literal["bradley_terry", "plackett_luce"] = "bradley_terry"
    margin: float = Field(default=0.0, ge=0)
    rating: Literal["regression", "ordinal"] = "regression"
    rating_weight: float = Field(default=1.0, ge=0)
    criteria: dict[str, Score] = Field(default={})
    raters: Literal["crowd", "aware"] = "crowd"
    weights: dict[str, Annotated[float, Field(ge=0, le=1e6)]] = Field(default={})
    max_grad_norm: float = Field(default=1.0, gt=0)
    precision: machine.Precision = "auto"
    micro_batch_tokens: machine.MicroBatchTokens = 0
    threads: int = Field(default=0, ge=0)
    profile: bool = False
    checkpoint_every: int = Field(default=20, ge=1)

    @field_validator("epochs", "learning_rate")
    @classmethod
    def _learn_something(cls, given: float, known: ValidationInfo) -> float:
        if given == 0 and not known.data.get("probe"):
            raise ValueError("must be above 0 without probe: true")
        return given

    @field_validator("criteria")
    @classmethod
    def _weigh_something(cls, criteria: dict[str, Score]) -> dict[str, Score]:
        if criteria and not any(criteria.values()):
            raise ValueError("its weights are all 0")
        return criteria


RATERS_RATE = 0.02
"""The learning rate of raters' habits and cut-points, in log-odds a step; like the reward's it falls to 0."""


def run(config: Config, directory: Path, *, model: Model | None = None) -> dict[str, Any]:
    """Train in a run directory, from its latest checkpoint if it has one; returns the summary."""
    # 1. Judgements, grouped by prompt: all pairs of a prompt's completions stay in one batch element.
    device, dtype = machine.prepare(config.precision, config.threads)
    model = model or load_model(config.model, dtype, device)
    training, heldout = split_by_prompt(read_judgements(config, model), config.heldout, config.seed)
    reading, effects = begin(training, asked(config))
    check_varied(training, reading, ", ".join(config.data))

    # 2. A fresh adapter on the top blocks that the reward reads, and a head (normal, std 1/sqrt(d + 1)).
    trunk = model.trunk
    leave = exit_depth(config.exit, trunk.shape.depth)
    adapter = make_adapter(
        trunk,
        rank=config.adapter.rank,
        alpha=config.adapter.alpha,
        blocks=config.adapter.blocks,
        seed=torch_seed(config.seed, "reward adapter"),
        depth=leave,
    )
    width, shares = trunk.shape.width, config.criteria
    head = CriteriaHead(width, shares, dtype=trunk.wide) if shares else ScalarHead(width, dtype=trunk.wide)
    head.to(device).initialise(torch_seed(config.seed, "reward head"))
    branch = Branch(trunk, adapter, head, exit=leave, pool=config.pool)
    reward = RewardModel(branch, model, budget=config.micro_batch_tokens)
    reference = [ids_of(row, where, reward) for path in config.reference for where, row in rows(path)]
    parameters = branch.parameters()
    optimizer = adam(parameters, learning_rate=config.learning_rate)
    habits = list(effects.parameters()) if reading.aware or reading.rating == "ordinal" else []
    habits_optimizer = adam(habits, learning_rate=RATERS_RATE) if habits else None

    # 3. Go on from the latest checkpoint.
    order = [
        int(i)
        for epoch in range(config.epochs)
        for i in rng(config.seed, "reward order", epoch).permutation(len(training))
    ]
    batches = [order[i : i + config.prompts_per_step] for i in range(0, len(order), config.prompts_per_step)]
    done, raters = 0, {}
    if (found := checkpoint.latest(directory / "checkpoints")) is not None:
        tensors, state = found
        done, raters = int(state["step"]), state["raters"]
        branch.load_state(checkpoint.unprefixed("reward", tensors))
        effects.load_state_dict(checkpoint.unprefixed("raters", tensors))
        checkpoint.load_optimizer(optimizer, tensors)
        if habits_optimizer is not None:
            checkpoint.load_optimizer(habits_optimizer, checkpoint.unprefixed("habits", tensors))

    # 4. On the trunk as it is: what raters are like, and the head alone. Both are fits with one end, so a resumed run
    # finds the same.
    elif config.probe or reading.aware:
        states = states_of(branch, training, config.micro_batch_tokens)
        if reading.aware:
            seen = measure_raters(
                training,
                states,
                reading=reading,
                effects=effects,
                seed=config.seed,
                shares=[*shares.values()] or [1.0],
            )
            raters = rater_figures(training, seen, reading, effects)
        if config.probe:
            fit_head(head, training, states, reading=reading, effects=effects, seed=config.seed)

    # 5. One step a batch of prompts, habits included; the learning rates go to 0.
    nat = Judgements.of(training, starts_of(training), reading, effects).nat(reading)
    with Metrics(
        directory, total=len(batches), done=done, title="reward", profile=page_if(config.profile)
    ) as metrics:
        for step in range(done, len(batches)):
            row = train_on([training[i] for i in batches[step]], branch, reading, effects, config)
            falling = linear_to_zero(step, len(batches))
            rate = config.learning_rate * falling
            row["grad_norm"] = take_step(
                optimizer, parameters, learning_rate=rate, max_grad_norm=config.max_grad_norm
            )
            if habits_optimizer is not None:
                torch.autograd.backward(effects.prior() * nat)
                take_step(
                    habits_optimizer,
                    habits,
                    learning_rate=RATERS_RATE * falling,
                    max_grad_norm=config.max_grad_norm,
                )
            row["learning_rate"] = rate
            check_finite(step, directory, row["loss"], row["grad_norm"])
            shown = f"loss {row['loss']:.3f}  accuracy {row['accuracy']:.2f}"
            metrics.log(step + 1, row, shown)  # before it is saved: what a kill cuts off between comes again
            if (step + 1) % config.checkpoint_every == 0:
                tensors = checkpoint.prefixed("reward", branch.state()) | checkpoint.optimizer_tensors(
                    optimizer
                )
                tensors |= checkpoint.prefixed("raters", effects.state_dict())
                if habits_optimizer is not None:
                    tensors |= checkpoint.prefixed("habits", checkpoint.optimizer_tensors(habits_optimizer))
                checkpoint.save(directory / "checkpoints", step + 1, tensors, {"raters": raters})

    check_weights([*parameters, *habits], directory)

    # 6. Measure on prompts never trained on, beside a rule that knows the length alone.
    figures = measure(reward, training, heldout)

    # 7. Normalise: reference samples score mean 0, standard deviation 1.
    reference = reference or [(g.prompt, c) for g in training for c in g.completions]
    raw = torch.tensor(reward.score_ids(*zip(*reference, strict=True)), dtype=torch.float64)
    spread = float(raw.std(correction=0))
    if not spread > 1e-6:
        raise UserError(
            "the reward gives every sample the same score",
            where=str(directory),
            fix="collect more judgements",
        )
    with torch.no_grad():
        head.gain.fill_(1 / spread)
        head.shift.fill_(-float(raw.mean()) / spread)

    # 8. Save, and say how good it is, and what the raters are like.
    if isinstance(head, CriteriaHead):
        branch.head, reward.criteria = head.merged(), head
    summary = {"prompts": len(training), "heldout_prompts": len(heldout), **figures}
    if config.raters == "aware":
        summary |= {"raters": raters or "crowd: fewer than two raters are named"}
    reward.save(directory / "model", {"seed": config.seed, "data": config.data, **figures})
    write_run_report(directory, summary)
    files.write_json(directory / "summary.json", summary)
    return summary


def read_judgements(config: Config, model: Model) -> list[Judged]:
    """All files' judgements by prompt; those of `gold` are the known answers'. UserError where others claim to be."""
    ids = known_ids(config.samples, model.tokenizer.fingerprint)
    records = []
    for path in config.data:
        found = read_records(path)
        if any(record.rater == GOLD_RATER for record in found):
            fix = "give known answers in a file of their own, as `gold`, or rename the rater"
            raise UserError(f"has a rater named {GOLD_RATER}", where=path, fix=fix)
        records += found
    known = [replace(record, rater=GOLD_RATER) for path in config.gold for record in read_records(path)]
    return group_by_prompt([*records, *known], model.tokenizer, ids, context=model.trunk.shape.context)


def asked(config: Config) -> Reading:
    """How the config wants judgements to be read."""
    return Reading(
        comparison=config.comparison,
        rating=config.rating,
        margin=config.margin,
        rating_weight=config.rating_weight,
        criteria=tuple(config.criteria),
        aware=config.raters == "aware",
        weights=config.weights,
    )


def exit_depth(share: float, depth: int) -> int | None:
    """After how many blocks the reward leaves the trunk; None: after all. UserError for a share outside 0 to 1."""
    if not 0 < share <= 1:
        raise UserError(
            f"exit is {share}", where="reward_model", fix="give a share of the blocks, such as 0.5"
        )
    leave = max(1, round(share * depth))
    return None if leave == depth else leave


@phase("learning")
def train_on(
    groups: list[Judged], branch: Branch, reading: Reading, effects: RaterEffects, config: Config
) -> dict[str, float]:
    """Gradients of one batch, micro-batch after micro-batch; losses are means over the whole batch."""
    completions = [c for g in groups for c in g.completions]
    prompts = [g.prompt for g in groups for _ in g.completions]
    # One row a prompt, however long: all its pairs are in one micro-batch.
    packed = pack(prompts, completions, max_row=sys.maxsize, device=branch.trunk.device)
    first = [sum(len(g.completions) for g in groups[:i]) for i in range(len(groups))]
    totals = Judgements.of(groups, first, reading, effects).totals()
    head = branch.head
    assert head is not None
    row = {"loss": 0.0, "correct": 0.0, "decided": 0.0, "rating_loss": 0.0}
    for micro in micro_batches(packed, config.micro_batch_tokens):
        part, index = packed.take(micro)
        hidden = pooled_states(branch, part)
        place = {int(sample): i for i, sample in enumerate(index)}
        here = [g for g in range(len(groups)) if first[g] in place]
        judgements = Judgements.of(
            [groups[g] for g in here],
            [place[first[g]] for g in here],
            reading,
            effects,
            device=hidden.device,
            dtype=branch.trunk.wide,
        )
        each = head.each(hidden) if isinstance(head, CriteriaHead) else None
        loss, metrics = judgements.loss(head(hidden), each, reading, effects, totals)
        torch.autograd.backward(loss)
        row["loss"] += float(loss.detach())
        for name, value in metrics.items():
            row[name] += float(value)
    right, decided = row.pop("correct"), row.pop("decided")
    return {**row, "accuracy": right / decided if decided else float("nan")}
