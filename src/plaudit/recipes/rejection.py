"""Rejection sampling: of n completions of a prompt the best are imitated. What every other algorithm must beat.

Dong et al. 2023 (RAFT), algorithm 1; Touvron et al. 2023 (Llama 2), section 3.2.3. Read `run` from top to bottom.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from plaudit import files
from plaudit.algorithms.nll_loss import nll_loss
from plaudit.data.collate import micro_batches, pack
from plaudit.evaluation.profile_page import page_if
from plaudit.evaluation.run_report import write_run_report
from plaudit.models.branch import token_logprobs
from plaudit.models.load import Model
from plaudit.phases import phase
from plaudit.randomness import torch_seed
from plaudit.rollout.collect import preflight
from plaudit.tensors import Sample
from plaudit.training import online
from plaudit.training.ahead import Ahead
from plaudit.training.learner import Learner, Meter
from plaudit.training.metrics import Metrics
from plaudit.training.online import OnlineConfig
from plaudit.training.optim import linear_to_zero
from plaudit.training.policy import make_policy, write_policy


class Config(OnlineConfig):
    """Settings of the rejection recipe; each is described in docs/configs.md."""

    samples_per_prompt: int = Field(default=8, ge=2)
    keep: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _some_are_rejected(self) -> Config:
        if self.keep >= self.samples_per_prompt:
            raise ValueError("keep must be less than samples_per_prompt, or nothing is rejected")
        return self


def run(config: Config, directory: Path, *, model: Model | None = None) -> dict[str, Any]:
    """Train in a run directory, from its latest checkpoint if it has one; returns the summary."""
    # 1. The frozen trunk, which is the reference, and the policy on it.
    world = online.open_world(config, model)
    seed = torch_seed(config.seed, "policy adapter")
    learner = Learner(
        directory,
        lambda: {"policy": make_policy(world.model, config.adapter, seed=seed, start=config.start)},
        config,
        {},
    )
    policy = learner.branches["policy"]

    sampling = Ahead(lambda acting, step: online.draw(world, acting, step, config, "rejection"), learner)
    log = Metrics(
        directory,
        total=config.steps,
        done=learner.done,
        title="rejection",
        profile=page_if(config.profile),
    )
    with log as metrics, sampling:
        for step in range(learner.done, config.steps):
            if learner.stopped:
                break
            began = time.monotonic()

            # 2. n completions of each prompt of this step, and their scores.
            drawn = sampling.of(step)
            samples = drawn.samples
            sampled = time.monotonic()
            seen = online.look(world, samples, config, policy=policy)
            scores, said = online.scores_of(drawn, seen)
            if step == 0:
                preflight(seen, world.model.trunk.dtype)
            row = online.describe(world, samples, seen, scores) | said
            if learner.must_stop(step, row, metrics.history):
                break

            # 3. The best of each prompt are demonstrations; of equal ones none is.
            best = best_of(samples, online.rewards_of(scores, samples, config), config.keep)
            row["kept"] = float(len(best))
            rate = config.learning_rate * linear_to_zero(step, config.steps)
            if best:
                row["kept_reward"] = float(scores[best].mean())
                row |= imitate([samples[i] for i in best], learner, step, rate, config)
            row["learning_rate"] = rate

            # 4. Say so, then save: what a kill cuts off between the two comes again.
            row |= online.timing(began, sampled, int(seen.packed.mask.sum()))
            metrics.log(step + 1, row, online.shown(row))
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
                learner.save(step + 1)

    # 5. The policy as an adapter (peft's format) and as a whole model that transformers loads.
    learner.finish()
    write_policy(policy, world.model, directory)
    summary = learner.summary(metrics.history)
    write_run_report(directory, summary)
    files.write_json(directory / "summary.json", summary)
    return summary


def best_of(samples: Sequence[Sample], earned: Tensor, keep: int) -> list[int]:
    """Places of the `keep` best of each prompt, in order; of equals the first. None of a prompt whose completions all
    earned the same: nothing says that one is worth imitating."""
    places: dict[int, list[int]] = {}
    for place, sample in enumerate(samples):
        places.setdefault(sample.prompt, []).append(place)
    return sorted(
        place
        for group in places.values()
        if len({float(earned[i]) for i in group}) > 1
        for place in sorted(group, key=lambda i: -float(earned[i]))[:keep]
    )


@phase("learning")
def imitate(
    best: Sequence[Sample], learner: Learner, step: int, rate: float, config: Config
) -> dict[str, float]:
    """All epochs over the kept completions; the mean over a minibatch's tokens. Returns the last epoch's figures."""
    policy = learner.branches["policy"]
    packed = pack(
        [s.prompt_ids for s in best],
        [s.completion_ids for s in best],
        action_masks=[s.action_mask for s in best],
        together=[s.prompt for s in best],
        most=max(1, len(best) // config.minibatches),
        device=policy.trunk.device,
    )
    meter, norm = Meter(1), 0.0
    for epoch in range(config.epochs):
        meter = Meter(min(config.minibatches, packed.rows))
        for rows, total, _ in packed.minibatches(config.minibatches, config.seed, "epoch", step, epoch):
            for micro in micro_batches(packed, config.micro_batch_tokens, rows):
                part, _ = packed.take(micro)
                now = token_logprobs(policy, part, temperature=config.temperature)
                out = nll_loss(now.logprobs, part.mask, total=total)
                torch.autograd.backward(out.loss)
                meter.add(**out.metrics)
            norm = learner.update(rate)
    return meter.row | {"grad_norm": norm}
