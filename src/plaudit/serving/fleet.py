"""The models that answer now, by the names they are asked under; exchanged while requests go on.

Who asks stays with one model while it is there: each (requester, version) has a number of its own, and the version
with the best one by its weight answers (rendezvous hashing with weights; Thaler and Ravishankar 1998). So shares are as
the weights say, and where weights change, only as many people change models as must.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace

from plaudit.feedback.releases import Arm, Release, Releases
from plaudit.serving.backend import Backend
from plaudit.types import Missing, UserError

log = logging.getLogger(__name__)
Load = Callable[[Arm], Awaitable[Backend]]
AGAIN_SECONDS = 60.0
"""After which a release that could not be loaded is tried again."""


@dataclass(eq=False, slots=True)
class Running:
    """A model that is loaded. asked: requests that it answers now."""

    arm: Arm
    backend: Backend
    asked: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which model answers, and with which probability it was this one."""

    running: Running
    propensity: float


def draw(arms: Mapping[str, float], who: str) -> tuple[str, float]:
    """The version that answers this requester, and its share of all. arms: weights by version, one above 0."""
    whole = sum(arms.values())
    best = max((version for version in arms if arms[version] > 0), key=lambda v: _worth(v, arms[v], who))
    return best, arms[best] / whole


def _worth(version: str, weight: float, who: str) -> float:
    digest = hashlib.blake2b(f"{version}\x1f{who}".encode(), digest_size=8).digest()
    uniform = (int.from_bytes(digest, "big") + 0.5) / 2**64
    return -weight / math.log(uniform)


class Fleet:
    """Follows the releases of a store."""

    def __init__(self, load: Load, *, drain_seconds: float = 60.0) -> None:
        """load: makes an arm answer. drain_seconds: after which a model that was taken away stops in mid-answer."""
        self.load, self.drain_seconds = load, drain_seconds
        self.names: dict[str, tuple[Running, ...]] = {}
        self.created: dict[str, str] = {}
        self.fault = ""
        self._seen, self._tried = -1, 0.0
        self._leaving = set[asyncio.Task[None]]()

    async def follow(self, releases: Releases) -> bool:
        """What stands in the store answers from now on; whether anything changed. A release that cannot be loaded is
        logged, said in `fault`, and what answered before it goes on."""
        last = await asyncio.to_thread(releases.last)
        again = bool(self.fault) and time.monotonic() > self._tried + AGAIN_SECONDS
        if last == self._seen and not again:
            return False
        newest = await asyncio.to_thread(releases.newest)
        self.fault, self._seen, self._tried = "", last, time.monotonic()
        for name, release in newest.items():
            await self._exchange(name, release)
        return True

    async def _exchange(self, name: str, release: Release) -> None:
        now = {each.arm.version: each for each in self.names.get(name, ())}
        made = list[Running]()
        try:
            for arm in release.arms:
                old = now.get(arm.version)
                if old is not None and _same(old.arm, arm):
                    made.append(old)
                else:
                    made.append(Running(arm, await self.load(arm)))
        except Exception as error:  # also of a machine without enough memory
            if not isinstance(error, UserError):
                log.exception("a release cannot be loaded")
            self.fault = f"release {release.number} of {name}: {error}"
            log.error("a release cannot be loaded: %s", self.fault)
            for each in made:
                if each not in now.values():
                    await each.backend.close(0)
            return
        weights = {arm.version: arm for arm in release.arms}
        for each in made:
            each.arm = weights[each.arm.version]
        self.names[name], self.created[name] = tuple(made), release.created_at
        log.info("%s is answered by %s", name, ", ".join(each.arm.version for each in made))
        for each in now.values():
            if each not in made:
                self._retire(each)

    def _retire(self, running: Running) -> None:
        """Answers what it was asked, and ends."""
        task = asyncio.create_task(self._drain(running))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _drain(self, running: Running) -> None:
        if running.asked:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(running.idle.wait(), self.drain_seconds)
        await running.backend.close(1.0)

    def choose(self, name: str, who: str) -> Chosen:
        """Missing where nothing is published under the name."""
        if name not in self.names:
            raise Missing("model", name, fix="GET /v1/models lists what there is")
        running = {each.arm.version: each for each in self.names[name]}
        version, share = draw({v: each.arm.weight for v, each in running.items()}, who)
        return Chosen(running[version], share)

    @contextlib.asynccontextmanager
    async def using(self, chosen: Chosen) -> AsyncIterator[Backend]:
        """While a request goes on, the model stays."""
        running = chosen.running
        running.asked += 1
        running.idle.clear()
        try:
            yield running.backend
        finally:
            running.asked -= 1
            if not running.asked:
                running.idle.set()

    async def ready(self) -> bool:
        """Whether every model would answer now; not before the first is there."""
        each = [running for arms in self.names.values() for running in arms]
        return bool(each) and all([await running.backend.ready() for running in each])

    async def close(self) -> None:
        """All models end, after what they are saying."""
        for arms in self.names.values():
            for running in arms:
                self._retire(running)
        self.names = {}
        if self._leaving:
            await asyncio.wait(set(self._leaving))


def _same(one: Arm, other: Arm) -> bool:
    """Whether two arms are one model, whatever their share."""
    return replace(one, weight=1.0) == replace(other, weight=1.0)
