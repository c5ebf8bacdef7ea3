"""Sums, means and whitening over what a mask counts. True counts; what it does not count may be anything.

A sum over a micro-batch divided by the whole batch's count adds up, over micro-batches and ranks, to the
whole batch's mean: this is why the losses here ask for `total` and never divide by what they happen to see.
"""

import torch
from torch import Tensor


def check_same_shape(**tensors: Tensor) -> None:
    """Refuse what broadcasting would let through in silence.

    Raises ValueError where two shapes differ, or where the one called `mask` is not boolean.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError("shapes differ: " + ", ".join(f"{name} {shape}" for name, shape in shapes.items()))
    if "mask" in tensors and tensors["mask"].dtype != torch.bool:
        raise ValueError(f"mask is {tensors['mask'].dtype}, not bool (True counts)")


def zero_masked(x: Tensor, mask: Tensor) -> Tensor:
    """x with an exact 0 wherever mask is False, NaN and inf included. Both of one shape; differentiable.

    Done to the inputs of a formula, not to its result: the gradient of `where` stops a NaN on its way back
    only when nothing nonlinear lies between (0 * nan is nan).
    """
    return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))


def masked_sum(x: Tensor, mask: Tensor, *, dim: int | None = None) -> Tensor:
    """Sum of x over the elements that mask counts: all of them (a scalar), or along one dimension.

    x, mask: one shape. Nothing counted gives 0. Raises ValueError where the shapes differ.
    """
    check_same_shape(x=x, mask=mask)
    kept = zero_masked(x, mask)
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(
    x: Tensor, mask: Tensor, *, dim: int | None = None, total: float | Tensor | None = None
) -> Tensor:
    """Mean of x over the elements that mask counts: all of them (a scalar), or along one dimension.

    x, mask: one shape. total: divide by this instead of by the count seen here; give the whole batch's count
    and the results of its micro-batches (or ranks) sum to the whole batch's mean. Nothing counted gives 0.
    Raises ValueError where the shapes differ.
    """
    summed = masked_sum(x, mask, dim=dim)
    if total is not None:
        return summed / total
    count = mask.sum() if dim is None else mask.sum(dim)
    return summed / count.clamp(min=1)


def sequence_mean(x: Tensor, mask: Tensor, *, total: float | Tensor | None = None) -> Tensor:
    """Mean over sequences of each sequence's own mean over its counted elements; a scalar.

    x, mask: [B, T]. A long sequence weighs no more than a short one. total: divide by this instead of by the
    sequences seen here; give the whole batch's count of sequences. A row that counts nothing adds 0.
    Raises ValueError where the shapes differ.
    """
    return masked_mean(x, mask, dim=1).sum() / (mask.shape[0] if total is None else total)


def masked_var(x: Tensor, mask: Tensor) -> Tensor:
    """Population variance (divided by the count, as in tf.nn.moments) over all that mask counts; a scalar.

    x, mask: one shape. Nothing counted gives 0. Raises ValueError where the shapes differ.
    """
    return masked_mean((zero_masked(x, mask) - masked_mean(x, mask)).square(), mask)


def whiten(x: Tensor, mask: Tensor, *, keep_mean: bool, eps: float = 1e-8) -> Tensor:
    """Scale x to standard deviation 1 over all that mask counts, and 0 elsewhere.

    x, mask: [B, T] (any one shape). keep_mean: True for rewards, whose mean says whether to go on or to stop;
    False for advantages, which are centred. Raises ValueError where the shapes differ.

    The moments are those of all counted elements of the tensors given: hand over the whole batch (ranks
    gather first, then keep their rows), never a micro-batch.

    Source: `whiten` in OpenAI's lm-human-preferences (Ziegler et al. 2019): population variance,
    (x - mean) / sqrt(var + eps), then + mean where the mean is kept.
    """
    mean = masked_mean(x, mask)
    white = (zero_masked(x, mask) - mean) * torch.rsqrt(masked_var(x, mask) + eps)
    return zero_masked(white + mean if keep_mean else white, mask)
