# mypy: disable-error-code="no-untyped-call"
"""What a policy gradient expects, by enumeration of all that can happen, beside the slope of the expected return.

The worlds are tables (tests/worlds.py): each path, or each pair of draws, is weighted by its probability, and the slope
of the expected return comes from dynamic programming, which knows no policy gradient.
"""

import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor

from plaudit.algorithms.advantages import gae, group_advantages, leave_one_out
from plaudit.algorithms.kl import k1, k2, k3
from plaudit.algorithms.masking import masked_sum
from plaudit.algorithms.policy_loss import ppo_policy_loss, reinforce_loss, sequence_policy_loss
from worlds import Paths, World, bandit, chain, every_path, expected_return, logprobs

WORLDS = {"bandit": bandit(), "chain": chain(4)}


def table(world: World, seed: int) -> Tensor:
    """Logits of some policy."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(world.reward.shape, generator=generator, dtype=torch.float64).requires_grad_()


def slope(of: Tensor, logits: Tensor) -> Tensor:
    gradient: Tensor = torch.autograd.grad(of, logits, retain_graph=True)[0]
    return gradient


def chances(logits: Tensor, paths: Paths) -> Tensor:
    """The probability of each path among all that may begin, the prompt being drawn evenly; detached."""
    prompts = len(set(paths.prompt.tolist()))
    return masked_sum(logprobs(logits, paths), paths.mask, dim=1).exp().detach() / prompts


def expected(losses: Callable[[int], Tensor], weights: Tensor, logits: Tensor) -> Tensor:
    """The slope of each path's own loss, averaged with the paths' probabilities."""
    total = torch.zeros_like(logits)
    for row, weight in enumerate(weights.tolist()):
        total += weight * slope(losses(row), logits)
    return total


def one(paths: Paths, row: int) -> Paths:
    return Paths(*(x[row : row + 1] for x in paths))


def spread(values: Tensor, mask: Tensor) -> Tensor:
    return values.unsqueeze(1).expand_as(mask)


@pytest.mark.parametrize("name", list(WORLDS))
def test_all_paths_are_there_once(name: str) -> None:
    world = WORLDS[name]
    logits, paths = table(world, 0), every_path(world)
    weights = chances(logits, paths)
    assert weights.sum().item() == pytest.approx(1.0, abs=1e-13)
    ours = (weights * paths.rewards.sum(1)).sum().item()
    assert ours == pytest.approx(expected_return(world, logits).item(), abs=1e-13)


@pytest.mark.parametrize("baseline", [0.0, 0.7])
@pytest.mark.parametrize("name", list(WORLDS))
def test_reinforce_is_the_slope_of_the_expected_return(name: str, baseline: float) -> None:
    """With any constant for a baseline."""
    world = WORLDS[name]
    logits, paths = table(world, 1), every_path(world)

    def loss(row: int) -> Tensor:
        path = one(paths, row)
        advantages = spread(path.rewards.sum(1) - baseline, path.mask)
        return reinforce_loss(logprobs(logits, path), advantages, path.mask, total=1).loss

    ours = expected(loss, chances(logits, paths), logits)
    torch.testing.assert_close(ours, -slope(expected_return(world, logits), logits), rtol=1e-11, atol=1e-14)


def test_rewards_to_come_less_a_value_have_the_same_slope() -> None:
    """GAE with gamma and lambda 1, whatever the value of a state is taken to be."""
    world = WORLDS["chain"]
    logits, paths = table(world, 2), every_path(world)
    values = torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=torch.float64)[paths.states]
    advantages, _ = gae(paths.rewards, values, paths.mask, gamma=1.0, lam=1.0)

    def loss(row: int) -> Tensor:
        path = one(paths, row)
        new = logprobs(logits, path)
        return ppo_policy_loss(new, new.detach(), advantages[row : row + 1], path.mask, total=1).loss

    ours = expected(loss, chances(logits, paths), logits)
    torch.testing.assert_close(ours, -slope(expected_return(world, logits), logits), rtol=1e-11, atol=1e-14)


def off_policy(name: str, kind: str, cap: float) -> tuple[Tensor, Tensor]:
    """What is expected of draws from another policy with importance weights; what it should be."""
    world = WORLDS[name]
    logits, sampler, paths = table(world, 3), table(world, 4), every_path(world)

    def loss(row: int) -> Tensor:
        path = one(paths, row)
        score, new, drawn = path.rewards.sum(1), logprobs(logits, path), logprobs(sampler, path)
        if kind == "reinforce":
            return reinforce_loss(
                new, spread(score, path.mask), path.mask, total=1, sampled_logprobs=drawn, importance_cap=cap
            ).loss
        if kind == "ppo":
            return ppo_policy_loss(
                new, new.detach(), spread(score, path.mask), path.mask, total=1,
                sampled_logprobs=drawn, importance_cap=cap,
            ).loss  # fmt: skip
        return sequence_policy_loss(
            new, new.detach(), score, path.mask, total=1, ratio="product",
            sampled_logprobs=drawn, importance_cap=cap,
        ).loss  # fmt: skip

    ours = expected(loss, chances(sampler, paths), logits)
    return ours, -slope(expected_return(world, logits), logits)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("bandit", "reinforce"), ("bandit", "ppo"), ("bandit", "product"), ("chain", "product")],
)
def test_importance_weights_undo_another_policys_draws(name: str, kind: str) -> None:
    """Where the cap does not bind, completions of one token, or weighted whole, speak for the learner exactly."""
    ours, exact = off_policy(name, kind, math.inf)
    torch.testing.assert_close(ours, exact, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize(("name", "kind", "cap"), [("bandit", "reinforce", 1.0), ("chain", "ppo", math.inf)])
def test_what_the_pages_call_biased_is_so(name: str, kind: str, cap: float) -> None:
    """A cap that binds; weights of tokens, which do not mend how the tokens before them were drawn."""
    ours, exact = off_policy(name, kind, cap)
    assert (ours - exact).norm() > 0.03 * exact.norm()


def of_groups(size: int, advantages: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The expected slope over all groups of draws of the bandit's first prompt; the slope of the expected return."""
    world = bandit()._replace(starts=torch.tensor([0]))
    logits, paths = table(world, 5), every_path(world)
    weights, arms = chances(logits, paths), torch.arange(len(paths.prompt))
    ours = torch.zeros_like(logits)
    for drawn in torch.cartesian_prod(*[arms] * size):
        group = Paths(*(x[drawn] for x in paths))
        new = logprobs(logits, group)
        loss = sequence_policy_loss(
            new, new.detach(), advantages(group.rewards.sum(1)), group.mask, total=size, ratio="product"
        ).loss
        ours += weights[drawn].prod() * slope(loss, logits)
    return ours, -slope(expected_return(world, logits), logits)


def same_prompt(scores: Tensor) -> Tensor:
    return torch.zeros(len(scores), dtype=torch.long)


@pytest.mark.parametrize("size", [2, 3])
def test_leaving_oneself_out_leaves_the_expectation(size: int) -> None:
    ours, exact = of_groups(size, lambda scores: leave_one_out(scores, same_prompt(scores)))
    torch.testing.assert_close(ours, exact, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("size", [2, 3])
def test_a_mean_with_oneself_in_it_makes_the_slope_shorter_by_one_in_n(size: int) -> None:
    """Dr. GRPO: the direction is kept."""
    ours, exact = of_groups(size, lambda scores: group_advantages(scores, same_prompt(scores), scale="none"))
    torch.testing.assert_close(ours, exact * (size - 1) / size, rtol=1e-11, atol=1e-14)


def test_dividing_by_the_groups_deviation_turns_the_slope() -> None:
    """GRPO climbs something else than the expected score."""
    ours, exact = of_groups(3, lambda scores: group_advantages(scores, same_prompt(scores)))
    cosine = torch.cosine_similarity(ours.flatten(), exact.flatten(), dim=0).item()
    assert 0.5 < cosine < 0.999


@pytest.mark.parametrize("ratio", ["ppo", "per sequence", "mean", "product"])
def test_at_ratio_one_all_of_them_are_reinforce(
    ratio: Literal["ppo", "per sequence", "mean", "product"],
) -> None:
    """But for what divides: by tokens; by completions and each one's tokens (twice the same); by completions."""
    world = WORLDS["chain"]
    paths = Paths(*(x[::7] for x in every_path(world)))
    lengths, count = paths.mask.sum(1, keepdim=True).double(), len(paths.mask)
    advantages = torch.linspace(-1.0, 2.0, count, dtype=torch.float64)
    old = logprobs(table(world, 6), paths).detach()

    def gradient(loss: Callable[[Tensor], Tensor]) -> Tensor:
        learned = old.clone().requires_grad_()
        return slope(loss(learned), learned)

    per_token = spread(advantages, paths.mask)
    plain = gradient(lambda new: reinforce_loss(new, per_token, paths.mask, total=count).loss)
    if ratio in ("mean", "product"):
        kind: Literal["mean", "product"] = "mean" if ratio == "mean" else "product"
        ours = gradient(
            lambda new: sequence_policy_loss(new, old, advantages, paths.mask, total=count, ratio=kind).loss
        )
    else:
        each, total = ratio == "per sequence", count if ratio == "per sequence" else lengths.sum()
        ours = gradient(
            lambda new: ppo_policy_loss(new, old, per_token, paths.mask, total=total, per_sequence=each).loss
        )
    factors = {"ppo": count / lengths.sum(), "per sequence": 1 / lengths, "mean": 1 / lengths}
    assert lengths.unique().numel() > 2
    torch.testing.assert_close(ours, plain * factors.get(ratio, torch.ones(())), rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3", "k3 times the ratio"])
def test_whose_slope_each_kl_has_in_the_loss(kind: str) -> None:
    """k1's: nobody's. k2's, and k3's times the ratio: KL(policy || reference). k3's: KL(reference || policy)."""
    logits, reference = (table(bandit(), seed)[0].detach() for seed in (7, 8))
    logits.requires_grad_()
    log_p, log_q = logits.log_softmax(-1), reference.log_softmax(-1)
    of_each = {
        "k1": lambda: k1(log_p, log_q),
        "k2": lambda: k2(log_p, log_q),
        "k3": lambda: k3(log_p, log_q),
        "k3 times the ratio": lambda: k3(log_p, log_q) * (log_p - log_p.detach()).exp(),
    }[kind]()
    ours = slope((log_p.exp().detach() * of_each).sum(), logits)
    forward, backward = (log_p.exp() * (log_p - log_q)).sum(), (log_q.exp() * (log_q - log_p)).sum()
    towards = {"k1": 0.0 * forward, "k3": backward}.get(kind, forward)
    torch.testing.assert_close(ours, slope(towards, logits), rtol=1e-11, atol=1e-15)
