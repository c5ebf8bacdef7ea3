"""How often something may be done: token buckets, in memory."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass(slots=True)
class Limit:
    """`burst` at once, then `rate` a second, for each key on its own. Safe to use from many threads.

    It counts within one process and forgets with it: a limit on trying, not a bill.
    """

    rate: float
    burst: float
    _left: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By key: how much is left, and when that was so."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, key: str, now: float, amount: float = 1.0) -> float:
        """0 where it may be done now, and is counted; else seconds until it may, and nothing is counted.

        now: seconds on a clock that does not go back. ValueError for more than ever fits.
        """
        if amount > self.burst:
            raise ValueError(f"{amount:g} at once, where {self.burst:g} fit")
        with self._lock:
            left, when = self._left.get(key, (self.burst, now))
            left = min(self.burst, left + max(0.0, now - when) * self.rate)
            if left < amount:
                return (amount - left) / self.rate
            self._left[key] = (left - amount, max(now, when))
            if len(self._left) > MOST_KEYS:
                self._forget(now)
            return 0.0

    def spend(self, key: str, now: float, amount: float) -> None:
        """Counts what has been done already, whatever is left: the next waits until it is made up for."""
        with self._lock:
            left, when = self._left.get(key, (self.burst, now))
            left = min(self.burst, left + max(0.0, now - when) * self.rate)
            self._left[key] = (left - amount, max(now, when))
            if len(self._left) > MOST_KEYS:
                self._forget(now)

    def wait(self, key: str, now: float, amount: float = 1.0) -> float:
        """As `take`, and nothing is counted either way."""
        with self._lock:
            left, when = self._left.get(key, (self.burst, now))
            left = min(self.burst, left + max(0.0, now - when) * self.rate)
            return max(0.0, (amount - left) / self.rate)

    def _forget(self, now: float) -> None:
        """Those that are full again need no place; where that is not enough, those that were asked longest ago."""
        full = [k for k, (left, when) in self._left.items() if left + (now - when) * self.rate >= self.burst]
        for key in full:
            del self._left[key]
        over = len(self._left) - MOST_KEYS
        for key in sorted(self._left, key=lambda key: self._left[key][1])[: max(0, over)]:
            del self._left[key]


MOST_KEYS = 10_000
