# mypy: disable-error-code="no-untyped-call"
"""Parts of a block with a backward pass of their own, beside torch's and by gradcheck."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from plaudit.models.fused import gated, rms_norm, rotate

EPS = 1e-3


def plain_rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def tables() -> tuple[Tensor, Tensor]:
    angle = torch.linspace(0, 9, 20, dtype=torch.float64).view(5, 1, 4).repeat(1, 1, 2)
    return angle.cos(), angle.sin()


CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "rms_norm": (
        lambda x, w: rms_norm(x, w, EPS, x.dtype),
        lambda x, w: F.rms_norm(x, (8,), w, EPS),
        [(2, 5, 8), (8,)],
    ),
    "gated": (gated, lambda gate, up: F.silu(gate) * up, [(2, 5, 8), (2, 5, 8)]),
    "rotate": (
        lambda x: rotate(x, *(t.to(x.dtype) for t in tables())),
        lambda x: plain_rotate(x, *(t.to(x.dtype) for t in tables())),
        [(2, 5, 3, 8)],
    ),
}


def drawn(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in shapes
    ]


@pytest.mark.parametrize("name", CASES)
def test_gradcheck(name: str) -> None:
    function, _, shapes = CASES[name]
    assert torch.autograd.gradcheck(function, drawn(shapes, torch.float64))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6), (torch.bfloat16, 2**-7)], ids=str
)
def test_values_and_gradients_are_torchs_own(name: str, dtype: torch.dtype, tolerance: float) -> None:
    """bfloat16: within the rounding of two of its products, of what torch makes of the same numbers in float64."""
    function, plain, shapes = CASES[name]
    given = drawn(shapes, dtype)
    exact = [x.detach().double().requires_grad_() for x in given]
    ours, theirs = function(*given), plain(*exact)
    assert ours.dtype == dtype
    up = torch.linspace(-1, 2, ours.numel(), dtype=torch.float64).view(ours.shape)
    pairs = [(ours, theirs)]
    pairs += zip(
        torch.autograd.grad(ours, given, up.to(dtype)),
        torch.autograd.grad(theirs, exact, up.to(dtype).double()),
        strict=True,
    )
    for mine, their in pairs:
        assert mine.dtype == dtype
        assert float((mine.detach().double() - their.detach()).norm()) <= tolerance * float(
            their.detach().norm()
        )


def test_a_norm_of_a_float32_stream_in_bfloat16_is_rounded_once() -> None:
    x, weight = drawn([(40, 64), (64,)], torch.float32)
    out = rms_norm(x, weight, EPS, torch.bfloat16)
    exact = F.rms_norm(x.double(), (64,), weight.double(), EPS)
    assert out.dtype == torch.bfloat16
    assert bool(((out.double() - exact).abs() <= 2**-8 * exact.abs()).all())  # half a step of 8 bits
    torch.autograd.backward(out.float().square().sum())
    assert x.grad is not None
    assert weight.grad is not None
    assert x.grad.dtype == weight.grad.dtype == torch.float32
    for mine, their in zip(
        (x.grad, weight.grad), torch.autograd.grad(exact.square().sum(), [x, weight]), strict=True
    ):
        assert float((mine - their).norm()) < 2**-7 * float(their.norm())


@pytest.mark.parametrize("learned", [0, 1])
def test_a_norm_without_one_of_its_gradients(learned: int) -> None:
    given = drawn([(3, 8), (8,)], torch.float64)
    given[1 - learned].requires_grad_(False)
    x, weight = given
    (mine,) = torch.autograd.grad(rms_norm(x, weight, EPS, torch.float64).square().sum(), given[learned])
    (their,) = torch.autograd.grad(F.rms_norm(given[0], (8,), given[1], EPS).square().sum(), given[learned])
    torch.testing.assert_close(mine, their, rtol=1e-12, atol=1e-13)
