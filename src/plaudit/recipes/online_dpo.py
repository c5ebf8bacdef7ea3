"""Online DPO: the policy's own completions, compared by a scorer, teach it as preferences do.

Guo et al. 2024 (Direct language model alignment from online AI feedback), algorithm 1, with a scorer or a judge model
as the annotator; DPO's loss is Rafailov et al. 2023. Read `run` from top to bottom.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from plaudit import files
from plaudit.algorithms.masking import masked_sum
from plaudit.algorithms.preference_loss import Pairs, dpo_loss, smoothed
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
    """Settings of the online_dpo recipe; each is described in docs/configs.md."""

    samples_per_prompt: int = Field(default=2, ge=2)
    beta: float = Field(default=0.1, gt=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)


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

    sampling = Ahead(lambda acting, step: online.draw(world, acting, step, config, "online_dpo"), learner)
    log = Metrics(
        directory,
        total=config.steps,
        done=learner.done,
        title="online dpo",
        profile=page_if(config.profile),
    )
    with log as metrics, sampling:
        for step in range(learner.done, config.steps):
            if learner.stopped:
                break
            began = time.monotonic()

            # 2. Completions of each prompt of this step, and their scores.
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

            # 3. The best and the worst of each prompt are a preference; equal ones are none.
            pairs = best_and_worst(samples, online.rewards_of(scores, samples, config))
            row["pairs"] = float(len(pairs))
            rate = config.learning_rate * linear_to_zero(step, config.steps)
            reference = masked_sum(seen.ref_logprobs, seen.packed.mask, dim=1)
            if pairs:
                row |= prefer(samples, pairs, reference, learner, step, rate, config)
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


def best_and_worst(samples: Sequence[Sample], earned: Tensor) -> list[tuple[int, int]]:
    """Of each prompt the places of its best and its worst completion, the first of equals; none where all are equal."""
    places: dict[int, list[int]] = {}
    for place, sample in enumerate(samples):
        places.setdefault(sample.prompt, []).append(place)
    pairs = []
    for group in places.values():
        best = max(group, key=lambda i: (float(earned[i]), -i))
        worst = min(group, key=lambda i: (float(earned[i]), i))
        if float(earned[best]) > float(earned[worst]):
            pairs.append((best, worst))
    return pairs


@phase("learning")
def prefer(
    samples: Sequence[Sample],
    pairs: Sequence[tuple[int, int]],
    reference: Tensor,
    learner: Learner,
    step: int,
    rate: float,
    config: Config,
) -> dict[str, float]:
    """All epochs over the pairs, each pair in one row; returns the last epoch's figures."""
    policy = learner.branches["policy"]
    both = [place for pair in pairs for place in pair]
    packed = pack(
        [samples[i].prompt_ids for i in both],
        [samples[i].completion_ids for i in both],
        action_masks=[samples[i].action_mask for i in both],
        together=[number for number in range(len(pairs)) for _ in range(2)],
        max_row=sys.maxsize,
        device=policy.trunk.device,
    )
    meter, norm = Meter(1), 0.0
    for epoch in range(config.epochs):
        meter = Meter(min(config.minibatches, packed.rows))
        for rows, _, samples_here in packed.minibatches(
            config.minibatches, config.seed, "epoch", step, epoch
        ):
            for micro in micro_batches(packed, config.micro_batch_tokens, rows):
                part, index = packed.take(micro)
                now = token_logprobs(policy, part, temperature=config.temperature)
                sums = masked_sum(now.logprobs, part.mask, dim=1)
                known = reference[torch.tensor(both, device=reference.device)[index]].to(sums.dtype)
                wins = torch.ones(len(index) // 2, dtype=sums.dtype, device=sums.device)
                out = dpo_loss(
                    Pairs(
                        first=sums[0::2],
                        second=sums[1::2],
                        target=smoothed(wins, config.label_smoothing),
                        ref_first=known[0::2],
                        ref_second=known[1::2],
                    ),
                    total=samples_here // 2,
                    beta=config.beta,
                )
                torch.autograd.backward(out.loss)
                meter.add(loss=out.loss, **out.metrics)
            norm = learner.update(rate)
    return meter.row | {"grad_norm": norm, "accuracy": meter.row["correct"] / meter.row["decided"]}
