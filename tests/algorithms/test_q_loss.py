# mypy: disable-error-code="no-untyped-call"
"""Action values: targets and losses by hand, slopes by finite differences, and fixed points that are known exactly.

The chain and the bandit are solved by numpy (dynamic programming; an expectile by bisection), and gradient descent on
the losses must end there.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from plaudit.algorithms.q_loss import (
    TARGETS,
    Linear,
    Worth,
    action_logprobs,
    action_values,
    awac_loss,
    best_values,
    cql_loss,
    expectile_loss,
    q_loss,
    steered_logprobs,
    td_targets,
)

NAN = math.nan


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def bits(*rows: str) -> Tensor:
    return torch.tensor([[c == "1" for c in r] for r in rows])


# -- targets -----------------------------------------------------------------------------------------------------

WORTH = Worth(value=row(1.0, 2.0, 4.0), best=row(10.0, 20.0, 40.0), taken=row(-1.0, -2.0, -4.0))


@pytest.mark.parametrize(
    ("kind", "expected"),
    # rewards 0.5, 0, 3; gamma 0.5: 0.5 + half of the second's worth, half of the third's, 3 + nothing
    [("ilql", (1.5, 2.0, 3.0)), ("q_learning", (10.5, 20.0, 3.0)), ("sarsa", (-0.5, -2.0, 3.0))],
)
def test_targets_by_hand(kind: str, expected: tuple[float, ...]) -> None:
    found = td_targets(kind, row(0.5, 0.0, 3.0), WORTH, bits("111"), gamma=0.5)
    assert found[0].tolist() == list(expected)


@pytest.mark.parametrize("kind", TARGETS)
def test_holes_are_skipped_and_never_read(kind: str) -> None:
    """The chain of three with an observation between its first and second token, padding after: the same numbers."""
    mask = bits("101100")

    def widened(x: Tensor) -> Tensor:
        return torch.full((1, 6), NAN, dtype=torch.float64).masked_scatter(mask, x)

    rewards = row(0.5, 0.0, 3.0)
    plain = td_targets(kind, rewards, WORTH, bits("111"), gamma=0.5)
    found = td_targets(kind, widened(rewards), Worth(*map(widened, WORTH)), mask, gamma=0.5)
    assert found[mask].tolist() == plain[0].tolist()
    assert found[~mask].tolist() == [0.0] * 3


def test_targets_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        td_targets("ilql", row(1.0, 2.0), WORTH, bits("111"), gamma=1.0)
    with pytest.raises(KeyError):
        td_targets("dqn", row(0.5, 0.0, 3.0), WORTH, bits("111"), gamma=1.0)


# -- losses by hand -----------------------------------------------------------------------------------------------


def test_q_loss_by_hand() -> None:
    # (1 - 3)^2 + (2 - 1)^2 = 5, over 4 tokens; slopes 2 (q - target) / 4
    q = row(1.0, 2.0).requires_grad_()
    loss, metrics = q_loss(q, row(3.0, 1.0), bits("11"), total=4)
    loss.backward()
    assert loss.item() == 1.25
    assert q.grad is not None
    assert q.grad[0].tolist() == [-1.0, 0.5]
    assert metrics["q"].item() == 0.75


def test_expectile_loss_by_hand() -> None:
    # gaps 2 (above: weight 0.8) and -1 (below: 0.2): 3.2 + 0.2 = 3.4 over 4; slopes -2 w gap / 4
    v = row(1.0, 2.0).requires_grad_()
    loss, metrics = expectile_loss(v, row(3.0, 1.0), bits("11"), expectile=0.8, total=4)
    loss.backward()
    assert loss.item() == pytest.approx(0.85, abs=1e-15)
    assert v.grad is not None
    assert v.grad[0].tolist() == pytest.approx([-0.8, 0.1], abs=1e-15)
    assert metrics["value"].item() == 0.75
    assert metrics["advantage"].item() == 0.25


@pytest.mark.parametrize("expectile", [0.0, 1.0, -0.1, NAN])
def test_an_expectile_beyond_its_range_is_refused(expectile: float) -> None:
    with pytest.raises(ValueError, match="not within 0 to 1"):
        expectile_loss(row(1.0), row(1.0), bits("1"), expectile=expectile, total=1)


def test_awac_by_hand() -> None:
    # weights exp(0.5 * 2 ln 2) = 2, exp(0.5 * 2 ln 300) = 300 -> 100, over 4: -(2 * -1 + 100 * -0.5) / 4 = 13
    logprobs = row(-1.0, -0.5).requires_grad_()
    advantages = row(2 * math.log(2), 2 * math.log(300)).requires_grad_()
    loss, metrics = awac_loss(logprobs, advantages, bits("11"), beta=0.5, total=4)
    loss.backward()
    assert loss.item() == pytest.approx(13.0, rel=1e-14)
    assert logprobs.grad is not None
    assert logprobs.grad[0].tolist() == pytest.approx([-0.5, -25.0], rel=1e-14)
    assert advantages.grad is None
    assert metrics["nll"].item() == pytest.approx(1.5 / 4)
    assert metrics["weight"].item() == pytest.approx(102 / 4)
    plain = awac_loss(logprobs, advantages, bits("11"), beta=0.0, total=4)
    assert plain.loss.item() == plain.metrics["nll"].item()


def test_cql_is_the_log_sum_above_the_taken() -> None:
    # Q = 0, ln 2, ln 5 of three words: log-sum ln 8; the second was taken: ln 8 - ln 2 = ln 4
    head = Linear(row(1.0), row(0.0, math.log(2), math.log(5)).T, row(0, 0, 0)[0])
    taken = torch.tensor([1])
    assert action_values(head, taken).item() == pytest.approx(math.log(2), rel=1e-15)
    loss, metrics = cql_loss(action_logprobs(head, taken)[None], bits("1"), total=1)
    assert loss.item() == metrics["cql"].item() == pytest.approx(math.log(4), rel=1e-14)


def test_steering_by_hand() -> None:
    # behaviour 1/2, 1/4, 1/4; beta 2, advantages 0, ln 2 / 2, ln 3 / 2: 1/2, 2/4, 3/4 of 7/4
    logits = row(0.5, 0.25, 0.25)[0].log() + 3.0
    advantages = row(0.0, math.log(2) / 2, math.log(3) / 2)[0]
    found = steered_logprobs(logits, advantages, beta=2.0).exp().tolist()
    assert found == pytest.approx([2 / 7, 2 / 7, 3 / 7], rel=1e-14)
    moved = steered_logprobs(logits, advantages - 5.0, beta=2.0).exp().tolist()
    assert moved == pytest.approx(found, rel=1e-13)  # V, the same for all actions, cancels
    assert steered_logprobs(logits, advantages, beta=0.0).exp().tolist() == pytest.approx([0.5, 0.25, 0.25])


# -- heads --------------------------------------------------------------------------------------------------------


def random_heads(count: int = 7, width: int = 5, vocab: int = 11) -> tuple[list[Linear], Tensor]:
    generator = torch.Generator().manual_seed(2)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    features = normal(count, width)
    actions = torch.randint(vocab, (count,), generator=generator)
    return [Linear(features, normal(vocab, width), normal(vocab)) for _ in range(2)], actions


@pytest.mark.parametrize("chunk", [1, 3, 512])
def test_heads_say_what_dense_tables_say(chunk: int) -> None:
    heads, actions = random_heads()
    tables = [h.features.numpy() @ h.weight.numpy().T + h.bias.numpy() for h in heads]
    best = np.minimum(*tables).max(1)
    np.testing.assert_allclose(best_values(heads, chunk=chunk).numpy(), best, rtol=1e-14)
    chosen = tables[0][np.arange(7), actions.numpy()]
    np.testing.assert_allclose(action_values(heads[0], actions).numpy(), chosen, rtol=1e-13)
    normaliser = np.log(np.exp(tables[0]).sum(1))
    np.testing.assert_allclose(
        action_logprobs(heads[0], actions, chunk=chunk).numpy(), chosen - normaliser, rtol=1e-12
    )


def test_no_state_has_no_best_and_no_head_is_refused() -> None:
    heads, _ = random_heads()
    assert best_values([h._replace(features=h.features[:0]) for h in heads]).shape == (0,)
    with pytest.raises(ValueError, match="no head"):
        best_values([])


def test_slopes_are_those_of_finite_differences() -> None:
    """All losses of one head together, with respect to features, weight and bias; every formula again in numpy."""
    heads, actions = random_heads(count=4)
    features, weight, bias = heads[0]
    targets = np.array([0.3, -1.0, 2.0, 0.1])
    chosen = actions.numpy()

    def by_numpy(f: np.ndarray, w: np.ndarray, b: np.ndarray) -> float:
        table = f @ w.T + b
        q = table[np.arange(4), chosen]
        conservative = np.log(np.exp(table).sum(1)) - q
        gap = targets - f[:, 0]
        expectile = np.where(gap > 0, 0.7, 0.3) * gap**2
        return float(((q - targets) ** 2 + 0.4 * conservative + expectile).sum() / 9)

    leaves = [t.clone().requires_grad_() for t in (features, weight, bias)]
    head, mask = Linear(*leaves), bits("1111")
    aim = torch.from_numpy(targets)[None]
    loss = q_loss(action_values(head, actions)[None], aim, mask, total=9).loss
    loss = loss + 0.4 * cql_loss(action_logprobs(head, actions, chunk=3)[None], mask, total=9).loss
    loss = loss + expectile_loss(leaves[0][:, 0][None], aim, mask, expectile=0.7, total=9).loss
    loss.backward()
    arrays = [t.numpy().copy() for t in (features, weight, bias)]
    assert loss.item() == pytest.approx(by_numpy(*arrays), rel=1e-13)
    for which, leaf in enumerate(leaves):
        assert leaf.grad is not None
        for place in np.ndindex(arrays[which].shape):
            ends = []
            for step in (1e-6, -1e-6):
                moved = [a.copy() for a in arrays]
                moved[which][place] += step
                ends.append(by_numpy(*moved))
            assert float(leaf.grad[place]) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6, abs=1e-8)


# -- known fixed points -------------------------------------------------------------------------------------------

# A chain: states 0, 1, 2; action 0 goes on (from 2: reward 1, the end), action 1 leaves with what the state pays.
# A walk of the log is a row: it goes on to state k and leaves there, or walks through.
PAYS = (0.2, 0.5, 0.4)
GAMMA = 0.9
LOG = [[1]] * 4 + [[0, 1]] * 2 + [[0, 0, 1]] * 3 + [[0, 0, 0]]
STATES, MASK = torch.arange(3).expand(len(LOG), 3), bits(*("111"[: len(w)].ljust(3, "0") for w in LOG))
ACTIONS = torch.tensor([w + [0] * (3 - len(w)) for w in LOG])


def chain_rewards() -> Tensor:
    rewards = torch.zeros(len(LOG), 3, dtype=torch.float64)
    for i, walk in enumerate(LOG):
        rewards[i, len(walk) - 1] = PAYS[len(walk) - 1] if walk[-1] == 1 else 1.0
    return rewards


def learnt(kind: str, expectile: float, steps: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Q [3, 2] and V [3] that gradient descent on the losses ends at; the "slow" heads are the heads themselves."""
    states = torch.eye(3, dtype=torch.float64)[STATES[MASK]]
    weight = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    value = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(2, dtype=torch.float64)
    rewards, taken_actions = chain_rewards(), ACTIONS[MASK]

    def spread(flat: Tensor) -> Tensor:
        return torch.zeros(MASK.shape, dtype=torch.float64).masked_scatter(MASK, flat)

    optimizer = torch.optim.SGD(
        [weight, value], lr=0.09
    )  # at most 10 of a kind in the log: 2 * 10 * 0.09 < 2
    for _ in range(steps):
        head = Linear(states, weight, bias)
        q, v = spread(action_values(head, taken_actions)), spread(states @ value)
        worth = Worth(v.detach(), spread(best_values([head])), q.detach())
        targets = td_targets(kind, rewards, worth, MASK, gamma=GAMMA)
        loss = q_loss(q, targets, MASK, total=1.0).loss
        loss = loss + expectile_loss(v, q.detach(), MASK, expectile=expectile, total=1.0).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return weight.detach().T.numpy(), value.detach().numpy()


def expectile_of(numbers: list[float], tau: float) -> float:
    """Where tau times what lies above is (1 - tau) times what lies below; by bisection."""
    low, high = min(numbers), max(numbers)
    for _ in range(200):
        m = (low + high) / 2
        if sum(tau * (x - m) if x > m else (1 - tau) * (x - m) for x in numbers) > 0:
            low = m
        else:
            high = m
    return (low + high) / 2


def solved(look_ahead: Callable[[list[float]], float]) -> tuple[np.ndarray, list[float]]:
    """Exact Q and the worth of each state, from the last state back; look_ahead: of the logged actions' Q, each as
    often as it was taken there."""
    q, worth, ahead = np.zeros((3, 2)), [0.0] * 3, 0.0
    for state in (2, 1, 0):
        q[state] = (1.0 if state == 2 else GAMMA * ahead, PAYS[state])
        worth[state] = ahead = look_ahead([float(q[state, w[state]]) for w in LOG if len(w) > state])
    return q, worth


def mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def test_sarsa_ends_at_the_values_of_who_wrote_the_log() -> None:
    q, _ = learnt("sarsa", 0.5)
    exact, worth = solved(mean)
    np.testing.assert_allclose(q, exact, atol=1e-8)
    # By hand: at 2 one of four goes through: 0.25 * 1 + 0.75 * 0.4 = 0.55; Q(1, on) = 0.9 * 0.55 = 0.495
    assert worth[2] == pytest.approx(0.55)
    assert q[1, 0] == pytest.approx(0.495, abs=1e-8)


def test_q_learning_ends_at_the_best_values() -> None:
    q, _ = learnt("q_learning", 0.5)
    np.testing.assert_allclose(q, solved(max)[0], atol=1e-8)
    # By hand: through the chain, 0.9 * 1 at state 1, 0.81 at state 0, though one walk in ten goes there
    np.testing.assert_allclose(q[:, 0], [0.81, 0.9, 1.0], atol=1e-8)


@pytest.mark.parametrize("tau", [0.5, 0.7, 0.9])
def test_ilql_ends_at_the_expectiles(tau: float) -> None:
    q, v = learnt("ilql", tau)
    exact, worth = solved(lambda numbers: expectile_of(numbers, tau))
    np.testing.assert_allclose(q, exact, atol=1e-8)
    np.testing.assert_allclose(v, worth, atol=1e-8)


def test_an_expectile_of_a_half_is_sarsas_mean_and_one_near_1_is_the_maximum() -> None:
    np.testing.assert_allclose(learnt("ilql", 0.5)[0], learnt("sarsa", 0.5)[0], atol=1e-8)
    np.testing.assert_allclose(learnt("ilql", 0.9999)[0], solved(max)[0], atol=1e-3)


@pytest.mark.parametrize(("tau", "expected"), [(0.5, 0.25), (0.9, 0.75), (0.999, 333 / 334)])
def test_a_bandits_value_is_its_expectile(tau: float, expected: float) -> None:
    """Arms that pay 1 once and 0 three times: tau (1 - v) = 3 (1 - tau) v, so v = tau / (3 - 2 tau)."""
    payoffs, mask = row(1.0, 0.0, 0.0, 0.0), bits("1111")
    value = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([value], lr=0.5)
    for _ in range(300):
        loss = expectile_loss(value.expand(1, 4), payoffs, mask, expectile=tau, total=4).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert tau / (3 - 2 * tau) == pytest.approx(expected, rel=1e-12)
    assert value.item() == pytest.approx(expected, rel=1e-8)
