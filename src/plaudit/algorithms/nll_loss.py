"""Supervised fine-tuning: the cross-entropy of the tokens shown."""

from torch import Tensor

from plaudit.algorithms import LossOutput
from plaudit.algorithms.masking import masked_mean


def nll_loss(logprobs: Tensor, mask: Tensor, *, total: float | Tensor) -> LossOutput:
    """- sum of the counted tokens' log-probabilities, divided by total.

    logprobs: [B, T], nats, with gradient. mask: [B, T], True on the tokens to imitate. total: the whole
    batch's count of tokens (> 0): micro-batches and ranks then sum to the whole, and each token weighs the
    same whatever the split. metrics: `nll`, the same number detached, nats per token. Raises ValueError where
    shapes differ.

    Source: maximum likelihood; for dividing by the whole batch's count see transformers pull request 34191
    (accumulation had averaged the micro-batches' averages).
    """
    loss = -masked_mean(logprobs, mask, total=total)
    return LossOutput(loss, {"nll": loss.detach()})
