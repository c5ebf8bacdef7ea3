"""A loop's second transition: judgements come in, and a round waits for people as long as it takes."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from plaudit import files
from plaudit.data.formats import read_records, to_json
from plaudit.evaluation.perception import Band
from plaudit.feedback import implicit, overview, panel, transfer
from plaudit.feedback.events import comparison_event, event_id
from plaudit.feedback.panel import Impression
from plaudit.feedback.projects import Projects
from plaudit.loop import learning, status
from plaudit.loop.asking import items_for
from plaudit.loop.drawing import Row, draw, read_rows, views_of
from plaudit.loop.judging import opinions
from plaudit.loop.round import LOOP, SOURCE, Result, Round, gathered
from plaudit.loop.show import Bar
from plaudit.loop.streaming import Stream
from plaudit.reward.open import judge_of
from plaudit.reward.rubric import as_text
from plaudit.tensors import SamplingParams
from plaudit.types import UserError

POLL_SECONDS = 2.0
PEOPLE = ("studio", "served")
"""Sources that a round waits for."""
BAND_PROMPTS = 60
GO_ON = "go-on"
"""A file in a loop's directory that ends the wait for people."""


class Waiting(Exception):
    """The round waits for people, and whoever runs the loop does not."""


def collect(round: Round) -> Result:
    """What the files say, what the panel and the judge say of the round's samples, and then whatever people say until
    it is enough. The result names the last event: what comes after it is the next round's.

    UserError where all that was said so far has nothing to teach, so that the round goes on to collect.
    """
    sources = round.sources
    if "files" in sources:
        _take_files(round)
    if "panel" in sources:
        _ask_panel(round)
    if "judge" in sources:
        _ask_judge(round)
    if any(name in sources for name in PEOPLE):
        with contextlib.ExitStack() as stack:
            online = round.config.mode == "online"
            meanwhile = stack.enter_context(Stream(round)).take if online else None
            wait_for(round, "judgements", partial(_heard, round), meanwhile=meanwhile)
    seq = round.store.last_seq()
    learning.note_served(round, seq)
    learning.check(round, seq)
    if "behaviour" in sources:
        _note_behaviour(round)
    if (project := round.project("studio")) is not None:
        # What is in somebody's hands is theirs to answer, and counts in the next round; nothing else is given out.
        Projects(round.store).close(project.id, Projects(round.store).items(project.id))
    counts = Counter[str](one.source for one in gathered(round, seq, after=round.standing.seq))
    round.say(f"{sum(counts.values())} new judgements: " + told(counts))
    return {"seq": seq, "judgements": sum(counts.values()), "by_source": dict(sorted(counts.items()))}


def new(round: Round, sources: Sequence[str]) -> Counter[str]:
    """Judgements by source, of these, that no round has learned from."""
    found = gathered(round, after=round.standing.seq)
    return Counter(one.source for one in found if one.source in sources)


def told(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {source}" for source, count in sorted(counts.items())) or "none"


def _heard(round: Round) -> tuple[Counter[str], int]:
    """What people have said, and how much is waited for: `enough`, or all that can still be said of the samples where
    people say nothing else."""
    found, enough = new(round, PEOPLE), round.config.collect.enough
    if "served" in round.sources or (project := round.project("studio")) is None:
        return found, enough
    to_come = overview.counts(Projects(round.store), project.id, time.time())["to_come"]
    return found, min(enough, found.total() + to_come)


def wait_for(
    round: Round,
    what: str,
    heard: Callable[[], tuple[Counter[str], int]],
    *,
    meanwhile: Callable[[], object] | None = None,
) -> None:
    """Until as many are there as are wanted, or somebody says that it is enough (`plaudit loop go-on`); waiting.json
    says meanwhile what is waited for. heard: what is there, and how much is wanted. meanwhile: is called whenever
    something new was said. Waiting where nobody waits."""
    path, seen, said = round.directory / "waiting.json", -1, (-1, -1)
    while True:
        if (last := round.store.last_seq()) != seen:
            seen, (found, want) = last, heard()
            if (have := found.total()) >= want:
                break
            if (have, want) != said:
                said = have, want
                about = {"round": round.number, "for": what, "have": have, "want": want}
                files.write_json(path, about | {"by_source": dict(found)})
                status.write(round.config, round.directory)
                round.say(f"waits for {what}: {have} of {want}")
            if meanwhile is not None:
                meanwhile()
        if (round.directory / GO_ON).exists():
            break
        if not round.wait:
            raise Waiting(f"round {round.number} waits for {what}: {said[0]} of {said[1]}")
        time.sleep(POLL_SECONDS)
    path.unlink(missing_ok=True)
    (round.directory / GO_ON).unlink(missing_ok=True)


# Files and behaviour ---------------------------------------------------------------------------------------


def _take_files(round: Round) -> None:
    """What stands in the files and not in the store; a file that has grown since the last round brings what is new."""
    for path in round.config.data:
        transfer.import_records(round.store, read_records(path), meta={LOOP: round.name, SOURCE: "files"})


def _note_behaviour(round: Round) -> None:
    """Ratings to be expected of answers that nobody has judged, as things are now -> behaviour.jsonl."""
    calibrated, guessed = implicit.of_store(round.store, round.config.seed)
    apart = {as_text(prompt) for some in (round.heldout, *round.suites.values()) for prompt in some}
    rows = [
        {"response": of.id, "rater": of.requester, "version": of.version, "record": to_json(one.rating)}
        for one in guessed
        if (of := one.response).name == round.config.name
        and of.version not in round.taken_back.versions
        and as_text(one.rating.prompt) not in apart
    ]
    files.write_rows(round.place / "behaviour.jsonl", rows)
    if calibrated.counts:
        round.say(f"behaviour: what {len(rows)} answers would have been rated")
    else:
        few = f"{calibrated.both} answers have both"
        round.say(f"behaviour does not foretell opinions here ({few}): it is not learned from")


# The simulated panel ---------------------------------------------------------------------------------------


def _ask_panel(round: Round) -> None:
    """So many of the seven an item, in turn; what they say depends on the round and the item alone."""
    asked = items_for(round, "panel")
    seen = impressions(round, read_rows(round.place / "samples.jsonl"), "samples")
    named = (
        replace(rater, name=f"panel-{rater.column}") for rater in panel.training_raters(round.config.seed)
    )
    raters = [rater for rater in named if _is_heard(round, rater.name)]
    round.store.add_items(item for item, _ in asked)
    with Bar(round.console, "judging", total=len(asked)) as bar:
        for number, (item, (first, second)) in enumerate(asked):
            for k in range(min(round.standing.overlap, len(raters))):
                rater = raters[(number + k) % len(raters)]
                round.store.extend(opinions(rater, item, (seen[first], seen[second]), round.number, None))
            bar.step(None)


def _is_heard(round: Round, rater: str) -> bool:
    return round.store.raters().get(rater, "active") == "active"


def impressions(round: Round, rows: Sequence[Row], what: str) -> list[Impression]:
    """How the starting model sees rows that stand in prompt order, the same number of completions each prompt."""
    views = views_of(round.model, rows, what, seed=round.config.seed, console=round.console)
    band = _band(round)
    seen = zip(rows, views.relevance(band), views.fluency(band), strict=True)
    return [
        Impression(row["completion"], float(relevance), float(fluency)) for row, relevance, fluency in seen
    ]


def _band(round: Round) -> Band:
    """What counts as relevant and fluent, fixed once, from the starting model's samples."""
    path = round.directory / "band.json"
    if not path.exists():
        config = round.config
        params, key = SamplingParams(max_new_tokens=config.max_new_tokens), (config.seed, "band")
        prompts = round.some("band", round.prompts, BAND_PROMPTS)
        rows = draw(round.model, prompts, 2, params, key, console=round.console)
        views = views_of(round.model, rows, "the start", seed=config.seed, console=round.console)
        files.write_json(path, asdict(Band.of(views)))
    return Band(**json.loads(path.read_text(encoding="utf-8")))


# The judge model -------------------------------------------------------------------------------------------


def _ask_judge(round: Round) -> None:
    """The judge compares each pair in both orders; two orders that disagree are a tie."""
    judge = judge_of(str(round.config.judge), round.model.trunk.dtype, round.model.trunk.device)
    if not _is_heard(round, judge.name):
        return
    asked = items_for(round, "judge")
    round.store.add_items(item for item, _ in asked)
    with Bar(round.console, "judging", total=len(asked)) as bar:
        pairs = [(as_text(item.prompt), *item.completions) for item, _ in asked]
        for (item, _), found in zip(asked, judge.compare([(q, a, b) for q, a, b in pairs]), strict=True):
            if found.choice is not None:
                id = event_id("loop judge", round.number, item.id, judge.name)
                fields: dict[str, Any] = {"id": id, "policy_version": item.policy_version}
                round.store.append(comparison_event(item.id, judge.name, found.choice, **fields))
            bar.step(None)


def check_files(paths: Sequence[str]) -> None:
    """UserError for a file that is not there, before hours of work."""
    for path in paths:
        if not Path(path).is_file():
            raise UserError("there is no such file", where=path, fix="check the path")
