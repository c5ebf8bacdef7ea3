"""Text to ids and back, with the model's own chat template. Ids are made once and never re-rendered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from plaudit.types import Message, Prompt, UserError


def check_room(tokens: int, context: int, where: str) -> None:
    """UserError where the model does not take so many tokens."""
    if tokens > context:
        raise UserError(
            f"has {tokens} tokens, the model takes {context}", where=where, fix="shorten it or leave it out"
        )


class Tokenizer:
    """transformers' fast tokenizer of a model directory, and what Plaudit asks of it.

    eos_ids: the ids that end a completion; fingerprint: equal for two tokenizers exactly when they give the same
    ids (vocabulary, merges, normalisation and chat template).
    """

    def __init__(self, inner: Any, eos_ids: Sequence[int]) -> None:
        self.inner = inner
        self.eos_ids = tuple(eos_ids)
        identity = inner.backend_tokenizer.to_str() + "\0" + str(inner.chat_template)
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """UserError when the directory holds no fast tokenizer or nothing says how a completion ends."""
        from transformers import AutoTokenizer

        try:
            inner = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
            inner.backend_tokenizer  # noqa: B018 (raises for a slow tokenizer)
        except Exception as error:  # transformers raises many kinds here, and all mean the same to the user
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise UserError(f"holds no usable tokenizer ({reason})", where=str(directory)) from None
        found: list[int] = [] if inner.eos_token_id is None else [inner.eos_token_id]
        generation = directory / "generation_config.json"
        if generation.exists():
            try:
                listed = json.loads(generation.read_text(encoding="utf-8")).get("eos_token_id")
            except (OSError, ValueError, AttributeError) as error:
                raise UserError(f"cannot be read ({error})", where=str(generation)) from None
            found += listed if isinstance(listed, list) else [] if listed is None else [listed]
        if not found:
            raise UserError("has no end-of-text token", where=str(directory))
        return cls(inner, sorted(set(found)))

    @property
    def has_chat_template(self) -> bool:
        return bool(self.inner.chat_template)

    def encode(self, text: str) -> list[int]:
        """The text's ids, nothing added."""
        return list(self.inner(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """The ids' text without special tokens."""
        return str(self.inner.decode(list(ids), skip_special_tokens=True))

    def render(self, prompt: Prompt) -> list[int]:
        """The ids that a completion follows: messages through the chat template, text as it stands."""
        if isinstance(prompt, str):
            ids = list(self.inner(prompt)["input_ids"])
        elif not self.has_chat_template:
            raise UserError("this model has no chat template", fix="give prompts as plain text")
        else:
            ids = self.encode(self._written(prompt))
        if not ids:
            raise UserError("a prompt has no tokens", where=repr(prompt)[:60])
        return ids

    def between(self, dialogue: Sequence[Message]) -> list[int]:
        """The ids that follow the model's own ids of its last turn, up to where its next begins: what closes a turn
        in the chat template, and what was said since. What the model said is not rendered again.

        dialogue: all messages, the last assistant message among them being that turn. UserError where the template
        does not write an assistant's words as they are.
        """
        turn = max(place for place, message in enumerate(dialogue) if message.role == "assistant")
        marker = "PLAUDIT"
        while any(marker in message.content for message in dialogue):
            marker += "-"
        marked = (*dialogue[:turn], Message("assistant", marker), *dialogue[turn + 1 :])
        before, found, after = self._written(marked).rpartition(marker)
        if not found or marker in before:
            raise UserError(
                "the chat template does not write an assistant's words once, as they are",
                where="chat template",
                fix="set chat=False, which joins plain texts",
            )
        return self.encode(after)

    def _written(self, dialogue: Sequence[Message]) -> str:
        """Messages through the chat template, up to where the answer begins."""
        messages = [{"role": m.role, "content": m.content} for m in dialogue]
        try:
            text = self.inner.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError) as error:  # the template is the model's, not ours
            where = repr(tuple(dialogue))[:60]
            raise UserError(f"the chat template refuses a prompt ({error})", where=where) from None
        return str(text)

    def complete(self, text: str, *, ended: bool = True) -> list[int]:
        """A completion's ids, with the end-of-text token behind them unless it was cut off; never none."""
        if not ended and (ids := self.encode(text)):
            return ids
        return [
            *self.encode(text),
            self.inner.eos_token_id if self.inner.eos_token_id is not None else self.eos_ids[0],
        ]

    def save(self, directory: Path) -> None:
        self.inner.save_pretrained(str(directory))
