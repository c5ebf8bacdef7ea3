# mypy: disable-error-code="no-untyped-call"
"""Where each loss ends: on a bandit and on a chain of states, at the policy, scores or shares that theory names.

What a reward r and a price beta of the KL to a reference ask for is known of every completion y of a prompt:

    pi*(y) = ref(y) exp(r(y) / beta) / Z        (Ziegler et al. 2019, section 2; Rafailov et al. 2023, equation 4)

DPO of raters who choose by the rewards' difference ends there whoever drew the pairs, IPO and robust DPO of theirs too,
and so do the policy gradients with the KL in the reward. A policy is a table of logits, whole comparisons are
enumerated, and all is in float64: nothing but the loss can be at fault. For what learns from draws the rates fall to 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_learning import ALGORITHMS, EACH, Batch, Learner
from torch import Tensor

from plaudit.algorithms.masking import masked_sum
from plaudit.algorithms.nll_loss import nll_loss
from plaudit.algorithms.preference_loss import (
    Pairs,
    dpo_loss,
    ipo_loss,
    kto_loss,
    orpo_loss,
    robust_dpo_loss,
    simpo_loss,
    smoothed,
)
from plaudit.algorithms.reward_loss import bradley_terry, ordinal, plackett_luce, rating_regression
from plaudit.randomness import torch_seed
from worlds import END, Paths, World, bandit, chain, every_path, logprobs, sample

BETA = 0.3


def timed(world: World) -> World:
    """The same paths, but a policy may know how many steps are gone: state s at step t is t * S + s."""
    states, rows = len(world.after), []
    for t in range(world.horizon):
        goes_on = (world.after != END) & (t < world.horizon - 1)
        rows.append(torch.where(goes_on, world.after + (t + 1) * states, END))
    return World(world.starts, torch.cat(rows), world.reward.repeat(world.horizon, 1), world.horizon)


WORLDS = {"bandit": bandit()._replace(noise=0.0), "chain": timed(chain(4))}


def reference(world: World) -> Tensor:
    """Logits that prefer some actions, another way in each state."""
    return torch.sin(torch.arange(world.reward.numel(), dtype=torch.float64)).reshape(world.reward.shape)


def chances(logits: Tensor, paths: Paths) -> Tensor:
    """[B], in nats: of each path, given its prompt."""
    return logprobs(logits, paths).mul(paths.mask).sum(1)


def optimum(world: World, beta: float = BETA) -> tuple[Paths, Tensor]:
    """Every path, and the best policy's probability of it: a prompt's sum to 1."""
    paths = every_path(world)
    worth = chances(reference(world), paths) + paths.rewards.sum(1) / beta
    found = torch.zeros_like(worth)
    for prompt in paths.prompt.unique():
        mine = paths.prompt == prompt
        found[mine] = worth[mine].softmax(0)
    return paths, found


def apart(world: World, logits: Tensor) -> float:
    """The total variation between a policy and the best, of the prompt where it is largest."""
    paths, best = optimum(world)
    gaps = (chances(logits, paths).exp() - best).abs() / 2
    return max(float(gaps[paths.prompt == prompt].sum()) for prompt in paths.prompt.unique())


def least(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Where the loss is least, from there downhill."""
    found = start.clone().requires_grad_(True)
    downhill = torch.optim.LBFGS(
        [found], max_iter=2000, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        downhill.zero_grad()
        value = loss(found)
        torch.autograd.backward(value)
        return value

    downhill.step(closure)
    return found.detach()


def all_pairs(paths: Paths) -> tuple[Tensor, Tensor]:
    """Places of two paths of one prompt, each couple once."""
    first, second = torch.triu_indices(len(paths.prompt), len(paths.prompt), offset=1)
    same = paths.prompt[first] == paths.prompt[second]
    return first[same], second[same]


def test_the_optimum_is_one() -> None:
    """By hand: even odds and rewards 0.9 and 0.1 apart; and no other policy earns more, less its KL."""
    paths, best = optimum(WORLDS["bandit"])
    r, ref = paths.rewards.sum(1), chances(reference(WORLDS["bandit"]), paths)
    assert math.log(best[4] / best[0]) == pytest.approx(float(ref[4] - ref[0]) + 0.8 / BETA, rel=1e-12)
    for name, world in WORLDS.items():
        paths, best = optimum(world)
        r, ref = paths.rewards.sum(1), chances(reference(world), paths)
        assert float(best.sum()) == pytest.approx(3), name

        def earns(log_chance: Tensor, r: Tensor = r, ref: Tensor = ref) -> float:
            return float((log_chance.exp() * (r - BETA * (log_chance - ref))).sum())

        for seed in range(5):
            nudge = torch.randn(world.reward.shape, generator=torch.Generator().manual_seed(seed))
            other = chances(reference(world) + nudge.double(), paths)
            assert earns(best.log()) > earns(other)
        assert earns(best.log()) > earns(ref)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", ["dpo", "robust", "ipo"])
def test_all_comparisons_lead_to_the_reference_times_exp_of_the_reward(name: str, world: str) -> None:
    """robust: each label flipped with chance 0.15. ipo: raters whose shares are straight in the reward's difference."""
    here = WORLDS[world]
    paths = every_path(here)
    first, second = all_pairs(paths)
    reward, ref = paths.rewards.sum(1), chances(reference(here), paths)
    gap = reward[first] - reward[second]
    target = 0.5 + 0.4 * gap if name == "ipo" else torch.sigmoid(gap)
    if name == "robust":
        target = smoothed(target, 0.15)
    beta = 0.4 * BETA if name == "ipo" else BETA  # h = (target - 0.5) / beta is gap / BETA
    losses = {"dpo": dpo_loss, "ipo": ipo_loss, "robust": robust_dpo_loss}
    more = {"flip": 0.15} if name == "robust" else {}

    def loss(logits: Tensor) -> Tensor:
        now = chances(logits, paths)
        pairs = Pairs(now[first], now[second], target, ref[first], ref[second])
        return losses[name](pairs, total=len(first), beta=beta, **more).loss

    assert apart(here, reference(here)) > 0.2
    assert apart(here, least(loss, reference(here))) < 1e-5


@pytest.mark.parametrize("share", [0.9, 0.5, 0.25])
def test_two_answers_end_where_a_solved_equation_says(share: float) -> None:
    """SimPO: beta (mean log pi - mean log pi) = log-odds + gamma, of answers of 2 and 5 tokens. ORPO: bisection of the
    slope p - q + 2 lam (sigmoid(2 x) - q), x the log-odds of p."""
    q, side = torch.tensor([share], dtype=torch.float64), (share > 0.5) - (share < 0.5)
    two, five = (torch.tensor([n], dtype=torch.float64) for n in (2, 5))

    def simpo(x: Tensor) -> Tensor:
        pairs = Pairs(x[:1], x[1:], q, first_tokens=two, second_tokens=five)
        return simpo_loss(pairs, total=1, beta=1.5, gamma=0.4).loss

    found = least(simpo, torch.tensor([-1.0, -2.0], dtype=torch.float64))
    wanted = (math.log(share / (1 - share)) + 0.4 * side) / 1.5
    assert float(found[0] / 2 - found[1] / 5) == pytest.approx(wanted, abs=1e-6)

    def orpo(x: Tensor) -> Tensor:
        one = torch.ones(1, dtype=torch.float64)
        logs = torch.nn.functional.logsigmoid(torch.cat([x, -x]))
        return orpo_loss(
            Pairs(logs[:1], logs[1:], q, first_tokens=one, second_tokens=one), total=1, lam=0.7
        ).loss

    low, high = -20.0, 20.0
    for _ in range(100):
        x = (low + high) / 2
        slope = 1 / (1 + math.exp(-x)) - share + 2 * 0.7 * (1 / (1 + math.exp(-2 * x)) - share)
        low, high = (low, x) if slope > 0 else (x, high)
    assert float(least(orpo, torch.tensor([0.3], dtype=torch.float64))) == pytest.approx(low, abs=1e-6)


@pytest.mark.parametrize("baseline", [0.0, 0.2])
def test_kto_ends_at_the_best_of_all_policies_on_a_grid(baseline: float) -> None:
    """Three answers, called desirable by these shares of as many raters; the loss of each policy in steps of 1/400."""
    liked, ref = np.array([0.8, 0.65, 0.3]), np.array([0.2, 0.3, 0.5])
    beta, up, down = 1.0, 1.0, 1.3

    def by_hand(p: Any) -> Any:
        ahead = beta * (np.log(p / ref) - baseline)
        return (liked * up / (1 + np.exp(ahead)) + (1 - liked) * down / (1 + np.exp(-ahead))).sum(-1)

    steps = np.arange(1, 400) / 400
    a, b = (x.ravel() for x in np.meshgrid(steps, steps))
    inside = a + b < 1 - 1e-9
    grid = np.stack([a[inside], b[inside], 1 - a[inside] - b[inside]], -1)
    best = grid[by_hand(grid).argmin()]
    weight = torch.from_numpy(np.concatenate([liked, 1 - liked]))
    good = torch.tensor([True] * 3 + [False] * 3)
    log_ref = torch.from_numpy(np.log(ref)).repeat(2)

    def loss(logits: Tensor) -> Tensor:
        now = logits.log_softmax(0).repeat(2)
        given = torch.tensor(baseline, dtype=torch.float64)
        return kto_loss(
            now,
            log_ref,
            good,
            given,
            weight,
            total=3,
            beta=beta,
            desirable_weight=up,
            undesirable_weight=down,
        ).loss

    found = least(loss, torch.from_numpy(np.log(ref))).softmax(0).numpy()
    assert np.abs(found - best).max() < 0.005
    assert by_hand(found) <= by_hand(best) + 1e-12
    assert found[0] > 0.3 > 0.2 > found[2]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("baseline", [0.0, 0.2])
def test_kto_ends_at_the_worlds_optimum_where_raters_like_it_so(world: str, baseline: float) -> None:
    """With beta 1 a path whose c = likes * up - dislikes * down is above 0 adds - c p / (p + k) to the loss, where k is
    ref exp(baseline): convex in p, so that the least is where all slopes of a prompt are alike (Karush, Kuhn and
    Tucker), c k / (p + k)^2. Raters are chosen whose slopes are alike at the world's best policy."""
    here, up, down = WORLDS[world], 1.0, 1.3
    paths, best = optimum(here)
    ref = chances(reference(here), paths)
    k = ref.exp() * math.exp(baseline)
    slope = (best + k) ** 2 / k
    most = torch.stack([slope[paths.prompt == prompt].max() for prompt in paths.prompt])
    liked = (0.9 * up * slope / most + down) / (up + down)
    assert bool(((liked > 0.5) & (liked < 1)).all())
    weight, good = torch.cat([liked, 1 - liked]), torch.arange(2 * len(ref)) < len(ref)

    def loss(logits: Tensor) -> Tensor:
        now = chances(logits, paths)
        return kto_loss(
            now.repeat(2), ref.repeat(2), good, torch.tensor(baseline, dtype=torch.float64), weight,
            total=len(ref), beta=1.0, desirable_weight=up, undesirable_weight=down,
        ).loss  # fmt: skip

    assert apart(here, reference(here)) > 0.2
    assert apart(here, least(loss, reference(here))) < 1e-4


@pytest.mark.parametrize("world", WORLDS)
def test_simpo_ends_at_the_policy_whose_mean_logprobs_the_raters_choose_by(world: str) -> None:
    """Each comparison alone asks for beta (mean - mean) = log-odds + gamma; these raters' odds ask of every one for
    what the world's best policy has. They do not compare what lies nearer than gamma."""
    here, beta, gamma = WORLDS[world], 1.5, 0.05
    paths, best = optimum(here)
    tokens = paths.mask.sum(1)
    first, second = all_pairs(paths)
    gap = beta * (best.log() / tokens)[first] - beta * (best.log() / tokens)[second]
    first, second, gap = (x[gap.abs() > gamma] for x in (first, second, gap))
    target = torch.sigmoid(gap - gamma * gap.sign())

    def loss(logits: Tensor) -> Tensor:
        now = chances(logits, paths)
        pairs = Pairs(
            now[first], now[second], target, first_tokens=tokens[first], second_tokens=tokens[second]
        )
        return simpo_loss(pairs, total=len(first), beta=beta, gamma=gamma).loss

    assert apart(here, reference(here)) > 0.2
    assert apart(here, least(loss, reference(here))) < 1e-5


@pytest.mark.parametrize("world", WORLDS)
def test_orpo_ends_where_imitation_and_odds_agree(world: str) -> None:
    """These raters choose by the odds of the world's best policy, which its second term then asks for, and are asked
    about each couple so often that what is preferred is as frequent as that policy says it: the first term's least.
    How often: odds + odds, times factors that give every path its sum (Sinkhorn and Knopp)."""
    here = WORLDS[world]
    paths, best = optimum(here)
    tokens = paths.mask.sum(1)
    mean = (best.log() / tokens).exp()
    odds = mean / (1 - mean)
    first, second = all_pairs(paths)
    wanted, factor = tokens * best / odds, torch.ones_like(odds)
    for _ in range(2000):
        others = torch.zeros_like(odds).index_add(0, first, factor[second])
        factor = (factor * wanted / others.index_add(0, second, factor[first])).sqrt()
    often = factor[first] * factor[second] * (odds[first] + odds[second])
    target = odds[first] / (odds[first] + odds[second])
    preferred = torch.zeros_like(odds).index_add(0, first, often * target)
    preferred = preferred.index_add(0, second, often * (1 - target))
    torch.testing.assert_close(preferred, tokens * best, rtol=1e-9, atol=0)

    def loss(logits: Tensor) -> Tensor:
        now = chances(logits, paths)
        sides = {"first_tokens": tokens[first], "second_tokens": tokens[second]}
        pairs = Pairs(now[first], now[second], target, **sides, weight=often)
        return orpo_loss(pairs, total=often.sum(), lam=0.7).loss

    assert apart(here, reference(here)) > 0.2
    assert apart(here, least(loss, reference(here))) < 1e-5


@pytest.mark.parametrize("kind", ["comparisons", "rankings", "ratings", "levels"])
def test_a_reward_is_found_from_what_infinitely_many_raters_say(kind: str) -> None:
    """Their shares are those of true scores; comparisons and rankings leave a constant open."""
    true = torch.tensor([-1.2, 0.1, 0.7, 2.0], dtype=torch.float64)
    if kind == "comparisons":
        first, second = torch.triu_indices(4, 4, offset=1)
        shares = torch.sigmoid(true[first] - true[second])
        found = least(
            lambda s: bradley_terry(s[first], s[second], shares, total=6).loss, torch.zeros_like(true)
        )
    elif kind == "rankings":
        orders = torch.cartesian_prod(*[torch.arange(4)] * 4)
        orders = orders[[len(set(row)) == 4 for row in orders.tolist()]]
        worth = true.exp()[orders]
        often = (worth / worth.flip(1).cumsum(1).flip(1)).prod(
            1
        )  # the best of all, then of the rest, and so on
        assert float(often.sum()) == pytest.approx(1)
        mask = torch.ones(orders.shape, dtype=torch.bool)
        found = least(lambda s: plackett_luce(s[orders], mask, often, total=1).loss, torch.zeros_like(true))
    elif kind == "ratings":
        found = least(
            lambda s: rating_regression(s, torch.sigmoid(true), total=4).loss, torch.zeros_like(true)
        )
    else:
        cuts = torch.tensor([-1.0, 0.2, 1.5], dtype=torch.float64)
        above = torch.sigmoid(true[:, None] - cuts)
        each = torch.cat([torch.ones(4, 1), above], 1) - torch.cat([above, torch.zeros(4, 1)], 1)
        level = torch.arange(4, dtype=torch.float64).repeat(4)
        found = least(
            lambda s: ordinal(s.repeat_interleave(4), level, cuts, each.flatten(), total=4).loss,
            torch.zeros_like(true),
        )
    if kind in ("comparisons", "rankings"):
        found = found - found.mean() + true.mean()
    torch.testing.assert_close(found, true, rtol=0, atol=1e-6)


def test_imitation_ends_at_the_shares_of_what_was_shown() -> None:
    """On the chain: of what was done in a state at a step, whichever way led there."""
    for world in WORLDS.values():
        shown = sample(world, reference(world), 200, torch.Generator().manual_seed(3))
        counts = torch.zeros_like(world.reward)
        counts.index_put_(
            (shown.states[shown.mask], shown.actions[shown.mask]), torch.ones(1).double(), accumulate=True
        )
        total = shown.mask.sum()

        def loss(logits: Tensor, shown: Paths = shown, total: Tensor = total) -> Tensor:
            return nll_loss(logprobs(logits, shown), shown.mask, total=total).loss

        found = least(loss, torch.zeros_like(world.reward))
        often = counts.min(1).values > 0  # else the best logit is without end
        assert often.sum() >= 3
        shares = counts / counts.sum(1, keepdim=True)
        torch.testing.assert_close(found.softmax(1)[often], shares[often], rtol=0, atol=1e-5)


Step = Callable[[Tensor, Paths], list[Callable[[], Tensor]]]
"""The policy and what it drew -> the losses of that batch, one an epoch."""


def drawn(world: World, step: Step, steps: int, more: list[Tensor]) -> float:
    """How far from the optimum a policy ends that learns from its own draws, 16 of each prompt a step."""
    generator = torch.Generator().manual_seed(torch_seed("optima", 0))
    logits = reference(world).clone().requires_grad_(True)
    optimiser = torch.optim.Adam([logits, *more], lr=0.1)
    for number in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 0.1 * (1 - number / steps)
        for loss in step(logits, sample(world, logits, 2 * EACH, generator)):
            optimiser.zero_grad()
            loss().backward()
            optimiser.step()
    return apart(world, logits.detach())


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_price_of_the_kl_stops_a_policy_gradient_at_the_optimum(name: str, world: str) -> None:
    here, (algorithm, epochs) = WORLDS[world], ALGORITHMS[name]
    values = torch.zeros(len(here.reward), dtype=torch.float64, requires_grad=True)
    learner = Learner(torch.zeros(0), values, [0.0])

    def step(logits: Tensor, paths: Paths) -> list[Callable[[], Tensor]]:
        old = logprobs(logits, paths).detach()
        priced = paths.rewards - BETA * torch.where(paths.mask, old - logprobs(reference(here), paths), 0.0)
        batch = Batch(paths._replace(rewards=priced), old, priced.sum(1), here.horizon)
        return [algorithm(learner._replace(logits=logits), batch)] * epochs

    # There all that a prompt's answers earn is the same, so that noise dies out, but for a baseline of all prompts.
    # Reached: at most 0.03 by REINFORCE, whose baseline is not its own prompt's, and 0.004 by the others.
    assert drawn(here, step, 150, [values]) < (0.1 if name.startswith("REINFORCE") else 0.02)


@pytest.mark.parametrize("world", WORLDS)
def test_comparing_its_own_draws_stops_at_the_optimum(world: str) -> None:
    """Online DPO of raters who choose by the rewards' difference."""
    here = WORLDS[world]

    def step(logits: Tensor, paths: Paths) -> list[Callable[[], Tensor]]:
        reward, ref = paths.rewards.sum(1), chances(reference(here), paths)
        one, two = slice(0, None, 2), slice(1, None, 2)  # neighbours answer one prompt

        def loss() -> Tensor:
            now = masked_sum(logprobs(logits, paths), paths.mask, dim=1)
            target = torch.sigmoid(reward[one] - reward[two])
            return dpo_loss(
                Pairs(now[one], now[two], target, ref[one], ref[two]), total=len(target), beta=BETA
            ).loss

        return [loss]

    assert drawn(here, step, 300, []) < 1e-3  # reached: 5e-6
