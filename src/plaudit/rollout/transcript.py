"""A dialogue as ids: what the policy was asked, what it drew, and what was said to it in between.

Ids are kept as they were drawn or said and never rendered again from text, so that what is trained on is what was
drawn. Words that the policy was told are observations: they stand in the completion, and its action mask is False.
"""

from __future__ import annotations

from collections.abc import Sequence

from plaudit.data.shapes import whole_text
from plaudit.data.tokenizer import Tokenizer
from plaudit.tensors import FinishReason, Sample, SamplingParams
from plaudit.types import Message, Prompt, UserError


def whole(text: str, said: str, where: str) -> str:
    """The text. UserError where it holds half a character, which no tokenizer takes. said: what it is."""
    try:
        return whole_text(text, said)
    except UserError as error:
        raise UserError(error.what, where=where, fix=error.fix) from None


class Transcript:
    """Grows token by token: `draw` and `end_turn` are the policy's, `hear` is what is said to it.

    messages: the dialogue in words. ids, drawn, logprobs: one a completion token; logprobs in nats, 0 where not
    drawn. words, ends: of each of the policy's turns, what it said and the place of its last token among the ids.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Prompt, prompt_ids: Sequence[int] | None = None) -> None:
        """prompt: messages are joined by the chat template, all through the dialogue; text stands as it is.
        prompt_ids: what it was rendered as, where that is known. UserError for a prompt that cannot be rendered."""
        self.tokenizer, self.chat = tokenizer, not isinstance(prompt, str)
        self.messages = [Message("user", prompt)] if isinstance(prompt, str) else list(prompt)
        self.prompt_ids = list(tokenizer.render(prompt) if prompt_ids is None else prompt_ids)
        self.ids: list[int] = []
        self.drawn: list[bool] = []
        self.logprobs: list[float] = []
        self.ends: list[int] = []
        self.words: list[str] = []
        self._turn = 0

    @property
    def all_ids(self) -> list[int]:
        """Prompt and completion: what the policy reads before its next token."""
        return self.prompt_ids + self.ids

    @property
    def turn(self) -> list[int]:
        """The ids of the turn that is being drawn."""
        return self.ids[self._turn :]

    def draw(self, ids: Sequence[int], logprobs: Sequence[float]) -> None:
        """Tokens of the policy's."""
        self.ids += ids
        self.logprobs += logprobs
        self.drawn += [True] * len(ids)

    def end_turn(self) -> str:
        """The policy has said what it says; its words."""
        text = self.tokenizer.decode(self.turn)
        self.messages.append(Message("assistant", text))
        self.words.append(text)
        self.ends.append(len(self.ids) - 1)
        self._turn = len(self.ids)
        return text

    def reply_ids(self, said: Sequence[Message]) -> list[int]:
        """The ids that hearing this would add: what closes the policy's turn, where it did not close it itself, the
        words, and what opens its next turn."""
        if not self.chat:
            return [token for message in said for token in self.tokenizer.encode(message.content)]
        ids = self.tokenizer.between([*self.messages, *said])
        closed = self.ids[-1] in self.tokenizer.eos_ids and ids[:1] == self.ids[-1:]
        return ids[1:] if closed else ids

    def hear(self, said: Sequence[Message]) -> None:
        """Words that the policy is told after its turn."""
        ids = self.reply_ids(said)
        self.messages += said
        self.observe(ids)

    def observe(self, ids: Sequence[int]) -> None:
        """Tokens that the policy did not draw."""
        self.ids += ids
        self.logprobs += [0.0] * len(ids)
        self.drawn += [False] * len(ids)
        self._turn = len(self.ids)

    def cut(self, length: int) -> None:
        """Nothing beyond this many completion tokens was said."""
        del self.ids[length:], self.drawn[length:], self.logprobs[length:]

    def copy(self) -> Transcript:
        """Another that grows by itself."""
        other = Transcript(self.tokenizer, "", self.prompt_ids)
        other.chat, other._turn = self.chat, self._turn
        for name in ("messages", "ids", "drawn", "logprobs", "words", "ends"):
            setattr(other, name, list(getattr(self, name)))
        return other

    def sample(
        self,
        finish_reason: FinishReason,
        params: SamplingParams,
        *,
        prompt: int = 0,
        index: int = 0,
        policy_version: str = "",
    ) -> Sample:
        """What was drawn so far as one sample. Its text is the policy's own words, a line a turn."""
        return Sample(
            prompt=prompt,
            index=index,
            prompt_ids=tuple(self.prompt_ids),
            completion_ids=tuple(self.ids),
            text="\n".join(self.words),
            logprobs=tuple(self.logprobs),
            finish_reason=finish_reason,
            policy_version=policy_version,
            params=params,
            tokenizer=self.tokenizer.fingerprint,
            action_mask=None if all(self.drawn) else tuple(self.drawn),
        )
