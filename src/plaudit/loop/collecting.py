"""A loop's second transition: judgements come in, and a round waits for people as long as it takes."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from plaudit import files
from plaudit.data.formats import read_records
from plaudit.evaluation.perception import Band
from plaudit.feedback import panel, transfer
from plaudit.feedback.events import comparison_event, event_id
from plaudit.feedback.panel import Impression
from plaudit.feedback.projects import Projects
from plaudit.loop.asking import items_for
from plaudit.loop.drawing import Row, draw, read_rows, views_of
from plaudit.loop.judging import opinions
from plaudit.loop.round import LOOP, SOURCE, Result, Round, gathered
from plaudit.loop.show import Bar
from plaudit.reward.open import judge_of
from plaudit.reward.rubric import as_text
from plaudit.tensors import SamplingParams
from plaudit.types import UserError

POLL_SECONDS = 2.0
PEOPLE = ("studio", "served")
"""Sources that a round waits for."""
BAND_PROMPTS = 60


class Waiting(Exception):
    """The round waits for people, and whoever runs the loop does not."""


def collect(round: Round) -> Result:
    """What the files say, what the panel and the judge say of the round's samples, and then whatever people say until
    it is enough. The result names the last event: what comes after it is the next round's."""
    sources = round.config.sources
    if sources.files:
        _take_files(round)
    if sources.panel:
        _ask_panel(round)
    if sources.judge:
        _ask_judge(round)
    if any(getattr(sources, name) for name in PEOPLE):
        wait_for(round, round.config.collect.enough, "judgements", lambda: new(round))
    seq = round.store.last_seq()
    if (project := round.project(round.titles["studio"])) is not None:
        # What is in somebody's hands is theirs to answer, and counts in the next round; nothing else is given out.
        Projects(round.store).close(project.id, Projects(round.store).items(project.id))
    counts = Counter[str](source for _, _, source in gathered(round, seq, after=round.standing.seq))
    if not any(True for _ in gathered(round, seq)):
        raise UserError(
            "there is no judgement to learn from", where=f"round {round.number}",
            fix="look whether those who should judge can: docs/loop.md, Sources",
        )  # fmt: skip
    round.say(f"{sum(counts.values())} new judgements: " + told(counts))
    return {"seq": seq, "judgements": sum(counts.values()), "by_source": dict(sorted(counts.items()))}


def new(round: Round) -> Counter[str]:
    """Judgements by source that no round has learned from."""
    return Counter(source for _, _, source in gathered(round, None, after=round.standing.seq))


def told(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {source}" for source, count in sorted(counts.items())) or "none"


def wait_for(round: Round, wanted: int, what: str, count: Callable[[], Counter[str]]) -> None:
    """Until so many are there; waiting.json says meanwhile what is waited for. Waiting where nobody waits."""
    path, seen, said = round.directory / "waiting.json", -1, -1
    while True:
        if (last := round.store.last_seq()) != seen:
            seen, found = last, count()
            have = sum(found.values())
            if have >= wanted:
                path.unlink(missing_ok=True)
                return
            if have != said:
                said = have
                about = {"round": round.number, "for": what, "have": have, "want": wanted}
                files.write_json(path, about | {"by_source": dict(found)})
                round.say(f"waits for {what}: {have} of {wanted}")
        if not round.wait:
            raise Waiting(f"round {round.number} waits for {what}: {said} of {wanted}")
        time.sleep(POLL_SECONDS)


# Files -----------------------------------------------------------------------------------------------------


def _take_files(round: Round) -> None:
    """What stands in the files and not in the store; a file that has grown since the last round brings what is new."""
    for path in round.config.data:
        meta = {LOOP: round.config.name, SOURCE: "files"}
        transfer.import_records(round.store, read_records(path), meta=meta)


# The simulated panel ---------------------------------------------------------------------------------------


def _ask_panel(round: Round) -> None:
    """So many of the seven an item, in turn; what they say depends on the round and the item alone."""
    asked = items_for(round, "panel")
    rows = read_rows(round.place / "samples.jsonl")
    seen = impressions(round, rows, "samples")
    out = {name for name, state in round.store.raters().items() if state != "active"}
    raters = [
        named
        for rater in panel.training_raters(round.config.seed)
        if (named := replace(rater, name=f"panel-{rater.column}")).name not in out
    ]
    round.store.add_items(item for item, _ in asked)
    with Bar(round.console, "judging", total=len(asked)) as bar:
        for number, (item, (first, second)) in enumerate(asked):
            for k in range(min(round.standing.overlap, len(raters))):
                rater = raters[(number + k) % len(raters)]
                said = opinions(rater, item, (seen[first], seen[second]), round.number, None)
                round.store.extend(said)
            bar.step(None)


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
        prompts = round.drawn("band", round.prompts, BAND_PROMPTS)
        rows = draw(round.model, prompts, 2, params, key, console=round.console)
        views = views_of(round.model, rows, "the start", seed=config.seed, console=round.console)
        files.write_json(path, asdict(Band.of(views)))
    return Band(**json.loads(path.read_text(encoding="utf-8")))


# The judge model -------------------------------------------------------------------------------------------


def _ask_judge(round: Round) -> None:
    """The judge compares each pair in both orders; two orders that disagree are a tie."""
    judge = judge_of(str(round.config.judge), round.model.trunk.dtype, round.model.trunk.device)
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
