"""Implicit language Q-learning from logged feedback (Snell et al. 2022): nothing is sampled while it learns.

What each next token is worth is learned from completions that were judged, whoever wrote them; the policy that wrote
them is imitated, and steered at decoding towards what is worth more. Read `run` from top to bottom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from plaudit import files
from plaudit.algorithms.logprobs import selected_logprobs
from plaudit.algorithms.q_loss import (
    Worth,
    action_logprobs,
    action_values,
    awac_loss,
    best_values,
    cql_loss,
    expectile_loss,
    q_loss,
    td_targets,
)
from plaudit.config import Config as Base
from plaudit.config import Score
from plaudit.data.collate import Packed, micro_batches, pack
from plaudit.data.episodes import Episode, read_episodes
from plaudit.data.judged import is_held_out, known_ids
from plaudit.evaluation.profile_page import page_if
from plaudit.evaluation.run_report import write_run_report
from plaudit.models.branch import Branch, hidden_states
from plaudit.models.load import Model, load_model
from plaudit.models.q_heads import QHeads, save_heads
from plaudit.phases import phase
from plaudit.randomness import batches_of, torch_seed
from plaudit.training import checkpoint, machine
from plaudit.training.metrics import Metrics
from plaudit.training.optim import adam, check_weights, linear_to_zero, take_step
from plaudit.training.policy import AdapterConfig, make_policy, write_policy
from plaudit.training.stop import check_finite
from plaudit.types import UserError

Target = Literal["ilql", "q_learning", "sarsa"]
LOSSES = ("loss", "q_loss", "value_loss", "cql", "nll")


class Config(Base):
    """Settings of the ilql recipe; each is described in docs/configs.md."""

    model: str = "smollm2"
    data: list[str] = Field(min_length=1)
    samples: list[str] = Field(default=[])
    rating_centre: Score = 0.5
    rating_scale: Score = Field(default=2.0, gt=0)
    demonstration_reward: Score | None = None
    seed: int = 0
    heldout: float = Field(default=0.1, ge=0, lt=1)
    target: Target = "ilql"
    gamma: float = Field(default=0.99, ge=0, le=1)
    expectile: float = Field(default=0.7, gt=0, lt=1)
    polyak: float = Field(default=0.005, gt=0, le=1)
    cql_coef: float = Field(default=0.1, ge=0)
    bc_coef: float = Field(default=1.0, ge=0)
    awac_beta: float = Field(default=0.0, ge=0)
    head_hidden: int = Field(default=0, ge=0)
    epochs: int = Field(default=3, ge=1)
    batch_size: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=2e-4, gt=0)
    warmup: float = Field(default=0.05, ge=0, le=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    adapter: AdapterConfig = AdapterConfig()
    precision: machine.Precision = "auto"
    micro_batch_tokens: machine.MicroBatchTokens = 0
    threads: int = Field(default=0, ge=0)
    profile: bool = False
    checkpoint_every: int = Field(default=20, ge=1)


def run(config: Config, directory: Path, *, model: Model | None = None) -> dict[str, Any]:
    """Train in a run directory, from its latest checkpoint if it has one; returns the summary.

    UserError where no two rewards differ, a completion is too long, or the loss is no number.
    """
    # 1. Judged completions as episodes, the reward at the last token; those of some prompts are held out.
    device, dtype = machine.prepare(config.precision, config.threads)
    model = model or load_model(config.model, dtype, device)
    episodes = read_episodes(
        config.data,
        model.tokenizer,
        known_ids(config.samples, model.tokenizer.fingerprint),
        context=model.trunk.shape.context,
        centre=config.rating_centre,
        scale=config.rating_scale,
        demonstration=config.demonstration_reward,
    )
    training, heldout = split(episodes, config)

    # 2. The policy (an adapter on the frozen trunk), and on its states two Q heads with slow copies, and V.
    policy = make_policy(model, config.adapter, seed=torch_seed(config.seed, "ilql adapter"))
    shape = model.trunk.shape
    heads = QHeads(shape.width, shape.vocab, hidden=config.head_hidden, dtype=model.trunk.wide)
    heads.initialise(torch_seed(config.seed, "ilql heads")).to(device)
    parameters = policy.parameters() + heads.parameters_to_learn()
    optimizer = adam(parameters, learning_rate=config.learning_rate)

    # 3. Every epoch takes each episode once, in a keyed order. Go on from the latest checkpoint.
    batches = batches_of(len(training), config.batch_size, config.epochs, config.seed, "ilql order")
    warmup = math.ceil(config.warmup * len(batches))
    done, measured = 0, dict[str, float | None]()
    if (found := checkpoint.latest(directory / "checkpoints")) is not None:
        tensors, state = found
        done, measured = int(state["step"]), state["measured"]
        policy.load_state(checkpoint.unprefixed("policy", tensors))
        heads.load_state_dict(checkpoint.unprefixed("heads", tensors))
        checkpoint.load_optimizer(optimizer, tensors)

    with Metrics(
        directory, total=len(batches), done=done, title="ilql", profile=page_if(config.profile)
    ) as metrics:
        for step in range(done, len(batches)):
            # 4. One step on the sum of the losses, each a mean over the batch's tokens; then the targets follow.
            row = train_on([training[i] for i in batches[step]], policy, heads, config)
            rate = config.learning_rate * linear_to_zero(step, len(batches), warmup)
            row["learning_rate"] = rate
            row["grad_norm"] = take_step(
                optimizer, parameters, learning_rate=rate, max_grad_norm=config.max_grad_norm
            )
            heads.follow(config.polyak)
            check_finite(step, directory, row["loss"], row["grad_norm"])

            # 5. At an epoch's end, what V and Q say of prompts never trained on. Say so, then save.
            if heldout and (step + 1) % (len(batches) // config.epochs) == 0:
                found_now = measure(heldout, policy, heads, config)
                row |= found_now
                measured = {k: v if math.isfinite(v) else None for k, v in found_now.items()}
            metrics.log(step + 1, row, shown(row))
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == len(batches):
                tensors = checkpoint.prefixed("policy", policy.state())
                tensors |= checkpoint.prefixed("heads", heads.state_dict())
                tensors |= checkpoint.optimizer_tensors(optimizer)
                checkpoint.save(directory / "checkpoints", step + 1, tensors, {"measured": measured})

    # 6. The behaviour policy as an adapter and as a whole model, and beside them the heads that steer it.
    check_weights(parameters, directory)
    write_policy(policy, model, directory)
    written = load_model(str(directory / "model"), dtype, device)
    facts = {
        "base_model": str(model.directory),
        "tokenizer": model.tokenizer.fingerprint,
        "model": written.trunk.fingerprint(),
        "target": config.target,
        "gamma": config.gamma,
        "expectile": config.expectile,
    }
    save_heads(heads, directory / "heads", facts)
    rewards = torch.tensor([e.reward for e in training], dtype=torch.float64)
    summary = {
        "steps": len(batches),
        "episodes": len(training),
        "heldout_episodes": len(heldout),
        "reward_mean": float(rewards.mean()),
        "reward_std": float(rewards.std(correction=0)),
        **{name: metrics.history[-1][name] for name in LOSSES},
        **measured,
    }
    write_run_report(directory, summary)
    files.write_json(directory / "summary.json", summary)
    return summary


def split(episodes: Sequence[Episode], config: Config) -> tuple[list[Episode], list[Episode]]:
    """Training and held-out episodes. Which side a prompt is on, with all its episodes, depends on the seed and the
    prompt alone. UserError where what is left to train on says nothing."""
    held = {e.key for e in episodes if is_held_out(e.key, config.heldout, config.seed)}
    training = [e for e in episodes if e.key not in held]
    if not episodes:
        raise UserError(
            "holds no rating, and no comparison of different completions",
            where=", ".join(config.data),
            fix="collect judgements first",
        )
    if not training:
        raise UserError(
            f"all {len(episodes)} episodes are held out", where="heldout", fix="lower it, or add more data"
        )
    if len({e.reward for e in training}) == 1:
        raise UserError(
            f"all {len(training)} rewards are {training[0].reward:g}, so there is nothing to learn",
            where=", ".join(config.data),
            fix="judge more varied completions",
        )
    rewards: dict[tuple[str, tuple[int, ...]], list[float]] = {}
    for e in training:
        rewards.setdefault((e.key, tuple(e.completion)), []).append(e.reward)
    means = {round(sum(own) / len(own), 9) for own in rewards.values()}
    if len(means) == 1:
        raise UserError(
            f"the rewards of every completion have the mean {means.pop():g}, so there is nothing to learn",
            where=", ".join(config.data),
            fix="collect more judgements, or leave out those that are wrong",
        )
    return training, [e for e in episodes if e.key in held]


@phase("learning")
def train_on(batch: Sequence[Episode], policy: Branch, heads: QHeads, config: Config) -> dict[str, float]:
    """Gradients of one batch, micro-batch after micro-batch; every number is a mean over the batch's tokens."""
    packed, rewards = packed_of(batch, policy)
    total = float(packed.mask.sum())
    row = dict.fromkeys(LOSSES, 0.0)
    for rows in micro_batches(packed, config.micro_batch_tokens):
        part, index = packed.take(rows)
        loss, here = losses(part, rewards[index], policy, heads, total, config)
        torch.autograd.backward(loss)
        for name, number in here.items():
            row[name] = row.get(name, 0.0) + float(number)
    return row | {"tokens": total}


def losses(
    part: Packed, rewards: Tensor, policy: Branch, heads: QHeads, total: float, config: Config
) -> tuple[Tensor, dict[str, Tensor]]:
    """What is minimised, and its parts. rewards: [B], each at its completion's last token."""
    mask, tokens = part.mask, part.tokens[part.mask]
    states = hidden_states(policy, part).index_select(0, part.predictor[mask])

    def spread(flat: Tensor) -> Tensor:
        return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)

    # Q of the tokens that were logged, by both heads; V; and what the slow heads say of the same.
    fast = heads.online(states)
    values = spread(heads.values(states))
    with torch.no_grad():
        slow = heads.slow(states)
        taken = spread(torch.minimum(*(action_values(head, tokens) for head in slow)))
        best = spread(best_values(slow)) if config.target == "q_learning" else taken
    worth = Worth(values.detach(), best, taken)
    last = torch.arange(mask.shape[1], device=mask.device) == mask.sum(1, keepdim=True) - 1
    targets = td_targets(
        config.target, rewards.to(values.dtype)[:, None] * last, worth, mask, gamma=config.gamma
    )

    of_q = [q_loss(spread(action_values(head, tokens)), targets, mask, total=total) for head in fast]
    of_value = expectile_loss(values, taken, mask, expectile=config.expectile, total=total)
    of_cql = [cql_loss(spread(action_logprobs(head, tokens)), mask, total=total) for head in fast]
    logprobs, _ = selected_logprobs(
        states, policy.trunk.output_weight, tokens, entropy=False, products=policy.trunk.dtype
    )
    of_policy = awac_loss(
        spread(logprobs), (taken - values).to(logprobs.dtype), mask, beta=config.awac_beta, total=total
    )
    q, cql = of_q[0].loss + of_q[1].loss, of_cql[0].loss + of_cql[1].loss
    loss = q + of_value.loss + config.cql_coef * cql + config.bc_coef * of_policy.loss
    return loss, {
        "loss": loss.detach(),
        "q_loss": q.detach(),
        "value_loss": of_value.loss.detach(),
        "cql": cql.detach(),
        "q": (of_q[0].metrics["q"] + of_q[1].metrics["q"]) / 2,
        **of_value.metrics,
        **of_policy.metrics,
    }


@phase("held out")
@torch.no_grad()
def measure(episodes: Sequence[Episode], policy: Branch, heads: QHeads, config: Config) -> dict[str, float]:
    """What the slow heads say of completions never trained on. heldout_nll: the policy's, nats a token;
    heldout_reward_error: root mean square of Qbar at the last token (whose target is the reward alone) less the reward,
    and heldout_constant_error, of the rewards' mean less the reward; heldout_correlation: of that Qbar with the reward
    (no number where one of them does not vary); heldout_value: the mean V of the prompts, before a token is drawn."""
    packed, rewards = packed_of(episodes, policy)
    final, start = torch.zeros_like(rewards), torch.zeros_like(rewards)
    nll, total = 0.0, float(packed.mask.sum())
    for rows in micro_batches(packed, config.micro_batch_tokens):
        part, index = packed.take(rows)
        hidden = hidden_states(policy, part)
        ends = part.mask.sum(1, keepdim=True) - 1
        last = hidden[part.predictor.gather(1, ends)[:, 0]]
        tokens = part.tokens.gather(1, ends)[:, 0]
        first, second = (action_values(head, tokens) for head in heads.slow(last))
        final[index] = torch.minimum(first, second).to(rewards.dtype)
        start[index] = heads.values(hidden[part.predictor[:, 0]]).to(rewards.dtype)
        every = hidden.index_select(0, part.predictor[part.mask])
        logprobs, _ = selected_logprobs(
            every,
            policy.trunk.output_weight,
            part.tokens[part.mask],
            entropy=False,
            products=policy.trunk.dtype,
        )
        nll -= float(logprobs.sum()) / total
    varied = float(rewards.std(correction=0)) > 0 and float(final.std(correction=0)) > 0
    return {
        "heldout_nll": nll,
        "heldout_reward_error": float((final - rewards).square().mean().sqrt()),
        "heldout_constant_error": float(rewards.std(correction=0)),
        "heldout_correlation": float(torch.corrcoef(torch.stack([final, rewards]))[0, 1])
        if varied
        else math.nan,
        "heldout_value": float(start.mean()),
    }


def packed_of(episodes: Sequence[Episode], policy: Branch) -> tuple[Packed, Tensor]:
    device = policy.trunk.device
    packed = pack([e.prompt for e in episodes], [e.completion for e in episodes], device=device)
    return packed, torch.tensor([e.reward for e in episodes], dtype=torch.float64, device=device)


def shown(row: dict[str, float]) -> str:
    """A step in one line."""
    line = f"Q loss {row['q_loss']:.3f}  V loss {row['value_loss']:.4f}  V {row['value']:+.3f}  nll {row['nll']:.3f}"
    if "heldout_correlation" in row:
        line += f"  held-out correlation {row['heldout_correlation']:.2f}"
    return line
