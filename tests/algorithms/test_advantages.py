"""Rewards and advantages: by hand, by the definition in numpy, and by laws."""

import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from plaudit.algorithms.advantages import (
    gae,
    group_advantages,
    leave_one_out,
    overlong_penalty,
    replace_missing_eos,
    shaped_rewards,
)


def f64(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """rewards, values, mask [5, 7]: full, short, with holes, starting late, one token."""
    rng = np.random.default_rng(20)
    rewards, values = torch.from_numpy(rng.normal(size=(2, 5, 7)))
    rows = ["1111111", "1110000", "1100101", "0011110", "1000000"]
    return rewards, values, torch.tensor([[c == "1" for c in row] for row in rows])


def by_definition(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """A_t = sum over l of (gamma lam)^l delta_{t+l}, on each row's counted tokens alone (GAE, equation 16)."""
    out = np.zeros(tuple(mask.shape))
    for i in range(mask.shape[0]):
        places = np.flatnonzero(mask[i].numpy())
        r, v = rewards[i].numpy()[places], np.append(values[i].numpy()[places], 0.0)
        deltas = r + gamma * v[1:] - v[:-1]
        for t, place in enumerate(places):
            powers = (gamma * lam) ** np.arange(len(deltas) - t)
            out[i, place] = np.dot(powers, deltas[t:])
    return torch.from_numpy(out)


def test_three_steps_by_hand() -> None:
    # gamma 0.9, lambda 0.8, so gamma lambda = 0.72; rewards 0.1, -0.2, 1.0; values 0.5, 0.6, 0.8
    # t = 2: delta = 1.0           - 0.8 =  0.2,  A = 0.2
    # t = 1: delta = -0.2 + 0.9*0.8 - 0.6 = -0.08, A = -0.08 + 0.72 * 0.2   = 0.064
    # t = 0: delta = 0.1 + 0.9*0.6 - 0.5 =  0.14, A =  0.14 + 0.72 * 0.064 = 0.18608
    # returns = A + V
    mask = torch.ones(1, 3, dtype=torch.bool)
    advantages, returns = gae(f64([0.1, -0.2, 1.0]), f64([0.5, 0.6, 0.8]), mask, gamma=0.9, lam=0.8)
    assert advantages[0].tolist() == pytest.approx([0.18608, 0.064, 0.2], abs=1e-14)
    assert returns[0].tolist() == pytest.approx([0.68608, 0.664, 1.0], abs=1e-14)


def test_defaults_are_gamma_one_and_lambda_095() -> None:
    # t = 1: delta = 1 - 0.5 = 0.5; t = 0: delta = 0 + 0.5 - 0.25 = 0.25, A = 0.25 + 0.95 * 0.5
    advantages, _ = gae(f64([0.0, 1.0]), f64([0.25, 0.5]), torch.ones(1, 2, dtype=torch.bool))
    assert advantages[0].tolist() == pytest.approx([0.725, 0.5], abs=1e-14)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.99, 0.0)])
def test_gae_is_the_sum_of_the_paper(gamma: float, lam: float) -> None:
    rewards, values, mask = batch()
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    expected = by_definition(rewards, values, mask, gamma, lam)
    torch.testing.assert_close(advantages, expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(returns, torch.where(mask, expected + values, 0.0), rtol=1e-12, atol=1e-13)


def test_with_gamma_and_lambda_one_returns_are_the_rewards_to_come() -> None:
    rewards, values, mask = batch()
    _, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    to_come = torch.where(mask, rewards, 0.0).flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(returns, torch.where(mask, to_come, 0.0), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -1e30, 7.0])
def test_masked_rewards_and_values_change_nothing(rubbish: float) -> None:
    rewards, values, mask = batch()
    clean = gae(rewards, values, mask, gamma=0.9, lam=0.8)
    dirty = gae(
        rewards.masked_fill(~mask, rubbish), values.masked_fill(~mask, rubbish), mask, gamma=0.9, lam=0.8
    )
    for before, after in zip(clean, dirty, strict=True):
        assert torch.equal(before, after)
        assert torch.equal(after[~mask], torch.zeros_like(after[~mask]))


def test_padding_and_order_change_nothing() -> None:
    rewards, values, mask = batch()
    order = torch.tensor([3, 0, 4, 2, 1])
    clean = gae(rewards, values, mask)
    padded = gae(*(torch.nn.functional.pad(x, (0, 4)) for x in (rewards, values, mask)))
    permuted = gae(rewards[order], values[order], mask[order])
    for whole, longer, moved in zip(clean, padded, permuted, strict=True):
        assert torch.equal(whole, longer[:, :7])
        assert torch.equal(longer[:, 7:], torch.zeros(5, 4, dtype=torch.float64))
        assert torch.equal(whole[order], moved)


def test_advantages_carry_no_gradient() -> None:
    rewards, values, mask = batch()
    advantages, returns = gae(rewards, values.requires_grad_(), mask)
    assert not advantages.requires_grad
    assert not returns.requires_grad


def test_the_score_sits_on_the_last_counted_token() -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.bool)
    kl = f64(*[[0.1, 0.2, 0.3, 0.4]] * 4)
    rewards = shaped_rewards(f64([10.0, 20.0, 30.0, 40.0])[0], kl, mask, coef=0.5)
    expected = f64(
        [-0.05, -0.1, -0.15, 9.8],
        [-0.05, 19.9, 0.0, 0.0],
        [-0.05, 0.0, 29.85, 0.0],
        [0.0, 0.0, 0.0, 39.8],
    )
    torch.testing.assert_close(rewards, expected, rtol=0, atol=1e-14)


def test_an_episode_is_worth_its_score_less_the_price_of_its_kl() -> None:
    _, kl, mask = batch()
    scores = f64([1.0, -2.0, 3.0, 0.0, 0.5])[0]
    rewards = shaped_rewards(scores, kl, mask, coef=0.05)
    expected = [
        score - 0.05 * row[keep].sum().item()
        for score, row, keep in zip(scores.tolist(), kl, mask, strict=True)
    ]
    assert rewards.sum(1).tolist() == pytest.approx(expected, abs=1e-13)


def test_masked_kl_and_padding_change_no_reward() -> None:
    _, kl, mask = batch()
    scores = torch.arange(5, dtype=torch.float64)
    clean = shaped_rewards(scores, kl, mask, coef=0.1)
    dirty = torch.nn.functional.pad(kl.masked_fill(~mask, math.nan), (0, 3), value=math.inf)
    longer = shaped_rewards(scores, dirty, torch.nn.functional.pad(mask, (0, 3)), coef=0.1)
    assert torch.equal(longer[:, :7], clean)
    assert torch.equal(longer[:, 7:], torch.zeros(5, 3, dtype=torch.float64))


def test_a_score_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="no counted token"):
        shaped_rewards(torch.ones(2), torch.zeros(2, 3), torch.tensor([[True] * 3, [False] * 3]), coef=0.1)
    with pytest.raises(ValueError, match="do not fit"):
        shaped_rewards(torch.ones(3), torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool), coef=0.1)


def test_an_unfinished_completion_gets_the_penalty_in_place_of_its_score() -> None:
    scores = torch.tensor([5.0, 5.0, -3.0, -3.0])
    finished = torch.tensor([True, False, True, False])
    assert replace_missing_eos(scores, finished, penalty=-1.0).tolist() == [5.0, -1.0, -3.0, -1.0]


# Three prompts, their completions mixed up: scores 1, 2, 6 (mean 3), 5, 5 and a single 4
SCORES, GROUP = f64([1.0, 5.0, 2.0, 4.0, 5.0, 6.0])[0], torch.tensor([7, -3, 7, 40, -3, 7])


def test_advantages_within_a_group_by_hand() -> None:
    # 1, 2, 6 less 3: -2, -1, 3; squares 4 + 1 + 9 = 14, over n - 1 = 2: deviation sqrt(7) = 2.6457513
    ours = group_advantages(SCORES, GROUP, eps=0.0001)
    by = 2.6457513110645907 + 0.0001
    assert ours.tolist() == pytest.approx([-2 / by, 0.0, -1 / by, 0.0, 0.0, 3 / by], abs=1e-14)
    assert ours[GROUP != 7].tolist() == [0.0, 0.0, 0.0]  # all alike, or alone: exactly nothing
    assert torch.equal(group_advantages(SCORES, GROUP), ours)  # 1e-4 is the default


def test_advantages_by_the_batchs_deviation_or_none_by_hand() -> None:
    # all six have mean 23/6 and squares 1 + 25 + 4 + 16 + 25 + 36 = 107: variance (107 - 529/6) / 5 = 113/30
    by = (113 / 30) ** 0.5 + 0.0001
    batch = group_advantages(SCORES, GROUP, scale="batch")
    assert batch.tolist() == pytest.approx([-2 / by, 0.0, -1 / by, 0.0, 0.0, 3 / by], abs=1e-14)
    plain = group_advantages(SCORES, GROUP, scale="none")
    assert plain.tolist() == [-2.0, 0.0, -1.0, 0.0, 0.0, 3.0]


def test_leaving_oneself_out_by_hand() -> None:
    # 1 - (2 + 6)/2, 2 - (1 + 6)/2, 6 - (1 + 2)/2; 5 - 5 twice
    kept = GROUP != 40
    ours = leave_one_out(SCORES[kept], GROUP[kept])
    assert ours.tolist() == pytest.approx([-3.0, 0.0, -1.5, 0.0, 4.5], abs=1e-14)
    with pytest.raises(ValueError, match="group of one"):
        leave_one_out(SCORES, GROUP)


def drawn_groups() -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(3)
    return torch.from_numpy(rng.normal(3.0, 2.0, 40)), torch.from_numpy(rng.permutation(np.arange(40) % 7))


KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "group": group_advantages,
    "batch": lambda scores, group: group_advantages(scores, group, scale="batch"),
    "none": lambda scores, group: group_advantages(scores, group, scale="none"),
    "leave one out": leave_one_out,
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_loop_over_completions_gives_the_same(kind: str) -> None:
    scores, group = drawn_groups()
    ours = KINDS[kind](scores, group)
    pairs = list(zip(scores.tolist(), group.tolist(), strict=True))
    for i, (score, own) in enumerate(pairs):
        members = [s for s, g in pairs if g == own]
        others = [s for j, (s, g) in enumerate(pairs) if g == own and j != i]
        expected = {
            "group": (score - statistics.mean(members)) / (statistics.stdev(members) + 1e-4),
            "batch": (score - statistics.mean(members)) / (statistics.stdev(scores.tolist()) + 1e-4),
            "none": score - statistics.mean(members),
            "leave one out": score - statistics.mean(others),
        }[kind]
        assert ours[i].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", list(KINDS))
def test_order_names_and_a_constant_change_no_advantage(kind: str) -> None:
    of = KINDS[kind]
    scores, group = drawn_groups()
    clean, order = of(scores, group), torch.from_numpy(np.random.default_rng(4).permutation(40))
    torch.testing.assert_close(of(scores[order], group[order]), clean[order], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(of(scores, 100 - 13 * group), clean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(of(scores - 1000.0, group), clean, rtol=1e-9, atol=1e-11)
    if kind != "batch":  # nor does a constant of each group's own
        torch.testing.assert_close(of(scores + 10 * group, group), clean, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("value", [0.7, -1.3, 0.1, 123.456, 1e6])
def test_equal_scores_teach_nothing_at_all_in_float32(value: float) -> None:
    """Seven times 0.7 over seven is not 0.7: what rounding leaves would be divided by eps, or by Adam."""
    scores, group = torch.full((7,), value), torch.zeros(7, dtype=torch.long)
    zeros = [0.0] * 7
    assert leave_one_out(scores, group).tolist() == zeros
    assert group_advantages(scores, group).tolist() == zeros
    assert group_advantages(scores, group, scale="batch").tolist() == zeros


def test_one_completion_in_all_has_no_advantage() -> None:
    one, its = torch.tensor([3.0]), torch.tensor([0])
    assert group_advantages(one, its).tolist() == [0.0]
    assert group_advantages(one, its, scale="batch").tolist() == [0.0]


def test_advantages_of_groups_carry_no_gradient_and_shapes_are_checked() -> None:
    scores = SCORES.clone().requires_grad_()
    assert not group_advantages(scores, GROUP).requires_grad
    assert not leave_one_out(scores[:3], torch.zeros(3, dtype=torch.long)).requires_grad
    for function in (group_advantages, leave_one_out):
        with pytest.raises(ValueError, match="shapes differ"):
            function(SCORES, GROUP[:5])


def test_overlong_completions_by_hand() -> None:
    # DAPO's own setting: at most 20,480 tokens, the last 4,096 of which cost
    lengths = torch.tensor([1, 16383, 16384, 16385, 17408, 18432, 19456, 20479, 20480, 25000])
    ours = overlong_penalty(lengths, longest=20480, buffer=4096)
    expected = [0.0, 0.0, 0.0, -1 / 4096, -0.25, -0.5, -0.75, -4095 / 4096, -1.0, -1.0]
    assert ours.tolist() == expected  # powers of two: exact
    assert ours.dtype == torch.float32
    assert overlong_penalty(torch.tensor([0, 1, 2, 4]), longest=4, buffer=4).tolist() == [
        0.0,
        -0.25,
        -0.5,
        -1.0,
    ]
    for buffer in (0, 5, -1):
        with pytest.raises(ValueError, match=f"buffer of {buffer} tokens is not within 1 to 4"):
            overlong_penalty(lengths, longest=4, buffer=buffer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_scores_that_differ_by_rounding_alone_are_equal(dtype: torch.dtype, scale: Any) -> None:
    """One text sampled twice: its scores differ in their last bits, and a difference that says something stays."""
    step = torch.finfo(dtype).eps
    scores = torch.tensor([0.3, 0.3 * (1 + 4 * step), -0.2, -0.2 * (1 + 1000 * step)], dtype=dtype)
    group = torch.tensor([0, 0, 1, 1])
    advantages = group_advantages(scores, group, scale=scale)
    assert advantages[:2].tolist() == [0, 0]
    assert advantages[2] > 0 > advantages[3]
