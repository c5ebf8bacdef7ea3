"""What rehearsals say of a whole run: arithmetic on what was seen of them, in seconds and bytes."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace

from plaudit.loop.rehearsal import Timeline
from plaudit.types import UserError

PER_CHARACTER = 12
"""Bytes that a run keeps of a character of its data: its text, and its ids as Python's numbers (11.3 were measured, of
English dialogues with the default model's tokenizer)."""
GAPS = 1.15
"""What a run holds at the most, beside its rehearsal's most: step by step, gaps add up between blocks of many sizes
(benchmarks/estimate.py has run and rehearsal of seven)."""
AT_ONCE = 3
"""Checkpoints that stand at once at the most: two are kept, and the next is written beside them."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """A whole run. Seconds: setup (until the first step), stepping (all steps, with what is measured and saved between
    them), finish, longest (in all, if every completion had max_new_tokens; None: not known). Bytes: memory, gpu (None:
    there is none), disk, each the most. length: tokens a completion, as rehearsed."""

    setup: float
    stepping: float
    steps: int
    finish: float
    memory: int
    disk: int
    gpu: int | None = None
    length: float | None = None
    longest: float | None = None

    @property
    def total(self) -> float:
        return self.setup + self.stepping + self.finish


def from_steps(
    seen: Timeline, *, steps: int, saves: int, each: int = 1, most_tokens: int | None = None
) -> Prediction:
    """So many steps from a few of them, of which the first is slower. saves: checkpoints in all; the rehearsal wrote
    one, after its last step. each: steps that are alike only together (a round's). most_tokens: of a completion."""
    ends = seen.steps[each - 1 :: each]
    if not ends:
        raise UserError("ends before its first step", where="rehearsal", fix="see why with `plaudit train`")
    first = ends[0] - seen.ready
    one = (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else first
    found = Prediction(
        setup=seen.ready,
        stepping=first + (steps / each - 1) * one + (saves - 1) * saving(seen),
        steps=steps,
        finish=seen.end - seen.last,
        memory=kept(seen.memory, 0),
        disk=seen.disk + (min(saves, AT_ONCE) - 1) * seen.checkpoint,
        gpu=seen.gpu,
        length=seen.length,
    )
    if not seen.length or most_tokens is None:
        return found
    more = max(1.0, most_tokens / seen.length)
    return replace(found, longest=found.setup + found.stepping * more + found.finish)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Characters of the two rehearsals' texts, and of all."""

    small: int
    large: int
    whole: int


def from_texts(
    small: Timeline,
    large: Timeline,
    sizes: Sizes,
    *,
    steps: int,
    saves: int,
    epochs: int = 1,
    looks: int = 0,
    passes: float = 1,
) -> Prediction:
    """A run on all of its texts from two on parts of them, of one epoch each. looks: how often more than once an epoch
    the held-out is measured; passes: over all texts during the setup, where the rehearsals had one."""
    stepping = grown(small.last - small.ready, large.last - large.ready, sizes, times=epochs)
    stepping += (saves - 1) * saving(large) + looks * looking(large) * sizes.whole / sizes.large
    disk = grown(small.disk, large.disk, sizes) + (min(saves, AT_ONCE) - 1) * large.checkpoint
    return Prediction(
        setup=grown(small.ready, large.ready, sizes, times=passes),
        stepping=stepping,
        steps=steps,
        finish=grown(small.end - small.last, large.end - large.last, sizes),
        memory=kept(max(small.memory, large.memory), sizes.whole - sizes.large),
        disk=round(disk),
        gpu=max(small.gpu or 0, large.gpu or 0) or None,
    )


def kept(seen: int, characters: int) -> int:
    """The memory of a run from its rehearsal's, which lacked so many characters of the data."""
    return round(GAPS * seen) + PER_CHARACTER * max(0, characters)


def grown(small: float, large: float, sizes: Sizes, times: float = 1) -> float:
    """At the whole size what is `small` and `large` at the parts': a constant, and what grows with the text, so many
    times as often. Neither is below 0."""
    if sizes.large <= sizes.small:
        return large * times * sizes.whole / sizes.large
    slope = min(max(0.0, (large - small) / (sizes.large - sizes.small)), large / sizes.large)
    return large - slope * sizes.large + times * slope * sizes.whole


def saving(seen: Timeline) -> float:
    """Seconds that a checkpoint takes."""
    return 0.0 if seen.saved is None else max(0.0, seen.saved - seen.last)


def looking(seen: Timeline) -> float:
    """Seconds that it takes to measure the held-out: by how much the last step is longer than the others."""
    gaps = [b - a for a, b in zip(seen.steps, seen.steps[1:], strict=False)]
    return max(0.0, gaps[-1] - statistics.median(gaps[:-1])) if len(gaps) > 1 else 0.0


def a_step(seen: Timeline) -> float:
    """Seconds a step, the first left out where there are others."""
    steps = seen.steps
    if len(steps) > 1:
        return (steps[-1] - steps[0]) / (len(steps) - 1)
    return seen.last - seen.ready
