"""Text classification as a contextual bandit: what choosing a label is worth, learned from what was chosen.

A log says which label was chosen for a text and what came of it, not which label is right. Q(x, a), the reward that is
expected of label a for text x, is a regression on the logged rewards; a policy follows from it, and what that policy
would have earned is estimated on rows never trained on (Dudik et al. 2011). With a rule as `reward` the labels are
chosen here, round after round, and every choice is logged. Read `run` from top to bottom.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from plaudit import files
from plaudit.algorithms.off_policy import policy_probabilities
from plaudit.algorithms.reward_loss import rating_regression
from plaudit.config import Config as Base
from plaudit.data.choices import Chosen, Propensities, read_choices, text_ids
from plaudit.data.collate import micro_batches
from plaudit.data.formats import read_prompts
from plaudit.data.judged import is_held_out, prompt_key
from plaudit.evaluation.off_policy import columns, measure
from plaudit.evaluation.profile_page import page_if
from plaudit.evaluation.run_report import write_run_report
from plaudit.models.branch import Branch, Pool, pooled_states
from plaudit.models.label_head import Classifier, LabelHead
from plaudit.models.load import Model, load_model, make_adapter
from plaudit.phases import phase
from plaudit.randomness import batches_of, rng, torch_seed
from plaudit.reward.rules import rule_scorer
from plaudit.rollout.choose import Chooser
from plaudit.training import checkpoint, machine
from plaudit.training.metrics import Metrics
from plaudit.training.optim import adam, check_weights, linear_to_zero, take_step
from plaudit.training.stop import check_finite
from plaudit.types import UserError

Policy = Literal["greedy", "epsilon_greedy", "softmax"]
LOOKED_AT = 2000
"""Texts whose states give the head its centre and scale."""


class AdapterConfig(Base):
    """rank 0 trains the head alone; alpha: the update's scale is alpha / rank; blocks: top blocks (0: all)."""

    rank: int = Field(default=0, ge=0)
    alpha: float = Field(default=32.0, gt=0)
    blocks: int = Field(default=4, ge=0)


class Config(Base):
    """Settings of the bandit recipe; each is described in docs/configs.md."""

    model: str = "smollm2"
    data: list[str]
    labels: list[str] = Field(default=[])
    propensities: Propensities = "logged"
    contexts: str | None = None
    reward: str | None = None
    rounds: int = Field(default=10, ge=1)
    contexts_per_round: int = Field(default=64, ge=1)
    steps_per_round: int = Field(default=10, ge=1)
    policy: Policy = "epsilon_greedy"
    epsilon: float = Field(default=0.1, ge=0, le=1)
    temperature: float = Field(default=0.1, gt=0)
    seed: int = 0
    heldout: float = Field(default=0.2, ge=0, lt=1)
    pool: Pool = "mean"
    exit: float = Field(default=0.5, gt=0, le=1)
    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    adapter: AdapterConfig = AdapterConfig()
    precision: machine.Precision = "auto"
    micro_batch_tokens: machine.MicroBatchTokens = 0
    threads: int = Field(default=0, ge=0)
    profile: bool = False
    checkpoint_every: int = Field(default=20, ge=1)

    @model_validator(mode="after")
    def _settings_fit(self) -> Config:
        for label in self.labels:
            if not label.strip() or self.labels.count(label) > 1:
                fault = f"names {label!r} twice" if label.strip() else "holds an empty label"
                raise ValueError(f"labels {fault}; name each label once")
        if (self.reward is None) != (self.contexts is None):
            raise ValueError("reward and contexts go together: a rule, and the texts that it is asked about")
        if self.reward is None and not self.data:
            raise ValueError("data names no log; give one, or reward and contexts to choose labels here")
        if self.reward is not None and (self.data or len(self.labels) < 2):
            raise ValueError("with reward, data stays empty and labels names at least two")
        return self


def run(config: Config, directory: Path, *, model: Model | None = None) -> dict[str, Any]:
    """Train in a run directory, from its latest checkpoint if it has one; returns the summary."""
    # 1. What was chosen (or, with a rule, the texts to choose for); some texts are held out.
    device, dtype = machine.prepare(config.precision, config.threads)
    model = model or load_model(config.model, dtype, device)
    online = None if config.reward is None else make_chooser(config, model)
    log, heldout = (online.log, []) if online else offline_log(config, model)
    labels = labels_of(log, config)

    # 2. A head over the labels on the pooled state of the frozen trunk, perhaps with an adapter; all Q are 0.5.
    classifier = make_classifier(config, model, labels)
    texts = online.training_texts() if online else [c.ids for c in log]
    states = classifier.states(texts if config.adapter.rank == 0 else texts[:LOOKED_AT])
    classifier.head.even_out(states)
    frozen = dict(zip(map(tuple, texts), states, strict=True)) if config.adapter.rank == 0 else None
    parameters = [*classifier.branch.parameters(), *classifier.head.parameters()]
    optimizer = adam(parameters, learning_rate=config.learning_rate, weight_decay=config.weight_decay)
    offline = (
        [] if online else batches_of(len(log), config.batch_size, config.epochs, config.seed, "bandit order")
    )
    total = config.rounds * config.steps_per_round if online else len(offline)

    # 3. Go on from the latest checkpoint.
    done = 0
    if (found := checkpoint.latest(directory / "checkpoints")) is not None:
        tensors, state = found
        done = int(state["step"])
        classifier.branch.load_state(checkpoint.unprefixed("branch", tensors))
        classifier.head.load_state_dict(checkpoint.unprefixed("head", tensors))
        checkpoint.load_optimizer(optimizer, tensors)
        if online:
            online.read(directory / "log.jsonl", int(state["logged"]))

    with Metrics(
        directory, total=total, done=done, title="bandit", profile=page_if(config.profile)
    ) as metrics:
        for step in range(done, total):
            # 4. With a rule: at a round's start, choose labels for some texts, ask what they earn, and log it.
            row: dict[str, float] = {}
            if online and step % config.steps_per_round == 0:
                row["round_reward"] = online.act(classifier, step // config.steps_per_round)
                online.write(directory / "log.jsonl")
                if step + config.steps_per_round == total:  # the last choices are made
                    check_rewards(log, "reward", "give a rule that tells labels apart, or choose more often")

            # 5. One step of regression on the rewards of what was chosen, the mean over the batch.
            batch = batch_of_log(len(log), step, config) if online else offline[step]
            row |= train_on([log[i] for i in batch], classifier, frozen, config)
            rate = config.learning_rate * linear_to_zero(step, total)
            row["learning_rate"] = rate
            row["grad_norm"] = take_step(
                optimizer, parameters, learning_rate=rate, max_grad_norm=config.max_grad_norm
            )
            check_finite(step, directory, row["loss"], row["grad_norm"])

            # 6. Say so, then save: what a kill cuts off between the two comes again.
            line = f"loss {row['loss']:.3f}  error {row['rating_error']:.3f}"
            if "round_reward" in row:
                same = "  every reward is the same" * (len({c.reward for c in log}) == 1)
                line += f"  reward {row['round_reward']:.3f}{same}"
            metrics.log(step + 1, row, line)
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == total:
                tensors = checkpoint.prefixed("branch", classifier.branch.state())
                tensors |= checkpoint.prefixed("head", classifier.head.state_dict())
                tensors |= checkpoint.optimizer_tensors(optimizer)
                checkpoint.save(directory / "checkpoints", step + 1, tensors, {"logged": len(log)})

    check_weights(parameters, directory)

    # 7. What the policies would earn on texts never trained on; then the classifier, which `plaudit classify` loads.
    if online:
        figures: dict[str, Any] = online.measure(classifier)
    else:
        policies: dict[str, Callable[[Tensor], Tensor]] = {
            "greedy": policy_of(config, "greedy"),
            config.policy: policy_of(config, config.policy),
        }
        figures = measure(classifier, heldout, policies)
    summary = {"steps": total, "labels": list(labels), "rows": len(log), **figures}
    classifier.save(directory / "model", {"seed": config.seed, **figures})
    write_run_report(directory, summary)
    files.write_json(directory / "summary.json", summary)
    return summary


def offline_log(config: Config, model: Model) -> tuple[list[Chosen], list[Chosen]]:
    """Training and held-out rows; a text has all its rows on one side. UserError where nothing can be learnt."""
    where = ", ".join(config.data)
    context = model.trunk.shape.context
    rows = read_choices(config.data, model.tokenizer, context=context, propensities=config.propensities)
    if not rows:
        raise UserError("holds no records", where=where, fix="check that it is the right file")
    held = {c.key for c in rows if is_held_out(c.key, config.heldout, config.seed)}
    training = [c for c in rows if c.key not in held]
    if not training:
        raise UserError(
            f"all {len(rows)} rows are held out", where="heldout", fix="lower it, or add more data"
        )
    if len({c.label for c in training}) < 2:
        raise UserError(
            f"only {training[0].label!r} was ever chosen, so that labels cannot be compared",
            where=where,
            fix="log more than one label",
        )
    check_rewards(training, where, "log more varied choices")
    return training, [c for c in rows if c.key in held]


def check_rewards(log: Sequence[Chosen], where: str, fix: str) -> None:
    """UserError where whatever was chosen earned the same."""
    if len({c.reward for c in log}) < 2:
        raise UserError(
            f"all rewards are {log[0].reward:g}, so there is nothing to learn", where=where, fix=fix
        )


def labels_of(log: Sequence[Chosen], config: Config) -> tuple[str, ...]:
    """The settings' labels, or all that were chosen. UserError for a row whose label is none of them."""
    if not config.labels:
        return tuple(sorted({c.label for c in log}))
    labels = tuple(config.labels)
    for chosen in log:
        if chosen.label not in labels:
            raise UserError(
                f"{chosen.label!r} was chosen, which is not in labels",
                where=", ".join(config.data),
                fix=f"known: {', '.join(labels)}",
            )
    return labels


def make_classifier(config: Config, model: Model, labels: Sequence[str]) -> Classifier:
    trunk, a = model.trunk, config.adapter
    depth = max(1, round(config.exit * trunk.shape.depth))
    adapter = None
    if a.rank:
        seed = torch_seed(config.seed, "bandit adapter")
        adapter = make_adapter(trunk, rank=a.rank, alpha=a.alpha, blocks=a.blocks, seed=seed, depth=depth)
    branch = Branch(trunk, adapter, exit=None if depth == trunk.shape.depth else depth, pool=config.pool)
    head = LabelHead(trunk.shape.width, len(labels), dtype=trunk.wide).to(trunk.device)
    return Classifier(branch, head, labels, model, budget=config.micro_batch_tokens)


def batch_of_log(count: int, step: int, config: Config) -> list[int]:
    """Rows drawn from all that were logged so far."""
    size = min(count, config.batch_size)
    return [int(i) for i in rng(config.seed, "bandit batch", step).choice(count, size, replace=False)]


@phase("learning")
def train_on(
    batch: Sequence[Chosen],
    classifier: Classifier,
    frozen: Mapping[tuple[int, ...], Tensor] | None,
    config: Config,
) -> dict[str, float]:
    """Gradients of one batch, micro-batch after micro-batch; the loss is the mean over its rows. frozen: the states of
    all texts, where no adapter changes them."""
    labels, rewards, _ = columns(batch, classifier)
    row = {"loss": 0.0, "rating_error": 0.0}

    def learn(states: Tensor, index: Tensor) -> None:
        own = classifier.head(states).gather(1, labels[index][:, None])[:, 0]
        out = rating_regression(own, rewards[index].to(own.dtype), total=len(batch))
        torch.autograd.backward(out.loss)
        row["loss"] += float(out.loss.detach())
        row["rating_error"] += float(out.metrics["rating_error"])

    if frozen is not None:
        learn(torch.stack([frozen[tuple(c.ids)] for c in batch]), torch.arange(len(batch)))
        return row
    packed = classifier.packed([c.ids for c in batch])
    for rows in micro_batches(packed, config.micro_batch_tokens):
        part, index = packed.take(rows)
        learn(pooled_states(classifier.branch, part), index)
    return row


def policy_of(config: Config, kind: str) -> Callable[[Tensor], Tensor]:
    """Values [N, K] -> probabilities [N, K]."""
    return partial(policy_probabilities, kind, epsilon=config.epsilon, temperature=config.temperature)


def make_chooser(config: Config, model: Model) -> Chooser:
    prompts = read_prompts(str(config.contexts))
    ids = [text_ids(prompt, model.tokenizer, model.trunk.shape.context) for prompt in prompts]
    held = [rng(config.seed, "heldout contexts", prompt_key(p)).random() < config.heldout for p in prompts]
    if all(held):
        raise UserError("all contexts are held out", where="heldout", fix="lower it, or add more data")
    rule = rule_scorer(str(config.reward))
    policy = policy_of(config, config.policy)
    return Chooser(prompts, ids, held, rule, policy, per_round=config.contexts_per_round, seed=config.seed)
