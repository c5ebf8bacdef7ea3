"""The output layer, the log-softmax and the choice of one token in one step, a chunk of tokens at a time.

Dense, [N, V] logits in float32 with their gradient are by far the largest tensors of a small model's training
step (1,000 tokens of 49,152 words: 200 MB each). Here no more than [chunk, V] exists at a time.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def selected_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int = 512,
    bias: Tensor | None = None,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """log softmax((hidden @ weight.T + bias) / temperature)[targets]. -> (logprobs [N], entropy [N]), nats.

    hidden: [N, d], the trunk's last; weight: [V, d] and bias: [V] or None, the output layer's; targets: [N]
    int64 in [0, V). temperature: > 0, divides the logits, as in sampling. chunk: tokens at a time. Both results
    are float32 (float64 where hidden is); entropy, of the whole distribution, carries a gradient where
    entropy_gradient asks for it, at the price of a third product with weight.

    Numerics: weight is of hidden's dtype, or of a narrower one (float32 states on a bfloat16 trunk). Logits are
    multiplied out in weight's dtype and go on in float32; the target's own logit is taken anew in float32 and
    stands in its place, so that the rounding of a bfloat16 logit (up to 0.06 at 16) is not that of the
    log-probability, and no log-probability exceeds 0.

    Gradient: with the weights frozen (the usual case here) d logprob_t / d hidden_t = (W[y_t] - softmax_t W)
    / temperature is worked out within the forward pass, one [N, d] tensor, and the backward pass is one
    multiplication; so is d entropy_t / d hidden_t = -(sum over y of p_y (ln p_y + entropy_t) W[y]) / temperature.
    Where weight or bias is trained, the chunks are computed again in the backward pass.

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
    trained = weight.requires_grad or (bias is not None and bias.requires_grad)
    with_slope = torch.is_grad_enabled() and hidden.requires_grad and not trained
    logprobs, entropy = _SelectedLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, float(temperature), chunk, with_slope, entropy_gradient
    )
    return logprobs, entropy


def _chunk_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float
) -> Tensor:
    """[n, V], float32 (or float64), divided by the temperature; the targets' own in full precision."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    logits = (hidden.to(weight.dtype) @ weight.T).to(wide)
    own = (hidden.to(wide) * weight[targets].to(wide)).sum(-1)
    logits.scatter_(1, targets.unsqueeze(1), own.unsqueeze(1))
    if bias is not None:
        logits += bias
    return logits.div_(temperature)


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
        with_slope: bool,
        entropy_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = torch.empty(hidden.shape[0], dtype=wide, device=hidden.device)
        entropy = torch.empty_like(logprobs)
        slope = torch.empty_like(hidden) if with_slope else None
        entropy_slope = torch.empty_like(hidden) if with_slope and entropy_gradient else None
        for start in range(0, hidden.shape[0], chunk):
            rows = slice(start, start + chunk)
            own = targets[rows]
            logits = _chunk_logits(hidden[rows], weight, bias, own, temperature)
            logits -= logits.logsumexp(-1, keepdim=True)  # from here on log-probabilities
            logprobs[rows] = logits.gather(1, own.unsqueeze(1)).squeeze(1)
            probs = logits.exp()
            entropy[rows] = -logits.mul_(probs).sum(-1)  # logits: from here on p ln p
            if slope is not None:
                mean_row = (probs.to(weight.dtype) @ weight).to(wide)
                slope[rows] = ((weight[own].to(wide) - mean_row) / temperature).to(hidden.dtype)
            if entropy_slope is not None:
                logits.addcmul_(probs, entropy[rows].unsqueeze(1))
                entropy_slope[rows] = (logits.to(weight.dtype) @ weight).to(hidden.dtype).div_(-temperature)
        if slope is None:
            ctx.save_for_backward(hidden, weight, bias, targets)
        elif entropy_slope is None:
            ctx.save_for_backward(slope)
        else:
            ctx.save_for_backward(slope, entropy_slope)
        ctx.with_slope, ctx.temperature, ctx.chunk = with_slope, temperature, chunk
        ctx.entropy_gradient = entropy_gradient
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, of_entropy: Tensor) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 5  # targets and what follows them
        if ctx.with_slope:
            slope, *entropy_slope = ctx.saved_tensors
            for_hidden = grad.unsqueeze(1) * slope
            for other in entropy_slope:
                for_hidden = for_hidden + of_entropy.unsqueeze(1) * other
            return for_hidden.to(slope.dtype), None, None, *nothing

        hidden, weight, bias, targets = ctx.saved_tensors
        with_hidden, with_weight, with_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if with_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=grad.dtype) if with_weight else None
        grad_bias = torch.zeros_like(bias, dtype=grad.dtype) if with_bias else None
        for start in range(0, hidden.shape[0], ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            own = targets[rows].unsqueeze(1)
            logits = _chunk_logits(hidden[rows], weight, bias, own.squeeze(1), ctx.temperature)
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
            grad_logits = grad_logits.to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = (grad_logits @ weight).to(hidden.dtype)
            if grad_weight is not None:
                grad_weight += grad_logits.T @ hidden[rows].to(weight.dtype)
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            *nothing,
        )
