"""The output layer, the log-softmax and the choice of one token in one step, a chunk of tokens at a time.

Dense, [N, V] logits in float32 with their gradient are by far the largest tensors of a small model's training
step (1,000 tokens of 49,152 words: 200 MB each). Here no more than [chunk, V] exists at a time.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

KEPT = 2**28
"""Probabilities that are kept in bfloat16 for the backward pass where the weights are trained (half a gigabyte of
them): it then multiplies once, where it would work all chunks out again."""


def selected_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int = 512,
    bias: Tensor | None = None,
    entropy: bool = True,
    entropy_gradient: bool = False,
    products: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """log softmax((hidden @ weight.T + bias) / temperature)[targets]. -> (logprobs [N], entropy [N]), nats.

    hidden: [N, d], the trunk's last; weight: [V, d] and bias: [V] or None, the output layer's; targets: [N]
    int64 in [0, V). temperature: > 0, divides the logits, as in sampling. chunk: tokens at a time. Both results
    are float32 (float64 where hidden is); entropy, of the whole distribution, carries a gradient where
    entropy_gradient asks for it, at the price of a third product with weight, and is NaN where neither asks for it.
    products: the dtype that is multiplied in, None: weight's own.

    Numerics: weight is of hidden's dtype, or of a narrower one (float32 states on a bfloat16 trunk). Logits are
    multiplied out in the products' dtype and go on in float32; the target's own logit is taken anew in float32 and
    stands in its place, so that the rounding of a bfloat16 logit (up to 0.06 at 16) is not that of the
    log-probability, and no log-probability exceeds 0.

    Gradient: d logprob_t / d hidden_t = ((1 - p_t) W[y_t] - sum over other y of p_y W[y]) / temperature is worked out
    within the forward pass, one [N, d] tensor, and the backward pass is one multiplication; so is
    d entropy_t / d hidden_t = -(sum over y of p_y (ln p_y + entropy_t) W[y]) / temperature. Where weight is trained,
    and the products are of two bytes, the probabilities are kept ([N, V], up to `KEPT`); where they are not, or bias
    is trained, or the entropy has a gradient, the chunks are computed again in the backward pass.

    Raises ValueError on shapes that do not fit, a weight wider than hidden, a bias of another dtype than weight,
    temperature <= 0 or chunk < 1.
    """
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} are not [N, d], [V, d]"
        )
    if targets.shape != hidden.shape[:1] or (bias is not None and bias.shape != weight.shape[:1]):
        raise ValueError(
            f"targets {tuple(targets.shape)} or bias do not fit {tuple(hidden.shape)} hidden states"
        )
    if torch.promote_types(weight.dtype, hidden.dtype) != hidden.dtype:
        raise ValueError(f"weight is {weight.dtype}, wider than hidden, which is {hidden.dtype}")
    if bias is not None and bias.dtype != weight.dtype:
        raise ValueError(f"bias is {bias.dtype} where weight is {weight.dtype}")
    if temperature <= 0 or chunk < 1:
        raise ValueError(f"temperature {temperature} must be > 0, chunk {chunk} at least 1")
    dtype = weight.dtype if products is None else products
    logprobs, entropies = _SelectedLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, float(temperature), chunk, dtype, entropy, entropy_gradient,
        _route(hidden, weight, bias, dtype, entropy_gradient),
    )  # fmt: skip
    return logprobs, entropies


def _route(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, entropy_gradient: bool
) -> str:
    """Where slopes come from: "forward"; "kept": so, and for the weights from the probabilities kept; or "again"."""
    if not torch.is_grad_enabled():
        return "none"
    if not weight.requires_grad and (bias is None or not bias.requires_grad):
        return "forward" if hidden.requires_grad else "none"
    small = dtype.itemsize == 2 and len(hidden) * len(weight) <= KEPT
    return "kept" if small and bias is None and not entropy_gradient else "again"


def _chunk_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, own: Tensor, temperature: float
) -> Tensor:
    """[n, V], float32 (or float64), divided by the temperature. own [n, 1]: the targets, whose logits are taken in full
    precision."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    logits = (hidden.to(weight.dtype) @ weight.T).to(wide)
    logits.scatter_(1, own, (hidden.to(wide) * weight[own[:, 0]].to(wide)).sum(-1, keepdim=True))
    if bias is not None:
        logits += bias.to(wide)
    return logits if temperature == 1 else logits.div_(temperature)


class _SelectedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk: int,
        dtype: torch.dtype,
        with_entropy: bool,
        entropy_gradient: bool,
        route: str,
    ) -> tuple[Tensor, Tensor]:
        wide, narrow = torch.promote_types(hidden.dtype, torch.float32), weight.to(dtype)
        logprobs = torch.empty(hidden.shape[0], dtype=wide, device=hidden.device)
        entropy = torch.full_like(logprobs, torch.nan)
        slope = torch.empty_like(hidden) if route in ("forward", "kept") else None
        entropy_slope = torch.empty_like(hidden) if route == "forward" and entropy_gradient else None
        kept = (
            torch.empty(len(hidden), len(weight), dtype=dtype, device=weight.device)
            if route == "kept"
            else None
        )
        for start in range(0, hidden.shape[0], chunk):
            rows = slice(start, start + chunk)
            own = targets[rows].unsqueeze(1)
            logits = _chunk_logits(hidden[rows], narrow, bias, own, temperature)
            probs, top = torch.softmax(logits, -1), logits.amax(-1, keepdim=True)
            offset = top - probs.amax(-1, keepdim=True).log_()  # ln of the sum of exponentials, at least top
            logprobs[rows] = ((logits.gather(1, own) - top) + (top - offset))[:, 0]
            if with_entropy or entropy_gradient:
                logits.sub_(offset).mul_(probs)  # from here on p ln p
                entropy[rows] = -logits.sum(-1)
            if entropy_slope is not None:
                logits.addcmul_(probs, entropy[rows].unsqueeze(1))
                entropy_slope[rows] = (logits.to(dtype) @ narrow).to(hidden.dtype).div_(-temperature)
            if slope is not None:
                # The target's own share in full precision: near 1 nothing would be left of it in bfloat16.
                probs.scatter_(1, own, 0)
                others = probs.to(dtype) if kept is None else kept[rows].copy_(probs)
                miss = -torch.expm1(logprobs[rows]).unsqueeze(1)
                slope[rows] = (miss * narrow[own[:, 0]].to(wide) - (others @ narrow).to(wide)) / temperature
        saved = {
            "none": (),
            "forward": (slope, entropy_slope),
            "kept": (slope, kept, hidden, targets, logprobs),
            "again": (hidden, weight, bias, targets),
        }[route]
        ctx.save_for_backward(*saved)
        ctx.route, ctx.temperature, ctx.chunk, ctx.dtype = route, temperature, chunk, dtype
        ctx.entropy_gradient, ctx.like = entropy_gradient, (weight.dtype, wide)
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, of_entropy: Tensor) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 7  # targets and what follows them
        if ctx.route == "again":
            return (*_again(ctx, grad, of_entropy), *nothing)
        slope = ctx.saved_tensors[0]
        for_hidden = (grad.unsqueeze(1) * slope).to(slope.dtype)
        if ctx.route == "forward":
            if (entropy_slope := ctx.saved_tensors[1]) is not None:
                for_hidden = (for_hidden + of_entropy.unsqueeze(1) * entropy_slope).to(slope.dtype)
            return for_hidden, None, None, *nothing
        _, kept, hidden, targets, logprobs = ctx.saved_tensors
        weight_dtype, wide = ctx.like
        share = grad / ctx.temperature
        for_weight = (kept.T @ (-share.unsqueeze(1) * hidden).to(ctx.dtype)).to(wide)
        own = (-torch.expm1(logprobs) * share).unsqueeze(1) * hidden
        for_weight.index_add_(0, targets, own.to(wide))
        return for_hidden, for_weight.to(weight_dtype), None, *nothing


def _again(ctx: Any, grad: Tensor, of_entropy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of hidden, weight and bias, from chunks that are computed again."""
    hidden, weight, bias, targets = ctx.saved_tensors
    with_hidden, with_weight, with_bias = ctx.needs_input_grad[:3]
    narrow = weight.to(ctx.dtype)
    grad_hidden = torch.empty_like(hidden) if with_hidden else None
    grad_weight = torch.zeros_like(weight, dtype=grad.dtype) if with_weight else None
    grad_bias = torch.zeros_like(bias, dtype=grad.dtype) if with_bias else None
    for start in range(0, hidden.shape[0], ctx.chunk):
        rows = slice(start, start + ctx.chunk)
        own = targets[rows].unsqueeze(1)
        logits = _chunk_logits(hidden[rows], narrow, bias, own, ctx.temperature)
        # d logprob / d logits = (one at the target - softmax) / temperature
        share = grad[rows].unsqueeze(1) / ctx.temperature
        probs, of_entropies = torch.softmax(logits, -1), None
        if ctx.entropy_gradient:
            # d entropy / d logits = -p (ln p + entropy) / temperature
            logits -= logits.logsumexp(-1, keepdim=True)
            logits -= (probs * logits).sum(-1, keepdim=True)
            of_entropies = logits.mul_(probs).mul_(-of_entropy[rows].unsqueeze(1) / ctx.temperature)
        grad_logits = probs.mul_(-share).scatter_add_(1, own, share)
        if of_entropies is not None:
            grad_logits += of_entropies
        if grad_bias is not None:
            grad_bias += grad_logits.sum(0)
        grad_logits = grad_logits.to(ctx.dtype)
        if grad_hidden is not None:
            grad_hidden[rows] = (grad_logits @ narrow).to(hidden.dtype)
        if grad_weight is not None:
            grad_weight += grad_logits.T @ hidden[rows].to(ctx.dtype)
    return (
        grad_hidden,
        None if grad_weight is None else grad_weight.to(weight.dtype),
        None if grad_bias is None else grad_bias.to(bias.dtype),
    )
