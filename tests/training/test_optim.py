"""Schedules against tables by hand and torch's schedulers; optimisers against their papers' formulas in numpy."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from plaudit.config import parse
from plaudit.training import checkpoint
from plaudit.training.optim import (
    OPTIMIZERS,
    OWN,
    SCHEDULES,
    OptimizerConfig,
    ScheduleName,
    add_l1,
    make_optimizer,
    matrices,
    scheduled,
    take_step,
)
from plaudit.types import UserError

THEIRS = {
    "adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "adam_tf": torch.optim.Adam, "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop, "adadelta": torch.optim.Adadelta,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "end", "table"),
    [
        ("constant", 0.0, [0.5, 1, 1, 1, 1, 1]),
        ("linear", 0.0, [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("linear", 0.2, [0.5, 1, 1, 0.8, 0.6, 0.4]),
        ("cosine", 0.0, [0.5, 1, 1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4]),
        ("cosine", 0.5, [0.5, 1, 1, (6 + math.sqrt(2)) / 8, 0.75, (6 - math.sqrt(2)) / 8]),
        ("exponential", 1e-4, [0.5, 1, 1, 0.1, 0.01, 0.001]),
    ],
)
def test_schedules_by_hand(name: ScheduleName, end: float, table: list[float]) -> None:
    """Golden: six steps, two of them to warm up; quarters of the way from 1 to `end`."""
    found = [scheduled(name, step, 6, warmup=2, end=end) for step in range(6)]
    assert found == pytest.approx(table, rel=1e-12)


@pytest.mark.parametrize(("warmup", "end"), [(0, 0.01), (5, 0.3), (1, 1.0)])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_torchs_own(name: ScheduleName, warmup: int, end: float) -> None:
    """Golden: torch.optim.lr_scheduler, the warm-up's LinearLR and then each schedule's own."""
    total = 40
    s = torch.optim.lr_scheduler
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    span = total - warmup
    make: dict[str, Callable[[], Any]] = {
        "constant": lambda: s.ConstantLR(optimizer, factor=1.0, total_iters=1),
        "linear": lambda: s.LinearLR(optimizer, start_factor=1.0, end_factor=end, total_iters=span),
        "cosine": lambda: s.CosineAnnealingLR(optimizer, T_max=span, eta_min=end),
        "exponential": lambda: s.ExponentialLR(optimizer, gamma=end ** (1 / span)),
    }
    theirs = []
    if warmup > 1:
        up = s.LinearLR(optimizer, start_factor=1 / warmup, end_factor=1.0, total_iters=warmup - 1)
    for step in range(warmup):
        theirs.append(optimizer.param_groups[0]["lr"])
        if step < warmup - 1:
            optimizer.step()
            up.step()
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    down = make[name]()
    for _ in range(span):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        down.step()
    ours = [scheduled(name, step, total, warmup=warmup, end=end) for step in range(total)]
    assert ours == pytest.approx(theirs, rel=1e-10)


def test_a_run_that_is_all_warm_up_never_divides_by_nothing() -> None:
    assert [scheduled("cosine", step, 3, warmup=3) for step in range(3)] == pytest.approx([1 / 3, 2 / 3, 1])


def test_tensorflows_epsilon_by_hand() -> None:
    """Golden: a constant gradient of eps, rate 1. torch's Adam moves by g / (g + eps) = 1/2 each step; TensorFlow's
    epsilon hat by a / (a + 1) with a = sqrt(1 - beta2^t): sqrt(0.001) and sqrt(0.001999)."""
    moved: dict[str, list[float]] = {}
    for name in ("adam", "adam_tf"):
        p = nn.Parameter(torch.zeros(1, 1, dtype=torch.float64))
        optimizer = make_optimizer(
            OptimizerConfig.model_validate({"name": name, "eps": 1e-5}), [p], learning_rate=1.0
        )
        moved[name] = []
        for _ in range(2):
            old = float(p.detach())
            p.grad = torch.full_like(p, 1e-5)
            optimizer.step()
            moved[name].append(old - float(p.detach()))
    assert moved["adam"] == pytest.approx([0.5, 0.5], rel=1e-9)
    assert moved["adam_tf"] == pytest.approx([0.03065343003171551, 0.04279672847243271], rel=1e-9)


State = dict[str, Any]


def _adam(decoupled: bool, hat: bool) -> Callable[..., np.ndarray]:
    """Kingma and Ba 2015, algorithm 1 (hat: the note at the end of section 2); Loshchilov and Hutter 2019, alg. 2."""

    def step(w: np.ndarray, g: np.ndarray, s: State, *, rate: float, decay: float, **o: float) -> np.ndarray:
        s["t"] = t = s.get("t", 0) + 1
        g = g if decoupled else g + decay * w
        s["m"] = o["beta1"] * s.get("m", 0 * w) + (1 - o["beta1"]) * g
        s["v"] = o["beta2"] * s.get("v", 0 * w) + (1 - o["beta2"]) * g * g
        one, two = 1 - o["beta1"] ** t, 1 - o["beta2"] ** t
        if hat:
            moved = math.sqrt(two) / one * s["m"] / (np.sqrt(s["v"]) + o["eps"])
        else:
            moved = (s["m"] / one) / (np.sqrt(s["v"] / two) + o["eps"])
        return np.asarray(w - rate * moved - (rate * decay * w if decoupled else 0))

    return step


def _sgd(w: np.ndarray, g: np.ndarray, s: State, *, rate: float, decay: float, **o: float) -> np.ndarray:
    """Polyak's momentum in torch's form: velocity without the rate."""
    s["u"] = o["momentum"] * s.get("u", 0 * w) + g + decay * w
    return np.asarray(w - rate * s["u"])


def _rmsprop(w: np.ndarray, g: np.ndarray, s: State, *, rate: float, decay: float, **o: float) -> np.ndarray:
    """Tieleman and Hinton 2012, lecture 6e."""
    g = g + decay * w
    s["v"] = o["beta2"] * s.get("v", 0 * w) + (1 - o["beta2"]) * g * g
    s["u"] = o["momentum"] * s.get("u", 0 * w) + g / (np.sqrt(s["v"]) + o["eps"])
    return np.asarray(w - rate * s["u"])


def _adadelta(w: np.ndarray, g: np.ndarray, s: State, *, rate: float, decay: float, **o: float) -> np.ndarray:
    """Zeiler 2012, algorithm 1."""
    g = g + decay * w
    s["v"] = o["beta2"] * s.get("v", 0 * w) + (1 - o["beta2"]) * g * g
    moved = np.sqrt(s.get("d", 0 * w) + o["eps"]) / np.sqrt(s["v"] + o["eps"]) * g
    s["d"] = o["beta2"] * s.get("d", 0 * w) + (1 - o["beta2"]) * moved * moved
    return np.asarray(w - rate * moved)


FORMULAS: dict[str, Callable[..., np.ndarray]] = {
    "adamw": _adam(True, False), "adam": _adam(False, False), "adam_tf": _adam(False, True),
    "sgd": _sgd, "rmsprop": _rmsprop, "adadelta": _adadelta,
}  # fmt: skip
GIVEN = {"beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "momentum": 0.7}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("given", [True, False])
def test_optimisers_do_what_their_papers_say(name: str, given: bool) -> None:
    """Golden: three steps in numpy; matrices decay, vectors do not; the second step has another rate."""
    own = {key: GIVEN[key] for key in OWN[name]} if given else {}
    start = np.array([[0.5, -1.0, 2.0], [0.1, 0.0, -0.3]])
    pull = [np.array([[0.2, -0.1, 3.0], [1.0, 0.5, -2.0]]) * k for k in (1.0, -0.5, 0.25)]
    matrix = nn.Parameter(torch.tensor(start))
    vector = nn.Parameter(torch.tensor(start[0]))
    optimizer = make_optimizer(
        OptimizerConfig.model_validate({"name": name, **own}),
        [vector, matrix],
        learning_rate=9.0,
        weight_decay=0.1,
    )
    w, v, of_w, of_v = start, start[0], State(), State()
    for g, rate in zip(pull, (0.1, 0.05, 0.1), strict=True):
        matrix.grad, vector.grad = torch.tensor(g), torch.tensor(g[0])
        norm = take_step(optimizer, [matrix, vector], learning_rate=rate, max_grad_norm=1e9)
        assert norm == pytest.approx(math.sqrt((g**2).sum() + (g[0] ** 2).sum()))
        settings = OWN[name] | own
        w = FORMULAS[name](w, g, of_w, rate=rate, decay=0.1, **settings)
        v = FORMULAS[name](v, g[0], of_v, rate=rate, decay=0.0, **settings)
        np.testing.assert_allclose(matrix.detach().numpy(), w, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(vector.detach().numpy(), v, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_settings_are_those_that_torchs_users_expect(name: str) -> None:
    theirs = {k: p.default for k, p in inspect.signature(THEIRS[name]).parameters.items()}
    expected = {"eps": theirs.get("eps"), "momentum": theirs.get("momentum")}
    expected["beta1"], expected["beta2"] = theirs.get("betas", (None, theirs.get("alpha", theirs.get("rho"))))
    assert OWN[name] == {key: expected[key] for key in OWN[name]}
    assert all(value is None or key in OWN[name] for key, value in expected.items())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_put_back_is_state_never_lost(name: str) -> None:
    def steps(first: int, last: int, p: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        for number in range(first, last):
            p.grad = torch.linspace(-1, 1, 6, dtype=p.dtype).reshape(2, 3) * (number + 1)
            take_step(optimizer, [p], learning_rate=0.1, max_grad_norm=1.0)

    def make() -> tuple[nn.Parameter, torch.optim.Optimizer]:
        p = nn.Parameter(torch.ones(2, 3))
        return p, make_optimizer(OptimizerConfig.model_validate({"name": name}), [p], learning_rate=0.1)

    whole, unbroken = make()
    steps(0, 4, whole, unbroken)
    begun, first = make()
    steps(0, 2, begun, first)
    later, second = make()
    with torch.no_grad():
        later.copy_(begun)
    checkpoint.load_optimizer(second, checkpoint.optimizer_tensors(first))
    steps(2, 4, later, second)
    assert torch.equal(later, whole)


def test_l1_by_hand() -> None:
    """Golden: 0.1 * sign, nothing at 0, nothing for vectors nor where there is no gradient; |2| + |-3| + |1| = 6."""
    matrix = nn.Parameter(torch.tensor([[2.0, -3.0], [0.0, 1.0]]))
    vector, idle = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, 2))
    matrix.grad, vector.grad = torch.full((2, 2), 0.5), torch.full((2,), 0.5)
    assert add_l1([matrix, vector, idle], 0.1) == 6
    assert torch.allclose(matrix.grad, torch.tensor([[0.6, 0.4], [0.5, 0.6]]))
    assert torch.equal(vector.grad, torch.full((2,), 0.5))
    assert idle.grad is None
    assert matrices([matrix, vector]) == [matrix]


def test_clipping_by_hand() -> None:
    """Golden: the gradient (3, 4) has norm 5; clipped to 1 it is (0.6, 0.8)."""
    p = nn.Parameter(torch.zeros(1, 2, dtype=torch.float64))
    optimizer = make_optimizer(OptimizerConfig(name="sgd"), [p], learning_rate=1.0)
    p.grad = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    assert take_step(optimizer, [p], learning_rate=1.0, max_grad_norm=1.0) == 5
    assert p.tolist()[0] == pytest.approx([-0.6, -0.8], rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"name": "adamw", "momentum": 0.9}, "adamw has no momentum; it has beta1, beta2, eps"),
        ({"name": "sgd", "beta1": 0.9}, "sgd has no beta1; it has momentum"),
        (
            {"name": "lion"},
            "name: input should be 'adamw', 'adam', 'adam_tf', 'sgd', 'rmsprop' or 'adadelta'",
        ),
        ({"beta2": 1.0}, "beta2: input should be less than 1, not 1.0"),
    ],
)
def test_what_an_optimiser_does_not_have_is_refused(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        parse(OptimizerConfig, settings, "sft.yaml")
