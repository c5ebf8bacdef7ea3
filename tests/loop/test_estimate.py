"""A run's time and memory told beforehand: arithmetic on timelines made by hand, and what is asked of rehearsals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from little_data import demonstrations, preferences, write
from plaudit import config as configs
from plaudit.loop import estimate, excerpt
from plaudit.loop.prediction import (
    PER_CHARACTER,
    Sizes,
    a_step,
    from_steps,
    from_texts,
    grown,
    looking,
    saving,
)  # fmt: skip
from plaudit.loop.rehearsal import DoesNotFit, Timeline
from plaudit.recipes import bandit, dpo, evaluate, ilql, kto, ppo, reward_model, sft
from plaudit.types import UserError

SEEN = Timeline(
    ready=10.0, steps=(15.0, 18.0, 21.0), saved=22.0, end=25.0, memory=3000, disk=900, checkpoint=200
)


# The arithmetic ----------------------------------------------------------------------------------------------


def test_steps_are_told_from_a_few_of_them() -> None:
    found = from_steps(SEEN, steps=100, saves=10)
    # The first took 5 s, each of the 99 others 3; the rehearsal's finish has one save of 1 s, so nine are left.
    assert (found.setup, found.stepping, found.finish) == (10.0, 5 + 99 * 3 + 9, 4.0)
    assert found.total == 10 + 311 + 4
    # Three checkpoints of 200 stand at once, one of them in what the rehearsal left.
    assert (found.memory, found.disk, found.longest) == (3450, 900 + 2 * 200, None)
    assert from_steps(SEEN, steps=100, saves=1).disk == 900
    assert from_steps(SEEN, steps=3, saves=1).total == SEEN.end


def test_completions_that_grow_are_told_at_the_most() -> None:
    seen = Timeline(ready=10.0, steps=(15.0, 18.0), saved=None, end=20.0, memory=1, disk=1, length=16.0)
    found = from_steps(seen, steps=10, saves=1, most_tokens=64)
    assert found.longest == 10 + 4 * (5 + 9 * 3) + 2
    assert from_steps(seen, steps=10, saves=1, most_tokens=8).longest == found.total


def test_rounds_are_told_from_whole_rounds() -> None:
    seen = Timeline(ready=1.0, steps=(5.0, 6.0, 9.0, 10.0), saved=None, end=11.0, memory=1, disk=1)
    # A round of two steps took 5 s, the next one 4.
    assert from_steps(seen, steps=20, saves=0, each=2).stepping == 5 + 9 * 4


def test_no_step_is_no_prediction() -> None:
    with pytest.raises(UserError, match="ends before its first step"):
        from_steps(Timeline(1.0, (), None, 2.0, 1, 1), steps=10, saves=1)


@pytest.mark.parametrize(
    ("small", "large", "times", "whole"),
    [
        (3.0, 5.0, 1, 2 + 1000 / 100),  # 2 s and a hundredth a character
        (3.0, 5.0, 3, 2 + 3 * 1000 / 100),
        (4.0, 4.0, 1, 4.0),  # nothing grows
        (4.0, 3.9, 1, 3.9),  # nor shrinks
        (1.0, 5.0, 1, 5 * 1000 / 300),  # nothing is constant, either
    ],
)
def test_what_grows_with_the_text_is_told_apart(
    small: float, large: float, times: float, whole: float
) -> None:
    assert grown(small, large, Sizes(100, 300, 1000), times) == pytest.approx(whole)


def test_what_was_rehearsed_whole_is_told_as_it_was() -> None:
    assert grown(7.0, 7.0, Sizes(500, 500, 500)) == 7.0
    assert grown(7.0, 7.0, Sizes(500, 500, 500), times=3) == 21.0


def test_a_run_on_data_is_told_from_two_parts_of_it() -> None:
    small = Timeline(ready=6.0, steps=(8.0, 9.0), saved=9.5, end=11.5, memory=3000, disk=900, checkpoint=200)
    large = replace(small, ready=8.0, steps=(10.0, 12.0, 14.0, 15.0), saved=15.5, end=18.5, memory=2900)
    found = from_texts(small, large, Sizes(100, 300, 1000), steps=60, saves=3, epochs=2, passes=2.0)
    # Setup: 5 s and 0.01 s a character, twice; steps: 1 s once, 0.02 s a character in each of two epochs, and two saves
    # of half a second more; finish: 2.5 s in the first, 3.5 in the second.
    assert found.setup == pytest.approx(5 + 2 * 10)
    assert found.stepping == pytest.approx(1 + 2 * 20 + 2 * 0.5)
    assert found.finish == pytest.approx(2 + 1000 * 0.005)
    assert (found.steps, found.disk) == (60, 900 + 2 * 200)
    assert found.memory == 3450 + PER_CHARACTER * 700


def test_measuring_more_often_is_counted() -> None:
    seen = Timeline(ready=0.0, steps=(3.0, 4.0, 5.0, 8.0), saved=None, end=9.0, memory=1, disk=1)
    assert looking(seen) == 2.0
    sizes = Sizes(400, 400, 800)
    often, once = (from_texts(seen, seen, sizes, steps=8, saves=1, looks=n).stepping for n in (3, 0))
    assert often - once == 3 * 2 * 2.0


def test_a_save_and_a_step_are_read_off_a_timeline() -> None:
    assert (saving(SEEN), a_step(SEEN)) == (1.0, 3.0)
    one = Timeline(ready=2.0, steps=(5.0,), saved=None, end=6.0, memory=1, disk=1)
    assert (saving(one), a_step(one)) == (0.0, 3.0)


# A part of the data ------------------------------------------------------------------------------------------


def config_of(recipe: Any, **settings: Any) -> Any:
    return configs.parse(recipe.Config, settings, "test")


def test_a_part_has_its_share_of_the_held_out_and_the_longest(tmp_path: Path) -> None:
    path = Path(demonstrations(tmp_path, 400))
    path.write_text(path.read_text() + json.dumps({"prompt": "long", "completion": " word" * 99}) + "\n")
    config = config_of(sft, data=[str(path)], heldout=0.25, batch_size=8)
    texts = excerpt.read_texts("sft", config)
    part = texts.part(5)
    assert (part.units, part.batch) == (40, 8)
    assert len(part.pieces) - 40 == round(40 / texts.units * (401 - texts.units))
    longest = {piece for piece in texts.pieces if piece.text > 400}
    assert longest < set(part.pieces)
    assert 0.1 < part.text / texts.text < 0.2
    assert texts.part(5) == part != excerpt.read_texts("sft", config.model_copy(update={"seed": 1})).part(5)
    named = part.write(tmp_path / "part")
    rows = Path(named["data"][0]).read_text().splitlines()
    assert len(rows) == len(part.pieces)
    assert set(rows) <= {json.dumps(json.loads(line)) for line in path.read_text().splitlines()}


def test_every_file_is_in_every_part_under_its_name(tmp_path: Path) -> None:
    first, second = demonstrations(tmp_path, 100), str(tmp_path / "other.v2.jsonl")
    write(Path(second), [{"prompt": "the only one", "completion": " here"}])
    text = tmp_path / "plain.txt"
    text.write_text("once upon a time " * 100)
    config = config_of(sft, data=[first, second, str(text)], heldout=0, batch_size=4, window=8)
    named = excerpt.read_texts("sft", config).part(1).write(tmp_path / "part")["data"]
    assert [Path(path).name for path in named] == ["demonstrations.jsonl", "other.jsonl", "plain.txt"]
    assert all(Path(path).read_text() for path in named)
    assert len(text.read_text()) > len(Path(named[2]).read_text())


TIE = {"prompt": "a", "completions": [" x", " y"], "choice": "tie"}
SAME = {"prompt": "b", "completions": [" x", " x"], "choice": 0}
ONE = {"prompt": "c", "completions": [" x", " y"], "choice": 1}
TWO = {"prompt": "c", "completions": [" z", " y"], "choice": 0}


@pytest.mark.parametrize(
    ("recipe", "settings", "units"),
    [
        (sft, {"rows": [{"prompt": "a", "completion": " x"}] * 3}, 3),
        (dpo, {}, 2),
        (dpo, {"ties": "drop"}, 1),
        (reward_model, {}, 3),
        (kto, {}, 2),  # of c x lost, z won, y did both; of a nothing is decided, nor of b
        (ilql, {}, 8),
    ],
)
def test_steps_are_counted_as_the_recipe_does(
    tmp_path: Path, recipe: Any, settings: dict[str, Any], units: int
) -> None:
    rows = settings.pop("rows", [TIE, SAME, ONE, TWO])
    config = config_of(recipe, data=[write(tmp_path / "data.jsonl", rows)], heldout=0, **settings)
    assert excerpt.read_texts(recipe.__name__.rpartition(".")[2], config).units == units


def test_rows_and_prompts_are_parted_too(tmp_path: Path) -> None:
    rows = [{"prompt": f"text {i}", "completion": "ab"[i % 2], "reward": 0.5} for i in range(50)]
    log = write(tmp_path / "log.jsonl", rows)
    texts = excerpt.read_texts("bandit", config_of(bandit, data=[log], heldout=0, batch_size=4))
    assert excerpt.labels_of(texts) == ["a", "b"]
    part = texts.part(2).write(tmp_path / "part")["data"][0]
    assert [json.loads(line) in rows for line in Path(part).read_text().splitlines()] == [True] * 8
    config = config_of(evaluate, models=["tiny"], prompts=log)
    named = excerpt.read_texts("evaluate", config).part(2).write(tmp_path / "asked")
    assert len(Path(named["prompts"]).read_text().splitlines()) == 2 * excerpt.AT_ONCE


# What is asked of rehearsals ---------------------------------------------------------------------------------


Fake = Callable[[Callable[[dict[str, Any]], Timeline]], list[dict[str, Any]]]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Rehearsals that are made up from their settings; returns the settings of each."""

    def given(seen: Callable[[dict[str, Any]], Timeline]) -> list[dict[str, Any]]:
        asked: list[dict[str, Any]] = []

        def rehearse(settings: str, *_: Any, **__: Any) -> Timeline:
            asked.append(yaml.safe_load(settings))
            return seen(asked[-1])

        monkeypatch.setattr(estimate, "rehearse", rehearse)
        return asked

    return given


def steps_of(tree: dict[str, Any]) -> Timeline:
    """A setup of 10 s, steps of 2 s after a first of 4, a finish of 3 s with its save of 1."""
    ends = tuple(14.0 + 2 * i for i in range(tree["steps"]))
    return Timeline(10.0, ends, ends[-1] + 1, ends[-1] + 3, 2000 + tree["steps"], 500, 100, length=32.0)


def online(**settings: Any) -> Any:
    return config_of(ppo, prompts="p.txt", reward="plaudit.reward.rules:length", **settings)


def examined(recipe: str, config: Any, memory: float | None = None) -> tuple[dict[str, str], bool]:
    """What is told, by its name."""
    lines, fits = estimate.examine(recipe, config, memory)
    return {line[8:24].strip(): line[:8].strip() + " " + line[24:] for line in lines}, fits


def test_what_samples_is_rehearsed_twice_as_it_is(fake: Fake) -> None:
    config = online(steps=100, checkpoint_every=5, micro_batch_tokens=999)
    asked = fake(steps_of)
    told, fits = examined("ppo", config)
    assert fits
    assert [tree["steps"] for tree in asked] == [2, 15]  # of 2 s each, half a minute
    assert [tree["checkpoint_every"] for tree in asked] == [2, 15]
    for tree in asked:
        assert tree.pop("recipe") == "ppo"
        changed = {k for k, v in config.model_dump(mode="json").items() if tree[k] != v}
        assert changed == {"steps", "checkpoint_every"}
    # 10 s; 4 + 99 x 2 and 19 saves more; 3 s. 32 tokens of 64: at most twice the steps' time.
    assert told["in all"] == "-- 3.9 min"
    assert told["at the most"].startswith("-- 7.6 min, if every completion had 64")
    assert told["steps"].startswith("-- 100 of 2.2 s")
    assert "32 tokens on average" in told["assumed"]


def test_a_short_run_is_rehearsed_once_and_whole(fake: Fake) -> None:
    asked = fake(steps_of)
    told, _ = examined("ppo", online(steps=2))
    assert [tree["steps"] for tree in asked] == [2]
    assert told["in all"] == "-- 19.0 s"


def test_a_bandit_that_chooses_is_rehearsed_in_rounds(fake: Fake) -> None:
    def seen(tree: dict[str, Any]) -> Timeline:
        ends = tuple(10.0 + 5 * (i + 1) for i in range(tree["rounds"] * tree["steps_per_round"]))
        return Timeline(10.0, ends, ends[-1], ends[-1] + 3, 2000, 500, 100)

    asked = fake(seen)
    config = config_of(
        bandit, data=[], contexts="c.txt", reward="m:f", labels=["a", "b"], rounds=20, steps_per_round=1
    )
    told, _ = examined("bandit", config)
    assert [(tree["rounds"], tree["checkpoint_every"]) for tree in asked] == [(2, 2), (6, 6)]
    assert told["steps"] == "-- 20 of 5.0 s: 1.7 min"
    assert "at the most" not in told


def test_what_reads_data_is_rehearsed_on_two_parts_of_it(fake: Fake, tmp_path: Path) -> None:
    lines: list[int] = []

    def seen(tree: dict[str, Any]) -> Timeline:
        lines.append(len(Path(tree["data"][0]).read_text().splitlines()))
        ends = tuple(10.0 + 5 * (i + 1) for i in range(tree["checkpoint_every"]))
        return Timeline(10.0, ends, ends[-1], ends[-1] + 3, 2000, 500, 100)

    config = config_of(
        dpo, data=[preferences(tmp_path, 480)], prompts_per_step=8, heldout=0, epochs=3, checkpoint_every=50
    )
    asked = fake(seen)
    told, _ = examined("dpo", config)
    assert lines == [16, 48]
    assert [tree["epochs"] for tree in asked] == [1, 1]
    assert not Path(asked[0]["data"][0]).exists()
    assert told["steps"].startswith("-- 180 of ")
    # 10 s, 180 steps of 5 and 3 s; the longest prompt is in both parts, which says that the others are shorter.
    assert float(told["in all"].split()[1]) == pytest.approx((10 + 180 * 5 + 3) / 60, rel=0.06)
    with pytest.raises(UserError, match="there is no such file"):
        estimate.examine("dpo", config.model_copy(update={"data": ["none.jsonl"]}), None)


@pytest.mark.parametrize(
    ("recipe", "settings", "counted"),
    [
        # 100 prompts, 30 a step: 4 steps an epoch, and where epochs follow each other without a break 10 in all.
        (dpo, {"prompts_per_step": 30, "epochs": 3}, {"steps": 12, "saves": 2, "looks": 0, "passes": 1}),
        (reward_model, {"prompts_per_step": 30, "epochs": 3}, {"steps": 10, "saves": 1, "looks": 0}),
        # Two completions a prompt.
        (ilql, {"batch_size": 30}, {"steps": 21, "saves": 3, "epochs": 3}),
        (kto, {"batch_size": 30, "epochs": 3}, {"steps": 21, "saves": 3, "passes": 2}),
    ],
)
def test_a_run_on_data_is_counted_as_the_recipe_goes(
    tmp_path: Path,
    fake: Fake,
    monkeypatch: pytest.MonkeyPatch,
    recipe: Any,
    settings: dict[str, Any],
    counted: dict[str, Any],
) -> None:
    given: dict[str, Any] = {}

    def told(*parts: Any, **named: Any) -> Any:
        given.update(named)
        return from_texts(*parts, **named)

    monkeypatch.setattr(estimate, "from_texts", told)
    fake(lambda _: SEEN)
    data = [preferences(tmp_path, 100)]
    config = config_of(recipe, data=data, heldout=0, checkpoint_every=7).model_copy(update=settings)
    examined(recipe.__name__.rpartition(".")[2], config)
    assert given == given | counted


def test_measuring_and_saving_often_is_counted(
    tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def told(*parts: Any, **named: Any) -> Any:
        given.update(named)
        return from_texts(*parts, **named)

    monkeypatch.setattr(estimate, "from_texts", told)
    asked = fake(lambda _: SEEN)
    data = [demonstrations(tmp_path, 100)]
    config = config_of(
        sft, data=data, heldout=0, batch_size=10, epochs=2, evaluate_every=3, checkpoint_every=4
    )
    examined("sft", config)
    assert (given["steps"], given["saves"], given["looks"]) == (20, 5, 7 - 2)
    assert [(tree["epochs"], tree["evaluate_every"]) for tree in asked] == [(1, None)] * 2


def test_a_part_that_says_nothing_is_made_larger(fake: Fake, tmp_path: Path) -> None:
    path = preferences(tmp_path, 320)
    sizes: list[int] = []

    def seen(tree: dict[str, Any]) -> Timeline:
        sizes.append(len(Path(tree["data"][0]).read_text().splitlines()))
        if sizes[-1] < 60:
            raise UserError("all 16 comparisons are ties", where=tree["data"][0])
        return Timeline(10.0, (20.0, 40.0), 40.0, 43.0, 2000, 500, 100)

    fake(seen)
    config = config_of(dpo, data=[path], heldout=0)
    assert examined("dpo", config)[1]
    assert sizes == [16, 64, 3 * 64]

    def refused(tree: dict[str, Any]) -> Timeline:
        sizes.append(0)
        raise UserError("is a rating, not a comparison", where=f"{tree['data'][0]}: record 3")

    del sizes[:]
    fake(refused)
    with pytest.raises(UserError, match=rf"^{path}: record 3: is a rating.*\(counted in the part"):
        estimate.examine("dpo", config, None)
    assert sizes == [0]


def test_what_does_not_fit_is_told_with_what_does(fake: Fake) -> None:
    def seen(tree: dict[str, Any]) -> Timeline:
        if tree["micro_batch_tokens"] > 1024:
            raise DoesNotFit(3_100_000_000)
        return steps_of(tree)

    asked = fake(seen)
    told, fits = examined("ppo", online(micro_batch_tokens=4096), memory=3.0)
    assert not fits
    assert told["memory"].startswith("no more than 3.1 GB, where 3.0 GB")
    assert told["change"].startswith("ok micro_batch_tokens=1024: 0.00 GB")
    # As it is; the least that could help; then halves from above.
    assert [tree["micro_batch_tokens"] for tree in asked] == [4096, 256, 2048, 1024]


def test_where_no_micro_batch_fits_an_adapter_may(fake: Fake) -> None:
    def seen(tree: dict[str, Any]) -> Timeline:
        if tree["adapter"]["rank"] == 0:
            raise DoesNotFit(3_100_000_000)
        return steps_of(tree)

    asked = fake(seen)
    told, _ = examined("ppo", online(adapter={"rank": 0}), memory=3.0)
    assert told["change"].startswith("ok adapter.rank=16: ")
    assert len(asked) == 3

    def never(_: dict[str, Any]) -> Timeline:
        raise DoesNotFit(3_100_000_000)

    fake(never)
    told, _ = examined("ppo", online(), memory=3.0)
    assert told["change"].startswith("-- a smaller micro_batch_tokens is not enough; not rehearsed: ")
    assert "a smaller model" in told["change"]


def test_a_prediction_beyond_the_room_does_not_fit(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    def seen(tree: dict[str, Any]) -> Timeline:
        found = steps_of(tree)
        return Timeline(found.ready, found.steps, found.saved, found.end, 2_000_000_000, 500, 100)

    fake(seen)
    assert examined("ppo", online(), memory=2.77)[1]
    told, fits = examined("ppo", online(), memory=2.74)  # a fifth is left for what a rehearsal does not see
    assert not fits
    assert told["memory"] == "no 2.30 GB, where 2.7 GB are to be had"
    assert told["change"].startswith("-- ")  # no change makes it smaller
    monkeypatch.setattr(estimate, "free_disk", lambda _: 600)  # 500, and two checkpoints more of 100
    assert not examined("ppo", online(), memory=2.77)[1]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.5, "0.50 s"), (9.96, "10.0 s"), (90, "1.5 min"), (5400, "1.5 h")]
)
def test_times_are_spoken_shortly(seconds: float, words: str) -> None:
    assert estimate.spoken(seconds) == words
