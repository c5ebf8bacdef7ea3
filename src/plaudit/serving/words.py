"""A completion's text as its tokens come: what may be shown already, and where a stop string ends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from plaudit.data.tokenizer import Tokenizer

BROKEN = "\N{REPLACEMENT CHARACTER}"
AHEAD = 8
"""Tokens that are decoded again with each new one: a character never takes more, and a space before a word is seen."""


@dataclass(slots=True)
class Words:
    """Of one completion. text: what has been shown; stopped: a stop string has come, and ends it before itself."""

    tokenizer: Tokenizer
    stops: Sequence[str] = ()
    text: str = ""
    stopped: bool = False
    _ids: list[int] = field(default_factory=list)
    _read: int = 0
    """How many of the ids stand in the text, or are held back for a stop string."""
    _held: str = ""

    def take(self, token: int) -> str:
        """What the token adds to what may be shown: nothing while a character is not whole, or while a stop string may
        have begun."""
        self._ids.append(token)
        start = max(0, self._read - AHEAD)
        before = self.tokenizer.decode(self._ids[start : self._read])
        now = self.tokenizer.decode(self._ids[start:])
        if now.endswith(BROKEN) and len(self._ids) - self._read < AHEAD:
            return ""
        self._read = len(self._ids)
        return self._show(now[len(before) :])

    def end(self) -> str:
        """What was held back, after the last token."""
        start = max(0, self._read - AHEAD)
        before = self.tokenizer.decode(self._ids[start : self._read])
        shown = self._show(self.tokenizer.decode(self._ids[start:])[len(before) :])
        self._read, held, self._held = len(self._ids), self._held, ""
        self.text += held
        return shown + held

    def _show(self, new: str) -> str:
        if self.stopped:
            return ""
        waiting = self._held + new
        found = [(place + len(stop), place) for stop in self.stops if (place := waiting.find(stop)) >= 0]
        if found:  # the one that is whole first, wherever the tokens' borders are
            self.stopped = True
            shown, self._held = waiting[: min(found)[1]], ""
        else:
            kept = max((_begun(waiting, stop) for stop in self.stops), default=0)
            shown, self._held = waiting[: len(waiting) - kept], waiting[len(waiting) - kept :]
        self.text += shown
        return shown


def _begun(text: str, stop: str) -> int:
    """How many characters at the text's end may be the stop string's first."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if stop.startswith(text[-n:])), 0)
