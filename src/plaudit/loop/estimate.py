"""Memory and time of a run before it starts: `plaudit doctor CONFIG.yaml`. It is rehearsed, and told at full length.

What learns from its own samples is rehearsed in a few steps of the true size. What learns from data is rehearsed twice,
on a small and on a larger part of it: what grows with the text is told apart from what does not.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from plaudit import config as configs
from plaudit.loop.excerpt import Texts, labels_of, read_texts
from plaudit.loop.prediction import Prediction, Sizes, a_step, from_steps, from_texts, kept
from plaudit.loop.rehearsal import DoesNotFit, Say, Timeline, available, free_disk, rehearse
from plaudit.types import UserError

FEW, MANY, SECONDS = 2, 64, 30.0
"""Steps of the first rehearsal; of the second at most, and how long they should last."""
LEAST_TOKENS = 256
"""A micro_batch_tokens below this wins nothing: a text is in one piece."""
MARGIN = 1.2
"""A run may hold so much more than is foretold: it fits where that fits, too."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be predicted. texts: what it learns from, None where it draws its own samples. room: bytes that the
    run may hold; limit: that a rehearsal may hold here."""

    recipe: str
    config: Any
    texts: Texts | None
    room: int
    limit: int
    say: Say

    def rehearse(self, changes: dict[str, Any], texts: Texts | None = None) -> Timeline:
        """The run with these settings changed, on these texts in the place of its own. UserError and DoesNotFit as
        `rehearsal.rehearse`."""
        with tempfile.TemporaryDirectory(prefix="plaudit-doctor-") as name:
            place = Path(name)
            named = {} if texts is None else texts.write(place / "data")
            words = [f"{key}={json.dumps(value)}" for key, value in (changes | named).items()]
            tree = configs.with_overrides(self.config.model_dump(mode="json"), words)
            settings = configs.dump(configs.parse(type(self.config), tree, "rehearsal"))
            try:
                return rehearse(f"recipe: {self.recipe}\n{settings}", place, limit=self.limit, say=self.say)
            except UserError as error:
                raise UserError(self._in_own_words(str(error), named)) from None

    def _in_own_words(self, line: str, named: dict[str, Any]) -> str:
        """What the rehearsal said of its part of the data, said of the data."""
        if ": record " in line and named:
            line += " (counted in the part that was rehearsed)"
        for setting, paths in named.items():
            for path, own in zip(_listed(paths), _listed(getattr(self.config, setting)), strict=True):
                line = line.replace(path, own)
        return line


def _listed(value: str | Sequence[str]) -> Sequence[str]:
    return [value] if isinstance(value, str) else value


def examine(recipe: str, config: Any, memory: float | None) -> tuple[list[str], bool]:
    """What is told of a run, in lines, and whether it fits. memory: GB for the run, None for what is free here.

    UserError where the config or the data is at fault.
    """
    asked = ask(recipe, config, memory)
    try:
        found = predict(asked)
    except DoesNotFit as stopped:
        more = max(stopped.used, asked.limit) / 1e9
        line = _line(
            False, "memory", f"more than {more:.1f} GB, where {asked.room / 1e9:.1f} GB are to be had"
        )
        return [line, *advice(asked)], False
    lines = described(asked, found)
    fits = MARGIN * found.memory <= asked.room
    if not fits:
        lines += advice(asked)
    return lines, fits and found.disk <= free_disk(Path())


def ask(recipe: str, config: Any, memory: float | None = None) -> Asked:
    """What is to be predicted, as `examine`."""
    here = available()
    room = here if memory is None else round(memory * 1e9)
    console = Console(stderr=True)

    def say(text: str) -> None:
        console.print(f"[dim]rehearsal[/]  {text}", highlight=False, soft_wrap=True)

    texts = None if counted(recipe, config) else read_texts(recipe, config)
    return Asked(recipe, config, texts, room, min(room, here), say)


# How a run is rehearsed --------------------------------------------------------------------------------------


def counted(recipe: str, config: Any) -> tuple[str, int, int] | None:
    """What says how long a run is that draws its own samples: the setting, its value, and how many steps each of it
    is. None where that is the data."""
    if recipe == "bandit" and config.reward is not None:
        return "rounds", config.rounds, config.steps_per_round
    return ("steps", config.steps, 1) if hasattr(config, "steps") else None


def in_part(asked: Asked, count: int, part: Texts | None, changes: dict[str, Any]) -> Timeline:
    """A rehearsal of so many steps (or rounds), or on a part of the texts, that saves once, at its end."""
    config, own = asked.config, dict[str, Any]()
    if (known := counted(asked.recipe, config)) is not None:
        setting, whole, each = known
        count = min(count, whole)
        own = {setting: count, "checkpoint_every": count * each}
        asked.say(f"{count} of {whole} {setting}")
    if part is not None and asked.texts is not None:
        epochs = min(1, getattr(config, "epochs", 1))
        own = {"epochs": epochs, "checkpoint_every": max(1, math.ceil(part.units / part.batch))}
        own |= {"evaluate_every": None, "patience": None}
        if asked.recipe == "bandit" and not config.labels:
            own["labels"] = labels_of(asked.texts)
        asked.say(f"{part.text / asked.texts.text:.1%} of the data")
    return asked.rehearse({k: v for k, v in own.items() if hasattr(config, k)} | changes, part)


def small(asked: Asked, changes: dict[str, Any] | None = None) -> tuple[Timeline, Texts | None]:
    """The first rehearsal. A part of the data that says nothing to learn, such as ties alone, is made larger."""
    if asked.texts is None:
        return in_part(asked, FEW, None, changes or {}), None
    for steps in (FEW, 4 * FEW, 16 * FEW):
        part = asked.texts.part(steps)
        try:
            return in_part(asked, steps, part, changes or {}), part
        except UserError as error:
            uniform = str(error).startswith(", ".join(getattr(asked.config, "data", ())) + ": ")
            if not uniform or ": record " in str(error) or steps == 16 * FEW or part.text == asked.texts.text:
                raise
    raise AssertionError


def predict(asked: Asked) -> Prediction:
    """The whole run, from two rehearsals; the second lasts about SECONDS."""
    first, few = small(asked)
    count = min(MANY, math.ceil(SECONDS / max(1e-3, a_step(first))))
    config, every = asked.config, getattr(asked.config, "checkpoint_every", 1)
    if asked.texts is None or few is None:
        known = counted(asked.recipe, config)
        assert known is not None
        _, whole, each = known
        count = math.ceil(count / each)
        seen = first if min(count, whole) <= FEW else in_part(asked, count, None, {})
        steps, most = whole * each, getattr(config, "max_new_tokens", None)
        if getattr(config, "environment", None) or getattr(config, "feedback", None):
            most = None  # an episode has several completions, and what is judged is as long as it is
        saves = math.ceil(steps / every)
        seen = replace(seen, memory=max(first.memory, seen.memory))
        return from_steps(seen, steps=steps, saves=saves, each=each, most_tokens=most)
    count = max(3 * math.ceil(few.units / few.batch), count)  # far enough apart to tell what grows
    part = asked.texts.part(count)
    second = first if part.text <= few.text else in_part(asked, count, part, {})
    sizes = Sizes(few.text, max(few.text, part.text), asked.texts.text)
    return _whole(asked, first, second, sizes)


def _whole(asked: Asked, first: Timeline, second: Timeline, sizes: Sizes) -> Prediction:
    """As the recipe counts its steps, checkpoints and measurements."""
    recipe, config, texts = asked.recipe, asked.config, asked.texts
    assert texts is not None
    if recipe == "evaluate":
        return from_texts(first, second, sizes, steps=len(config.models), saves=1)
    epochs, every = config.epochs, config.checkpoint_every
    steps = epochs * math.ceil(texts.units / texts.batch)
    saves, looks = math.ceil(steps / every), 0
    if recipe == "reward_model":  # epochs follow each other within a batch, and the end is not saved
        steps = math.ceil(epochs * texts.units / texts.batch)
        saves = steps // every
    if getattr(config, "evaluate_every", None) is not None:
        looks = math.ceil(steps / config.evaluate_every) - epochs
    passes = (1 + epochs) / 2 if recipe == "kto" else 1  # each epoch has mismatched texts of its own
    return from_texts(
        first, second, sizes, steps=steps, saves=saves, epochs=epochs, looks=looks, passes=passes
    )


# What is told ------------------------------------------------------------------------------------------------


def described(asked: Asked, found: Prediction) -> list[str]:
    """A prediction in lines, as the doctor's others."""
    free, config = free_disk(Path()), asked.config
    step = found.stepping / max(1, found.steps)
    lines = [
        _line(None, "set up", spoken(found.setup)),
        _line(None, "steps", f"{found.steps} of {spoken(step)}: {spoken(found.stepping)}"),
        _line(None, "finish", spoken(found.finish)),
        _line(None, "in all", spoken(found.total)),
    ]
    if found.longest is not None:
        text = f"{spoken(found.longest)}, if every completion had {config.max_new_tokens} tokens"
        lines.append(_line(None, "at the most", text))
    memory = f"{found.memory / 1e9:.2f} GB, where {_room(asked)}"
    lines.append(_line(MARGIN * found.memory <= asked.room, "memory", memory))
    if found.gpu is not None:
        lines.append(_line(None, "GPU memory", f"{found.gpu / 1e9:.2f} GB, as torch reserves it"))
    disk = f"{found.disk / 1e9:.2f} GB, where {free / 1e9:.1f} GB are free"
    lines.append(_line(found.disk <= free, "disk", disk))
    if found.length is not None:
        text = f"completions as long as in the rehearsal ({found.length:.0f} tokens on average)"
    else:
        text = "the rest of the data is like the part that was rehearsed"
    return [*lines, _line(None, "assumed", f"{text}; a machine as busy as now")]


def advice(asked: Asked) -> list[str]:
    """What to change, each rehearsed, until one fits; and what else there is."""
    for changes in remedies(asked):
        words = " ".join(f"{key}={value}" for key, value in changes.items())
        asked.say(f"with {words}")
        if (held := memory_with(asked, changes)) is not None:
            return [_line(True, "change", f"{words}: {held / 1e9:.2f} GB, rehearsed")]
    config, others = asked.config, ["a smaller model"]
    if getattr(config, "precision", None) in ("float64", "float32"):
        others.insert(0, "precision=bfloat16")
    for setting in ("samples_per_prompt", "prompts_per_step", "batch_size", "max_new_tokens", "n"):
        if hasattr(config, setting):
            others.insert(0, f"less {setting}")
    tried = "a smaller micro_batch_tokens is not enough; " if hasattr(config, "micro_batch_tokens") else ""
    return [_line(None, "change", f"{tried}not rehearsed: {', '.join(others)}")]


def remedies(asked: Asked) -> list[dict[str, Any]]:
    """Changes of the settings to be tried, in turn."""
    config = asked.config
    tokens = getattr(config, "micro_batch_tokens", 0)
    halves = [tokens >> by for by in range(1, 32) if tokens >> by >= LEAST_TOKENS]
    found: list[dict[str, Any]] = []
    # Where the least does not do, none between does.
    if halves and memory_with(asked, {"micro_batch_tokens": halves[-1]}) is not None:
        found += [{"micro_batch_tokens": half} for half in halves]
    adapter = getattr(config, "adapter", None)
    if asked.recipe != "bandit" and getattr(adapter, "rank", 1) == 0:  # a bandit's rank 0 is its head alone
        found.append({"adapter.rank": 16})
        found += [{"adapter.rank": 16, "micro_batch_tokens": halves[-1]}] * bool(halves)
    return found


def memory_with(asked: Asked, changes: dict[str, Any]) -> int | None:
    """Bytes that the run holds with these settings changed; None where it does not fit with them."""
    try:
        seen, part = small(asked, changes)
    except DoesNotFit:
        return None
    missing = 0 if asked.texts is None or part is None else asked.texts.text - part.text
    held = kept(seen.memory, missing)
    return held if MARGIN * held <= asked.room else None


def _room(asked: Asked) -> str:
    if asked.room == sys.maxsize:
        return "nothing tells how much is free"
    return f"{asked.room / 1e9:.1f} GB are to be had"


def _line(ok: bool | None, name: str, found: str) -> str:
    mark = {True: "ok", False: "no", None: "--"}[ok]
    return f"{mark:8}{name:16}{found}"


def spoken(seconds: float) -> str:
    """72 -> "1.2 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.2f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
