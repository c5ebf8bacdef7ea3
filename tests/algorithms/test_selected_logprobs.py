# mypy: disable-error-code="no-untyped-call"
"""The chunked output layer against torch's dense log-softmax, by gradcheck, and for what it keeps in memory."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from plaudit.algorithms import logprobs as logprobs_module
from plaudit.algorithms.logprobs import selected_logprobs


def layer(n: int, d: int = 6, vocab: int = 11, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """hidden [n, d], weight [V, d], bias [V], targets [n]"""
    generator = torch.Generator().manual_seed(100 + n)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    return draw(n, d), draw(vocab, d), draw(vocab), torch.randint(vocab, (n,), generator=generator)


def dense(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float) -> Any:
    """torch's own: the whole [n, V] at once."""
    logits = torch.nn.functional.linear(hidden, weight, bias) / temperature
    choice = torch.distributions.Categorical(logits=logits)
    return choice.log_prob(targets), choice.entropy()


@pytest.mark.parametrize("trained", ["hidden", "weight", "hidden weight", "hidden weight bias", "bias"])
def test_gradcheck(trained: str) -> None:
    hidden, weight, bias, targets = layer(7)
    inputs = {"hidden": hidden, "weight": weight, "bias": bias}
    for name in trained.split():
        inputs[name].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda h, w, b: selected_logprobs(h, w, targets, temperature=0.7, chunk=3, bias=b)[0],
        (hidden, weight, bias),
    )
    assert torch.autograd.gradcheck(
        lambda h, w, b: selected_logprobs(
            h, w, targets, temperature=0.7, chunk=3, bias=b, entropy_gradient=True
        ),
        (hidden, weight, bias),
    )


@pytest.mark.parametrize("n", [1, 4, 8, 9, 11])  # less than, exactly, twice, and not a multiple of a chunk
@pytest.mark.parametrize("temperature", [1.0, 0.5, 1.7])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("train_weight", [False, True])
def test_values_and_gradients_are_the_dense_ones(
    n: int, temperature: float, with_bias: bool, train_weight: bool
) -> None:
    hidden, weight, bias, targets = layer(n)
    hidden.requires_grad_()
    weight.requires_grad_(train_weight)
    given = bias if with_bias else None
    ours, entropy = selected_logprobs(hidden, weight, targets, temperature=temperature, chunk=4, bias=given)
    theirs, their_entropy = dense(hidden, weight, given, targets, temperature)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(entropy, their_entropy.detach(), rtol=1e-12, atol=1e-13)
    both = selected_logprobs(
        hidden, weight, targets, temperature=temperature, chunk=4, bias=given, entropy_gradient=True
    )
    learned = [hidden, weight] if train_weight else [hidden]
    up, other = torch.linspace(-1, 2, n, dtype=torch.float64), torch.linspace(3, -1, n, dtype=torch.float64)
    for outputs, expected, upstream in (
        ((ours,), (theirs,), (up,)),
        (both, (theirs, their_entropy), (up, other)),
    ):
        for mine, their in zip(
            torch.autograd.grad(outputs, learned, upstream),
            torch.autograd.grad(expected, learned, upstream, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(mine, their, rtol=1e-11, atol=1e-13)


def test_one_token_by_hand() -> None:
    # logits 0 and ln 3 over temperature 1: probabilities 1/4, 3/4; at temperature 0.5: 0 and ln 9: 1/10, 9/10
    hidden = torch.tensor([[1.0]], dtype=torch.float64)
    weight = torch.tensor([[0.0], [math.log(3.0)]], dtype=torch.float64)
    first = torch.tensor([0])
    logprob, entropy = selected_logprobs(hidden, weight, first)
    assert logprob.item() == pytest.approx(math.log(0.25), abs=1e-14)
    assert entropy.item() == pytest.approx(0.5623351446188083, abs=1e-14)  # of 1:3
    assert selected_logprobs(hidden, weight, first, temperature=0.5)[0].item() == pytest.approx(math.log(0.1))


@pytest.mark.parametrize("train_weight", [False, True])
def test_the_size_of_a_chunk_changes_nothing(train_weight: bool) -> None:
    results = []
    for chunk in (1, 5, 13, 512):
        hidden, weight, _, targets = layer(13)
        hidden.requires_grad_()
        weight.requires_grad_(train_weight)
        logprobs, entropy = selected_logprobs(hidden, weight, targets, chunk=chunk)
        (grad,) = torch.autograd.grad(logprobs.sum(), hidden)
        results.append((logprobs.detach(), entropy, grad))
    for other in results[1:]:
        for mine, their in zip(results[0], other, strict=True):
            torch.testing.assert_close(mine, their, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("train_weight", [False, True])
def test_no_tokens(train_weight: bool) -> None:
    hidden, weight, _, targets = layer(0)
    hidden.requires_grad_()
    weight.requires_grad_(train_weight)
    logprobs, entropy = selected_logprobs(hidden, weight, targets)
    assert logprobs.shape == entropy.shape == (0,)
    logprobs.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.shape == (0, 6)
    if train_weight:
        assert weight.grad is not None
        assert torch.count_nonzero(weight.grad) == 0


def test_tied_weights_get_both_gradients() -> None:
    """The embedding that made the hidden states is the output layer, too."""
    _, weight, _, targets = layer(9)
    tokens = torch.arange(9) % 11
    grads = []
    for function in (
        lambda h, w: selected_logprobs(h, w, targets, chunk=4)[0],
        lambda h, w: dense(h, w, None, targets, 1.0)[0],
    ):
        table = weight.clone().requires_grad_()
        function(torch.tanh(table[tokens]), table).sum().backward()
        assert table.grad is not None
        grads.append(table.grad)
    torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("train_weight", [False, True])
def test_float32(train_weight: bool) -> None:
    hidden, weight, _, targets = layer(40, d=64, vocab=500, dtype=torch.float32)
    hidden.requires_grad_()
    weight.requires_grad_(train_weight)
    ours, entropy = selected_logprobs(hidden, weight, targets, chunk=16)
    exact_hidden = hidden.detach().double().requires_grad_()
    exact, exact_entropy = dense(exact_hidden, weight.detach().double(), None, targets, 1.0)
    assert ours.dtype == entropy.dtype == torch.float32
    # logits of about 8 with 64 terms: a few float32 steps at 30 (2e-6 each)
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=2e-5)
    torch.testing.assert_close(entropy.double(), exact_entropy, rtol=0, atol=2e-5)
    (grad,) = torch.autograd.grad(ours.sum(), hidden)
    (exact_grad,) = torch.autograd.grad(exact.sum(), exact_hidden)
    torch.testing.assert_close(grad.double(), exact_grad, rtol=0, atol=2e-5)


@pytest.mark.parametrize("train_weight", [False, True])
def test_bfloat16_does_not_round_the_targets_logit(train_weight: bool) -> None:
    """Likely tokens with logits of about 20, where bfloat16 steps are 0.125."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(300, 64, generator=generator).bfloat16().requires_grad_(train_weight)
    targets = torch.arange(0, 300, 10)
    spread = torch.linspace(0.1, 0.5, len(targets)).unsqueeze(1)
    hidden = (weight.detach()[targets].float() * spread).bfloat16().requires_grad_()
    ours, _ = selected_logprobs(hidden, weight, targets, chunk=8)
    exact_hidden = hidden.detach().double().requires_grad_()
    exact, _ = dense(exact_hidden, weight.detach().double(), None, targets, 1.0)
    plain = torch.log_softmax((hidden @ weight.T).float(), -1).gather(1, targets.unsqueeze(1)).squeeze(1)
    assert ours.dtype == torch.float32
    assert ours.max().item() <= 0.0
    error, plain_error = (ours.double() - exact).abs(), (plain.double() - exact).abs()
    assert error.max().item() < 0.012  # what the other logits' rounding leaves
    assert error.max().item() < plain_error.max().item() / 2
    (grad,) = torch.autograd.grad(ours.sum(), hidden)
    (exact_grad,) = torch.autograd.grad(exact.sum(), exact_hidden)
    assert grad.dtype == torch.bfloat16
    scale = exact_grad.norm(dim=1).max()
    assert (grad.double() - exact_grad).norm(dim=1).max().item() < 0.02 * scale.item()


@pytest.mark.parametrize("train_weight", [False, True])
def test_float32_states_on_a_bfloat16_layer(train_weight: bool) -> None:
    """The products are bfloat16's; what is asked of the target and what comes back is float32."""
    hidden, weight, bias, targets = layer(20, d=64, vocab=300, dtype=torch.float32)
    hidden = (hidden / 8).requires_grad_()  # logits of about 1, where bfloat16 steps are 0.008
    weight, bias = weight.bfloat16().requires_grad_(train_weight), bias.bfloat16()
    ours, entropy = selected_logprobs(hidden, weight, targets, chunk=8, bias=bias, entropy_gradient=True)
    exact_hidden = hidden.detach().double().requires_grad_()
    exact_weight = weight.detach().double().requires_grad_()
    exact, exact_entropy = dense(exact_hidden, exact_weight, bias.double(), targets, 1.0)
    assert ours.dtype == entropy.dtype == torch.float32
    # 300 logits with independent errors of up to 0.008 average out in the sum over words
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=2e-3)
    torch.testing.assert_close(entropy.double(), exact_entropy, rtol=0, atol=4e-3)
    learned = [(hidden, exact_hidden), (weight, exact_weight)][: 2 if train_weight else 1]
    for mine, their in zip(
        torch.autograd.grad(entropy.sum(), [x for x, _ in learned], retain_graph=True),
        torch.autograd.grad(exact_entropy.sum(), [x for _, x in learned], retain_graph=True),
        strict=True,
    ):
        assert (mine.double() - their).norm().item() < 0.02 * their.norm().item()
    ours.sum().backward()
    exact.sum().backward()
    for mine, their in learned:
        assert mine.grad is not None
        assert their.grad is not None
        assert mine.grad.dtype == mine.dtype
        assert (mine.grad.double() - their.grad).norm().item() < 0.01 * their.grad.norm().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_log_probability_is_above_zero(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = (3 * torch.randn(50, 32, generator=generator)).to(dtype)
    logprobs, entropy = selected_logprobs(weight.clone(), weight, torch.arange(50))
    assert logprobs.max().item() <= 0.0
    assert entropy.min().item() >= -1e-6


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("train_weight", [False, True])
def test_logits_of_all_tokens_never_exist(train_weight: bool) -> None:
    n, d, vocab, chunk = 256, 8, 1000, 16
    hidden, weight, _, targets = layer(n, d=d, vocab=vocab, dtype=torch.float32)
    hidden.requires_grad_()
    weight.requires_grad_(train_weight)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), LargestTensor() as largest:
        logprobs, _ = selected_logprobs(hidden, weight, targets, chunk=chunk)
        logprobs.sum().backward()
    assert largest.elements == chunk * vocab  # 16,000 of the 256,000 that a dense layer makes
    assert max(kept) == (vocab * d if train_weight else n * d)  # the weights themselves, or the slope alone


def test_without_gradients_nothing_is_kept() -> None:
    hidden, weight, _, targets = layer(5)
    hidden.requires_grad_()
    with torch.no_grad():
        logprobs, entropy = selected_logprobs(hidden, weight, targets)
    assert not logprobs.requires_grad
    assert not entropy.requires_grad
    logprobs, entropy = selected_logprobs(hidden, weight, targets)
    assert logprobs.requires_grad
    assert not entropy.requires_grad


def test_frozen_weights_are_not_multiplied_again_in_the_backward_pass() -> None:
    hidden, weight, _, targets = layer(32, d=4, vocab=100, dtype=torch.float32)
    logprobs, _ = selected_logprobs(hidden.requires_grad_(), weight, targets, chunk=8)
    with LargestTensor() as largest:
        logprobs.sum().backward()
    assert largest.elements == 32 * 4


def test_what_does_not_fit_is_refused() -> None:
    hidden, weight, bias, targets = layer(4)
    for bad in (
        lambda: selected_logprobs(hidden.unsqueeze(0), weight, targets),
        lambda: selected_logprobs(hidden, weight[:, :3], targets),
        lambda: selected_logprobs(hidden, weight, targets[:3]),
        lambda: selected_logprobs(hidden, weight, targets, bias=bias[:3]),
        lambda: selected_logprobs(hidden.float(), weight, targets),
        lambda: selected_logprobs(hidden, weight, targets, bias=bias.float()),
        lambda: selected_logprobs(hidden, weight, targets, temperature=0.0),
        lambda: selected_logprobs(hidden, weight, targets, chunk=0),
    ):
        with pytest.raises(ValueError, match=r"are not|do not fit|wider than|bias is|must be"):
            bad()


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_trained_float32_weights_with_bfloat16_products(
    kept: bool, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a trunk is trained whole: with the probabilities kept for the backward pass, or made again."""
    if not kept:
        monkeypatch.setattr(logprobs_module, "KEPT", 0)
    hidden, weight, _, targets = layer(20, d=64, vocab=300, dtype=torch.float32)
    hidden = (hidden / 8).requires_grad_()
    weight.requires_grad_()
    exact_hidden, exact_weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    ours, _ = selected_logprobs(
        hidden, weight, targets, chunk=8, temperature=temperature, products=torch.bfloat16, entropy=False
    )
    exact, _ = dense(exact_hidden, exact_weight, None, targets, temperature)
    torch.testing.assert_close(
        ours.double(), exact, rtol=0, atol=6e-3
    )  # a rounded weight in the target's logit
    up = torch.linspace(-1, 2, 20, dtype=torch.float64)
    for mine, their in zip(
        torch.autograd.grad(ours, [hidden, weight], up.float()),
        torch.autograd.grad(exact, [exact_hidden, exact_weight], up),
        strict=True,
    ):
        assert mine.dtype == torch.float32
        assert (mine.double() - their).norm().item() < 0.005 * their.norm().item()


def test_a_likely_token_in_bfloat16_has_a_slope_of_its_own() -> None:
    """At a probability of 0.9995 all but 0.0005 of the slope cancels; rounded to 8 bits nothing of it would be left."""
    weight = torch.tensor([[7.6], [0.0]]).requires_grad_()
    hidden = torch.ones(1, 1).requires_grad_()
    ours, _ = selected_logprobs(hidden, weight, torch.tensor([0]), products=torch.bfloat16)
    slopes = torch.autograd.grad(ours.sum(), [hidden, weight])
    miss = 1 / (1 + math.exp(7.59375))  # 7.6 in bfloat16
    for mine, their in zip(slopes, (7.59375 * miss, miss), strict=True):
        assert mine.flatten()[0].item() == pytest.approx(their, rel=0.005)


def test_an_entropy_that_nobody_asked_for_is_no_number() -> None:
    hidden, weight, _, targets = layer(5)
    asked, entropy = selected_logprobs(hidden, weight, targets)
    plain, nothing = selected_logprobs(hidden, weight, targets, entropy=False)
    assert torch.equal(asked, plain)
    assert bool(entropy.isfinite().all())
    assert bool(nothing.isnan().all())
