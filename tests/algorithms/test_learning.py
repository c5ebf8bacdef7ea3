# mypy: disable-error-code="no-untyped-call"
"""Every policy gradient learns: on a bandit and on a chain of states, to a stated share of what is possible.

The policy is a table of logits, so that nothing but the algorithm can be at fault. A share of 0 is the policy that
chooses evenly, 1 the best one, both computed exactly (tests/worlds.py).
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from plaudit.algorithms.advantages import gae, group_advantages, leave_one_out
from plaudit.algorithms.masking import whiten
from plaudit.algorithms.nll_loss import nll_loss
from plaudit.algorithms.policy_loss import ppo_policy_loss, reinforce_loss, sequence_policy_loss
from plaudit.algorithms.value_loss import clipped_value_loss
from plaudit.randomness import torch_seed
from worlds import Paths, World, bandit, best_return, chain, expected_return, logprobs, sample

EACH = 8  # completions of a prompt


class Learner(NamedTuple):
    """What is learned, and REINFORCE's memory of scores."""

    logits: Tensor
    values: Tensor
    baseline: list[float]


class Batch(NamedTuple):
    paths: Paths
    old: Tensor
    scores: Tensor
    longest: int

    def spread(self, advantages: Tensor) -> Tensor:
        """[B] -> [B, T]: each token of a completion is given the completion's."""
        return advantages.unsqueeze(1).expand_as(self.paths.mask)


Loss = Callable[[], Tensor]
Algorithm = Callable[[Learner, Batch], Loss]
"""A learner and a fresh batch -> the loss of that batch, as often as there are epochs."""


def reinforce(learner: Learner, batch: Batch) -> Loss:
    """With a moving average of the scores so far as its baseline."""
    advantages = batch.spread(batch.scores - learner.baseline[0])
    learner.baseline[0] += 0.2 * (batch.scores.mean().item() - learner.baseline[0])
    mask = batch.paths.mask
    return lambda: (
        reinforce_loss(logprobs(learner.logits, batch.paths), advantages, mask, total=len(mask)).loss
    )


def rloo(learner: Learner, batch: Batch) -> Loss:
    advantages, mask = leave_one_out(batch.scores, batch.paths.prompt), batch.paths.mask
    return lambda: (
        sequence_policy_loss(
            logprobs(learner.logits, batch.paths),
            batch.old,
            advantages,
            mask,
            total=len(mask),
            ratio="product",
        ).loss
    )


def on_tokens(learner: Learner, batch: Batch, advantages: Tensor, *, clip_high: float | None = None) -> Loss:
    mask = batch.paths.mask
    return lambda: (
        ppo_policy_loss(
            logprobs(learner.logits, batch.paths),
            batch.old,
            advantages,
            mask,
            total=mask.sum(),
            clip_high=clip_high,
        ).loss
    )


def reinforce_plus_plus(learner: Learner, batch: Batch) -> Loss:
    """The rewards to come, whitened over the whole batch."""
    mask = batch.paths.mask
    to_come, _ = gae(batch.paths.rewards, torch.zeros_like(batch.old), mask, lam=1.0)
    return on_tokens(learner, batch, whiten(to_come, mask, keep_mean=False))


def grpo(learner: Learner, batch: Batch) -> Loss:
    advantages = batch.spread(group_advantages(batch.scores, batch.paths.prompt))
    mask = batch.paths.mask
    return lambda: (
        ppo_policy_loss(
            logprobs(learner.logits, batch.paths),
            batch.old,
            advantages,
            mask,
            total=len(mask),
            per_sequence=True,
        ).loss
    )


def dr_grpo(learner: Learner, batch: Batch) -> Loss:
    advantages = batch.spread(group_advantages(batch.scores, batch.paths.prompt, scale="none"))
    tokens = batch.paths.mask.sum()
    loss = on_tokens(learner, batch, advantages)
    return lambda: loss() * tokens / (len(batch.scores) * batch.longest)


def dapo(learner: Learner, batch: Batch) -> Loss:
    """Groups whose scores are all equal teach nothing: they are left out, and of the count, too."""
    advantages = group_advantages(batch.scores, batch.paths.prompt)
    telling = [g for g in batch.paths.prompt.unique() if batch.scores[batch.paths.prompt == g].std() > 0]
    kept = torch.isin(batch.paths.prompt, torch.tensor(telling))
    if not kept.any():
        return lambda: 0.0 * learner.logits.sum()
    paths = Paths(*(x[kept] for x in batch.paths))
    fewer = Batch(paths, batch.old[kept], batch.scores[kept], batch.longest)
    return on_tokens(learner, fewer, fewer.spread(advantages[kept]), clip_high=0.28)


def gspo(learner: Learner, batch: Batch) -> Loss:
    """The clip is wider than the paper's 3e-4, for steps that are larger than a language model's."""
    advantages, mask = group_advantages(batch.scores, batch.paths.prompt), batch.paths.mask
    return lambda: (
        sequence_policy_loss(
            logprobs(learner.logits, batch.paths),
            batch.old,
            advantages,
            mask,
            total=len(mask),
            ratio="mean",
            clip=0.1,
        ).loss
    )


def ppo(learner: Learner, batch: Batch) -> Loss:
    """The value is a table, too."""
    mask, states = batch.paths.mask, batch.paths.states
    old_values = learner.values[states].detach()
    advantages, returns = gae(batch.paths.rewards, old_values, mask)
    policy = on_tokens(learner, batch, whiten(advantages, mask, keep_mean=False))
    return lambda: (
        policy()
        + clipped_value_loss(learner.values[states], old_values, returns, mask, total=mask.sum()).loss
    )


def rejection(learner: Learner, batch: Batch) -> Loss:
    """The best completion of each prompt is imitated; none where all are equal."""
    best = []
    for prompt in batch.paths.prompt.unique():
        places = torch.nonzero(batch.paths.prompt == prompt)[:, 0]
        scores = batch.scores[places]
        best += [int(places[scores.argmax()])] if scores.max() > scores.min() else []
    if not best:
        return lambda: 0.0 * learner.logits.sum()
    paths = Paths(*(x[best] for x in batch.paths))
    return lambda: nll_loss(logprobs(learner.logits, paths), paths.mask, total=paths.mask.sum()).loss


def backwards(learner: Learner, batch: Batch) -> Loss:
    """Told the opposite of what it should do."""
    return reinforce(learner, batch._replace(scores=-batch.scores))


ALGORITHMS: dict[str, tuple[Algorithm, int]] = {
    "REINFORCE": (reinforce, 1),
    "RLOO": (rloo, 2),
    "REINFORCE++": (reinforce_plus_plus, 3),
    "GRPO": (grpo, 3),
    "Dr. GRPO": (dr_grpo, 3),
    "DAPO": (dapo, 3),
    "GSPO": (gspo, 3),
    "PPO": (ppo, 3),
}
"""name -> the algorithm and its epochs a batch."""
WORLDS = {"bandit": bandit(), "chain": chain()}


def learn(algorithm: Algorithm, epochs: int, world: World, *, steps: int, seed: int) -> float:
    """The share of the possible gain that is reached after so many batches."""
    generator = torch.Generator().manual_seed(torch_seed("learning", seed))
    learner = Learner(
        torch.zeros_like(world.reward), torch.zeros(len(world.reward), dtype=torch.float64), [0.0]
    )
    learner.logits.requires_grad_()
    learner.values.requires_grad_()
    optimiser = torch.optim.Adam([learner.logits, learner.values], lr=0.1)
    start, best = expected_return(world, learner.logits).item(), best_return(world)
    for _ in range(steps):
        paths = sample(world, learner.logits, EACH, generator)
        old = logprobs(learner.logits, paths).detach()
        loss = algorithm(learner, Batch(paths, old, paths.rewards.sum(1), world.horizon))
        for _ in range(epochs):
            optimiser.zero_grad()
            loss().backward()
            optimiser.step()
    return (expected_return(world, learner.logits).item() - start) / (best - start)


def test_the_optima_by_hand() -> None:
    # bandit: evenly 2.5 / 5, best 0.9; chain: 1 less a cent for each of 3, 2 and 1 steps
    assert expected_return(bandit(), torch.zeros(3, 5, dtype=torch.float64)).item() == pytest.approx(0.5)
    assert best_return(bandit()) == pytest.approx(0.9)
    assert best_return(chain()) == pytest.approx((0.97 + 0.98 + 0.99) / 3)
    # with two steps only the last prompt can go on (1/3) and stop (1/3); every first and second step not stopped costs
    # 0.01: 2/3 first, 2/3 * 2/3 second
    evenly = expected_return(chain(2), torch.zeros(4, 3, dtype=torch.float64)).item()
    assert evenly == pytest.approx(1 / 3 / 9 - 0.01 * (2 / 3 + 4 / 9))


@pytest.mark.parametrize("world", ["bandit", "chain"])
def test_what_is_drawn_has_the_return_that_is_computed(world: str) -> None:
    logits = torch.linspace(-1, 1, WORLDS[world].reward.numel(), dtype=torch.float64)
    logits = logits.reshape(WORLDS[world].reward.shape)
    paths = sample(WORLDS[world], logits, 4000, torch.Generator().manual_seed(1))
    scores = paths.rewards.sum(1)
    error = (scores.std() / len(scores) ** 0.5).item()
    assert scores.mean().item() == pytest.approx(expected_return(WORLDS[world], logits).item(), abs=4 * error)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("world", ["bandit", "chain"])
@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_it_reaches_95_percent_in_60_batches(name: str, world: str, seed: int) -> None:
    """60 batches of 24 completions. Measured: 0.96 (REINFORCE, bandit) to 1.00."""
    algorithm, epochs = ALGORITHMS[name]
    assert learn(algorithm, epochs, WORLDS[world], steps=60, seed=seed) > 0.95


@pytest.mark.parametrize("world", ["bandit", "chain"])
def test_imitating_the_best_of_eight_reaches_95_percent_in_100_batches(world: str) -> None:
    """Measured over three seeds, with Student's 95 % interval: 0.985 +- 0.006 and
    0.986 +- 0.010."""
    reached = torch.tensor([learn(rejection, 1, WORLDS[world], steps=100, seed=seed) for seed in (0, 1, 2)])
    half = 4.303 * float(reached.std()) / 3**0.5
    assert float(reached.min()) > 0.95
    assert float(reached.mean()) - half > 0.9


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_told_the_opposite_it_ends_below_where_it_began(seed: int) -> None:
    assert learn(backwards, 1, WORLDS["bandit"], steps=60, seed=seed) < -0.9
