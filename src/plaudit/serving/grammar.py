"""Answers that are JSON of a schema, by what may be drawn at each token (llguidance; Moskal et al., 2024)."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import llguidance.hf
import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from plaudit.data.tokenizer import Tokenizer
from plaudit.types import UserError


@functools.lru_cache(maxsize=4)
def _tokens(tokenizer: Tokenizer, size: int) -> LLTokenizer:
    """As llguidance reads them; some seconds, once a tokenizer."""
    return llguidance.hf.from_tokenizer(tokenizer.inner, n_vocab=size, eos_token=list(tokenizer.eos_ids))


class Grammar:
    """What may be said next under a grammar, of one completion (plaudit.rollout.live.Constraint)."""

    def __init__(self, tokenizer: Tokenizer, size: int, grammar: str) -> None:
        """size: words of the model's vocabulary. UserError for a grammar that says nothing."""
        self._matcher = LLMatcher(_tokens(tokenizer, size), grammar)
        self._size = size
        if self._matcher.is_error():
            raise UserError(
                _first(self._matcher.get_error()), where="schema", fix="write JSON Schema 2020-12"
            )

    def allowed(self) -> Tensor:
        """[V] bool."""
        mask = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise RuntimeError(_first(self._matcher.get_error()))
        bits = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), count=self._size, bitorder="little")
        return torch.from_numpy(bits.astype(bool))

    def take(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            raise RuntimeError(f"token {token} is not in the grammar ({_first(self._matcher.get_error())})")


def check(grammar: str) -> None:
    """UserError for a grammar that llguidance cannot read."""
    if fault := LLMatcher.validate_grammar(grammar):
        raise UserError(_first(fault), where="schema", fix="write JSON Schema 2020-12")


def of_schema(schema: Mapping[str, Any]) -> str:
    """The grammar of JSON that fits a schema; without spaces between its parts, as models write it best.
    UserError for what is no schema, or one that llguidance does not have."""
    try:
        found = str(
            LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides={"whitespace_flexible": False})
        )
    except ValueError as error:
        raise UserError(_first(str(error)), where="schema", fix="write JSON Schema 2020-12") from None
    check(found)
    return found


def of_calls(tools: Sequence[Mapping[str, Any]], begin: str, end: str) -> str:
    """The grammar of one call of one of these functions, between the marks that the model's template has for it.
    tools: name and parameters (a schema) of each."""
    call = {
        "anyOf": [
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool["name"]},
                    "arguments": tool.get("parameters") or {"type": "object"},
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for tool in tools
        ]
    }
    found = LLMatcher.grammar_from_lark(
        f"start: {json.dumps(begin)} call {json.dumps(end)}\ncall: %json {json.dumps(call)}"
    )
    check(str(found))
    return str(found)


def _first(text: str | None) -> str:
    return (text or "cannot be read").strip().partition("\n")[0][:300]
