"""A judge in the same process: how probable each allowed verdict is as its whole reply. Nothing to parse."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from plaudit.data.collate import pack
from plaudit.models.branch import Branch, token_logprobs
from plaudit.models.load import Model
from plaudit.reward.rubric import Question
from plaudit.types import Message, UserError


@dataclass(frozen=True, slots=True)
class LocalJudge:
    """A model that is asked by its log-probabilities (as G-Eval's weighted ratings, Liu et al. 2023)."""

    model: Model

    @torch.no_grad()
    def shares(self, question: Question) -> dict[str, float]:
        """Verdict -> its share among the allowed ones, from the probability of "VERDICT key: x" and the end of text
        as the whole reply. One question at a time, so that its shares do not depend on those beside it. UserError for
        a question that is too long."""
        tokenizer, trunk = self.model.tokenizer, self.model.trunk
        prompt = tokenizer.render(self._plain(question))
        replies = [tokenizer.complete(f"VERDICT {question.key}: {verdict}") for verdict in question.allowed]
        if (length := len(prompt) + max(map(len, replies))) > trunk.shape.context:
            raise UserError(
                f"a question has {length} tokens, the judge takes {trunk.shape.context}",
                where=str(self.model.directory),
                fix="judge shorter texts, or take a judge with a longer context",
            )
        packed = pack([prompt] * len(replies), replies, max_row=1 << 30, device=trunk.device)
        sums = token_logprobs(Branch(trunk), packed).logprobs.double().sum(1)
        found = torch.softmax(sums, 0)
        return {verdict: float(share) for verdict, share in zip(question.allowed, found, strict=True)}

    def _plain(self, question: Question) -> str | tuple[Message, ...]:
        """The messages with every special token of this tokenizer broken up, whatever its form; as one text where the
        model has no chat template."""
        inner = self.model.tokenizer.inner
        special = {token.content for token in inner.added_tokens_decoder.values() if token.special}

        def plain(text: str) -> str:
            for token in sorted(special, key=len, reverse=True):
                text = text.replace(token, f"{token[0]} {token[1:]}" if len(token) > 1 else " ")
            return text

        if not self.model.tokenizer.has_chat_template:
            return "\n\n".join(plain(message.content) for message in question.messages) + "\n\n"
        return tuple(Message(message.role, plain(message.content)) for message in question.messages)
