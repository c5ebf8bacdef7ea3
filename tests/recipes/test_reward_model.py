"""The reward_model recipe as it is run: it learns what people prefer, and refuses what teaches nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from plaudit.config import parse
from plaudit.data.formats import write_records
from plaudit.data.judged import Pair, Ranked, group_by_prompt, known_ids, prompt_key, split_by_prompt
from plaudit.models.branch import Branch, ScalarHead
from plaudit.models.load import load_model
from plaudit.randomness import rng
from plaudit.recipes import reward_model
from plaudit.reward.judgements import Reading, begin
from plaudit.reward.model import RewardModel, load_reward_model
from plaudit.reward.probe import fit_head, states_of
from plaudit.training import checkpoint
from plaudit.training.metrics import Metrics
from plaudit.types import Demonstration, Message, Preference, Ranking, Rating, Record, UserError
from tiny_models import as_samples

WORDS = (
    "morning",
    "tea",
    "coffee",
    "dog",
    "cat",
    "rain",
    "sun",
    "music",
    "film",
    "work",
    "home",
    "bread",
    "city",
)
GOOD = "wonderful"


def sentence(seed: int, good: bool) -> str:
    """Three to six words, one of them the wanted one or none."""
    draw = rng("sentence", seed)
    words = [str(word) for word in draw.choice(WORDS, int(draw.integers(3, 7)))]
    if good:
        words[int(draw.integers(len(words)))] = GOOD
    return " ".join(words)


def preferences(prompts: int, each: int = 2) -> list[Record]:
    """Whoever was asked prefers the completion with the wanted word, wherever it stood."""
    found: list[Record] = []
    for prompt in range(prompts):
        for pair in range(each):
            seed = 10 * prompt + pair
            first = bool(rng("side", seed).random() < 0.5)
            texts = sentence(2 * seed, good=first), sentence(2 * seed + 1, good=not first)
            found.append(Preference(f"say {prompt}", texts, choice=0 if first else 1))
    return found


def write(path: Path, records: list[Record]) -> str:
    write_records(records, path)
    return str(path)


@pytest.fixture
def config(tmp_path: Path) -> reward_model.Config:
    return reward_model.Config(
        model="tiny",
        data=[write(tmp_path / "data.jsonl", preferences(24))],
        adapter=reward_model.AdapterConfig(rank=4, alpha=8.0, blocks=2),
        prompts_per_step=4,
        learning_rate=5e-3,
        precision="float64",
        threads=1,
        checkpoint_every=2,
    )


def changed(config: reward_model.Config, **settings: Any) -> reward_model.Config:
    return reward_model.Config.model_validate(config.model_dump() | settings)


def rows(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def weights(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((directory / "model").glob("*.safetensors"))}


def loaded(directory: Path) -> RewardModel:
    return load_reward_model(directory / "model", load_model("tiny", torch.float64))


def test_it_learns_a_preference(config: reward_model.Config, tmp_path: Path) -> None:
    """Held-out prompts and sentences that it never saw; chance is a half, and length says nothing."""
    data = [write(tmp_path / "more.jsonl", preferences(120))]
    config = changed(config, data=data, epochs=3, prompts_per_step=8, precision="float32")
    summary = reward_model.run(config, tmp_path / "run")
    assert summary["heldout_comparisons"] > 30
    assert summary["heldout_accuracy"] > 0.9
    assert summary["length_only_accuracy"] < 0.75
    logged = rows(tmp_path / "run")
    assert logged[0]["loss"] == pytest.approx(math.log(2), abs=0.3)
    assert np.mean([row["loss"] for row in logged[-5:]]) < 0.3
    assert logged[-1]["learning_rate"] < logged[0]["learning_rate"] == 5e-3
    model = load_model("tiny", torch.float32)
    reward = load_reward_model(tmp_path / "run" / "model", model)
    texts = [sentence(10_000 + i, good=i % 2 == 0) for i in range(40)]
    scores = reward.score_ids(
        [model.tokenizer.encode("say 7")] * 40, [model.tokenizer.complete(t) for t in texts]
    )
    assert np.mean(scores[::2]) - np.mean(scores[1::2]) > 1.0, (
        "in units of the reference's standard deviation"
    )


@pytest.mark.proof
def test_it_learns_from_rankings_and_ratings(config: reward_model.Config, tmp_path: Path) -> None:
    """The same wish said in two other ways."""
    rankings: list[Record] = []
    ratings: list[Record] = []
    for prompt in range(80):
        texts = tuple(sentence(1000 + 5 * prompt + i, good=i == prompt % 3) for i in range(3))
        best = prompt % 3
        rankings.append(Ranking(f"say {prompt}", texts, (best, (best + 1) % 3, (best + 2) % 3)))
        ratings += [Rating(f"say {prompt}", t, {"overall": 0.9 if GOOD in t else 0.1}) for t in texts]
    heard = preferences(80)
    for name, records in (("rankings", rankings), ("ratings", ratings)):
        data = [write(tmp_path / f"{name}.jsonl", records)]
        settings = {"data": data, "epochs": 4, "heldout": 0.0, "precision": "float32"}
        summary = reward_model.run(changed(config, **settings), tmp_path / name)
        assert summary["heldout_accuracy"] is None
        model = load_model("tiny", torch.float32)
        reward = load_reward_model(tmp_path / name / "model", model)
        judged = group_by_prompt(heard, model.tokenizer, {}, context=256)
        right = [
            (scores[pair.a] > scores[pair.b]) == (pair.target == 1.0)
            for group in judged
            for scores in [reward.score_ids([group.prompt] * len(group.completions), group.completions)]
            for pair in group.pairs
        ]
        assert np.mean(right) > 0.8, name


@pytest.mark.parametrize("with_reference", [True, False])
def test_reference_samples_score_mean_0_and_std_1(
    config: reward_model.Config, tmp_path: Path, with_reference: bool
) -> None:
    """As reloaded from disk; without reference samples, the training completions are the reference."""
    model = load_model("tiny", torch.float64)
    reference: list[Record] = [
        Demonstration(f"say {i}", sentence(500 + i, good=i % 3 == 0)) for i in range(20)
    ]
    if with_reference:
        config = changed(config, reference=[write(tmp_path / "reference.jsonl", reference)])
        judged = group_by_prompt(reference, model.tokenizer, {}, context=256)
    else:
        records = preferences(24)
        judged, _ = split_by_prompt(group_by_prompt(records, model.tokenizer, {}, context=256), 0.2, 0)
    reward_model.run(config, tmp_path / "run")
    scores = loaded(tmp_path / "run").score_ids(
        [g.prompt for g in judged for _ in g.completions], [c for g in judged for c in g.completions]
    )
    assert abs(np.mean(scores)) < 1e-6
    assert abs(np.std(scores) - 1) < 1e-6


def test_the_score_is_the_same_whatever_the_batch(config: reward_model.Config, tmp_path: Path) -> None:
    reward_model.run(config, tmp_path / "run")
    reward = loaded(tmp_path / "run")
    prompts = [[5, 6, 7]] * 4 + [[8]] * 3
    completions = [[9, 10, 1], [11, 1], [9, 10, 1], [12] * 9, [13, 1], [14, 15, 16, 17], [1]]
    together = reward.score_ids(prompts, completions)
    alone = [reward.score_ids([p], [c])[0] for p, c in zip(prompts, completions, strict=True)]
    order = [3, 6, 0, 5, 2, 1, 4]
    shuffled = reward.score_ids([prompts[i] for i in order], [completions[i] for i in order])
    reward.budget = 1
    split = reward.score_ids(prompts, completions)
    for other in (alone, split, [shuffled[order.index(i)] for i in range(7)]):
        assert max(abs(a - b) for a, b in zip(together, other, strict=True)) < 1e-10
    assert together[0] == pytest.approx(together[2], abs=1e-10)
    assert len({round(s, 8) for s in together}) == 6
    model = reward.model
    assert reward.score(as_samples(prompts, completions, model.tokenizer)) == pytest.approx(
        together, abs=1e-10
    )
    assert reward.score_ids([], []) == []


def test_the_split_into_micro_batches_changes_nothing(config: reward_model.Config, tmp_path: Path) -> None:
    """Comparisons and ratings together, several comparisons to a prompt."""
    rated = [Rating(f"say {i}", sentence(i, good=i % 2 == 0), {"overall": i / 16}) for i in range(16)]
    records = [*preferences(16, each=3), *rated]
    config = changed(config, data=[write(tmp_path / "both.jsonl", records)])
    found = []
    for budget in (100_000, 1):
        reward_model.run(changed(config, micro_batch_tokens=budget), tmp_path / str(budget))
        found.append(rows(tmp_path / str(budget)))
    for one, two in zip(*found, strict=True):
        assert one == pytest.approx(two, rel=1e-9, abs=1e-9, nan_ok=True)
    scores = [loaded(tmp_path / str(b)).score_ids([[5]], [[9, 10, 1]])[0] for b in (100_000, 1)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-8)


class Killed(BaseException):
    """What no handler of the recipe's may swallow."""


@pytest.mark.parametrize("at", [1, 2, 3, 5])
@pytest.mark.parametrize("point", ["before the row", "after the row", "after saving", "at the end"])
def test_a_killed_run_that_goes_on_ends_with_the_same_bits(
    config: reward_model.Config, tmp_path: Path, at: int, point: str
) -> None:
    log, save = Metrics.log, checkpoint.save
    calls = [0]

    def logged(self: Metrics, step: int, *args: Any) -> None:
        if point == "before the row" and step == at:
            raise Killed
        log(self, step, *args)
        if point == "after the row" and step == at:
            raise Killed

    def saved(*args: Any, **kwargs: Any) -> None:
        save(*args, **kwargs)
        calls[0] += 1
        if point == "after saving" and calls[0] == min(at, 2):
            raise Killed

    def measured(*_: Any) -> None:
        raise Killed

    reward_model.run(config, tmp_path / "unbroken")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Metrics, "log", logged)
        monkeypatch.setattr(checkpoint, "save", saved)
        if point == "at the end":
            monkeypatch.setattr(reward_model, "measure", measured)
        with pytest.raises(Killed):
            reward_model.run(config, tmp_path / "broken")
    assert not (tmp_path / "broken" / "summary.json").exists()
    reward_model.run(config, tmp_path / "broken")
    assert rows(tmp_path / "broken") == rows(tmp_path / "unbroken")
    assert weights(tmp_path / "broken") == weights(tmp_path / "unbroken")
    assert len(weights(tmp_path / "broken")) == 2
    first, second = ((tmp_path / d / "summary.json").read_text() for d in ("unbroken", "broken"))
    assert first == second


@pytest.mark.parametrize(
    ("records", "said"),
    [
        (
            [Preference("a", ("x", "y"), "tie"), Preference("b", ("x", "z"), "both_bad")],
            "all 2 comparisons are ties",
        ),
        (
            [Rating("a", "x", {"overall": 0.5}), Rating("b", "y", {"overall": 0.5})],
            "all ratings are the same",
        ),
        ([Rating("a", "x", {"overall": 0.5})], "all ratings are the same"),
        (
            [Preference("a", ("x", "y"), 0), Preference("a", ("y", "x"), 0)],
            "all 2 comparisons cancel each other, so there is nothing to learn; collect more judgements",
        ),
        (
            [Rating("a", x, {"overall": y}) for x in "xy" for y in (0.0, 1.0)],
            "the ratings of every completion come to the same, so there is nothing to learn; collect more",
        ),
        ([Demonstration("a", "x")], "no comparisons and no ratings"),
        ([Preference("a", ("x", "x"), 0)], "no comparisons and no ratings"),
        ([Preference("a", ("x", "y" * 600), 0)], "has .* tokens, the model takes 256"),
        ([Preference("a " * 300, ("x", "y"), 0)], "has .* tokens, the model takes 256"),
    ],
)
def test_what_teaches_nothing_is_refused(
    config: reward_model.Config, tmp_path: Path, records: list[Record], said: str
) -> None:
    data = [write(tmp_path / "nothing.jsonl", records)]
    with pytest.raises(UserError, match=said):
        reward_model.run(changed(config, data=data, heldout=0.0), tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


def test_ties_beside_choices_are_learned_from(config: reward_model.Config, tmp_path: Path) -> None:
    records = [*preferences(8), Preference("say 1", ("dog", "cat"), "tie")]
    reward_model.run(changed(config, data=[write(tmp_path / "d.jsonl", records)]), tmp_path / "run")


def test_no_prompt_is_on_both_sides(config: reward_model.Config, tmp_path: Path) -> None:
    """However many judgements it has, in whatever order they came; its side depends on itself and the seed."""
    tokenizer = load_model("tiny", torch.float64).tokenizer
    records = preferences(60, each=3)
    judged = group_by_prompt(records, tokenizer, {}, context=256)
    assert len(judged) == 60
    assert all(len(group.pairs) == 3 for group in judged)
    training, heldout = split_by_prompt(judged, 0.3, 5)
    assert len(training) + len(heldout) == 60
    assert not {g.key for g in training} & {g.key for g in heldout}
    assert 8 <= len(heldout) <= 30
    again, _ = split_by_prompt(group_by_prompt(records[::-1], tokenizer, {}, context=256), 0.3, 5)
    assert {g.key for g in again} == {g.key for g in training}
    fewer, _ = split_by_prompt(judged[:20], 0.3, 5)
    assert {g.key for g in fewer} <= {g.key for g in training}
    assert {g.key for g in split_by_prompt(judged, 0.3, 6)[0]} != {g.key for g in training}
    summary = reward_model.run(changed(config, heldout=0.5), tmp_path / "run")
    assert summary["prompts"] + summary["heldout_prompts"] == 24
    assert summary["heldout_comparisons"] == 2 * summary["heldout_prompts"]


def test_judgements_are_gathered_by_hand() -> None:
    tokenizer = load_model("tiny", torch.float64).tokenizer
    dialogue = (Message("user", "Hi"),)
    (group, other) = group_by_prompt(
        [
            Preference("p", ("a", "b"), 1, strength=3, presented=(1, 0), rater="ada"),
            Ranking("p", ("c", "b", "a"), (2, 0, 1), rater="bo"),
            Rating("p", "b", {"overall": 0.25, "style": 1.0}),
            Rating("p", "d", {"style": 1.0, "truth": 0.5}),
            Preference(dialogue, ("a", "b"), "both_bad"),
        ],
        tokenizer, {(prompt_key("p"), "c"): [7, 8]}, context=256,
    )  # fmt: skip
    assert group.texts == ["a", "b", "c", "d"]
    assert group.prompt == tokenizer.render("p")
    assert group.completions == [
        tokenizer.complete("a"),
        tokenizer.complete("b"),
        [7, 8],
        tokenizer.complete("d"),
    ]
    assert [pair[:3] for pair in group.pairs] == [(0, 1, 0.0), (0, 2, 1.0), (0, 1, 1.0), (2, 1, 1.0)]
    assert group.pairs[0] == Pair(0, 1, 0.0, strength=3, rater="ada", shown_first=1)
    assert [pair.ranking for pair in group.pairs] == [None, 0, 0, 0]
    assert group.rankings == [Ranked((0, 2, 1), "bo")]
    assert group.ratings[0].scores == {"overall": 0.25, "style": 1.0}
    assert [rated[:2] for rated in group.ratings] == [(1, 0.25), (3, 0.75)]
    assert [pair[:3] for pair in other.pairs] == [(0, 1, 0.5)]
    assert other.prompt == tokenizer.render(dialogue)


def test_sampled_ids_are_used_where_they_are_this_tokenizers(tmp_path: Path) -> None:
    tokenizer = load_model("tiny", torch.float64).tokenizer
    path = tmp_path / "samples.jsonl"
    row = {"prompt": "p", "completion": "good", "completion_ids": [7, 8], "tokenizer": tokenizer.fingerprint}
    foreign = row | {"completion": "bad", "tokenizer": "another"}
    path.write_text(f"{json.dumps(row)}\n{json.dumps(foreign)}\n")
    ids = known_ids([str(path)], tokenizer.fingerprint)
    assert ids == {(prompt_key("p"), "good"): [7, 8]}
    with pytest.raises(UserError, match="nowhere"):
        known_ids([str(tmp_path / "nowhere.jsonl")])


def test_a_reward_model_of_another_tokenizer_or_none_is_refused(
    config: reward_model.Config, tmp_path: Path
) -> None:
    reward_model.run(config, tmp_path / "run")
    model = load_model("tiny", torch.float64)
    about = tmp_path / "run" / "model" / "reward_model.json"
    text = about.read_text()
    about.write_text(json.dumps(json.loads(text) | {"tokenizer": "another"}))
    with pytest.raises(UserError, match="another model"):
        load_reward_model(tmp_path / "run" / "model", model)
    about.write_text(text)
    load_reward_model(
        tmp_path / "run" / "model", load_model("tiny", torch.bfloat16)
    )  # the same weights, rounded
    with torch.no_grad():
        model.trunk.norm[3] += 0.1
    with pytest.raises(UserError, match="another model"):
        load_reward_model(tmp_path / "run" / "model", model)
    about.write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        load_reward_model(tmp_path / "run" / "model", model)
    about.unlink()
    with pytest.raises(UserError, match="holds no reward model"):
        load_reward_model(tmp_path / "run" / "model", model)


def test_a_broken_head_is_refused(config: reward_model.Config, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    reward_model.run(config, tmp_path / "run")
    path = tmp_path / "run" / "model" / "head.safetensors"
    head = load_file(path)
    model = load_model("tiny", torch.float64)
    save_file(head | {"weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="head"):
        load_reward_model(tmp_path / "run" / "model", model)
    save_file({name: tensor for name, tensor in head.items() if name != "gain"}, path)
    with pytest.raises(UserError, match="head"):
        load_reward_model(tmp_path / "run" / "model", model)


def test_a_sample_of_another_tokenizer_is_not_read_as_ours(
    config: reward_model.Config, tmp_path: Path
) -> None:
    """Its prompt is known by foreign ids alone, which would be other words here."""
    reward_model.run(config, tmp_path / "run")
    samples = as_samples([[5, 6]], [[7, 1]])
    with pytest.raises(UserError, match="tokenizer"):
        loaded(tmp_path / "run").score(samples)


def test_a_run_that_diverges_says_so(config: reward_model.Config, tmp_path: Path) -> None:
    """At the first step whose loss is no number; or, where that is the last step's doing, before it is written."""
    with pytest.raises(UserError, match=r"the loss is not a number at step 2; lower the learning rate"):
        reward_model.run(changed(config, learning_rate=1e200), tmp_path / "run")
    assert len(rows(tmp_path / "run")) == 1
    once = changed(config, learning_rate=1e308, prompts_per_step=100)
    with pytest.raises(
        UserError, match="a weight is not a number after the last step; lower the learning rate"
    ):
        reward_model.run(once, tmp_path / "once")
    assert len(rows(tmp_path / "once")) == 1
    assert not (tmp_path / "once" / "model").exists()


def test_a_score_that_is_not_a_number_is_refused(config: reward_model.Config, tmp_path: Path) -> None:
    reward_model.run(config, tmp_path / "run")
    reward = loaded(tmp_path / "run")
    assert reward.branch.head is not None
    reward.branch.head.gain.fill_(math.nan)
    with pytest.raises(UserError, match="not a number"):
        reward.score_ids([[5]], [[7]])


@pytest.mark.parametrize(
    "settings",
    [
        {"data": []}, {"heldout": 1.0}, {"epochs": 0}, {"prompts_per_step": 0}, {"learning_rate": -1e-4}, {"exit": 0.0},
        {"exit": 1.5}, {"adapter": {"rank": 0}}, {"max_grad_norm": 0.0}, {"checkpoint_every": 0}, {"pool": "first"},
        {"learning_rate": 0.0},
    ],
    ids=str,
)  # fmt: skip
def test_a_setting_without_meaning_is_refused(config: reward_model.Config, settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        parse(reward_model.Config, config.model_dump() | settings, "a.yaml")


@pytest.mark.parametrize("settings", [{"exit": 0.5, "pool": "mean"}, {"exit": 0.5, "probe": True}], ids=str)
def test_an_early_exit_is_saved_and_loaded(
    config: reward_model.Config, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """A reward that leaves the trunk half-way scores the same as reloaded, and a killed run of it goes on."""
    config = changed(config, **settings)
    summary = reward_model.run(config, tmp_path / "run")
    reward = loaded(tmp_path / "run")
    assert reward.branch.exit == 2
    assert reward.branch.pool == config.pool
    alone = [reward.score_ids([[5]], [c])[0] for c in ([7, 8, 1], [9, 1])]
    assert reward.score_ids([[5], [5]], [[7, 8, 1], [9, 1]]) == pytest.approx(alone, abs=1e-10)
    log = Metrics.log

    def killed(self: Metrics, step: int, *args: Any) -> None:
        log(self, step, *args)
        if step == 3:
            raise Killed

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Metrics, "log", killed)
        with pytest.raises(Killed):
            reward_model.run(config, tmp_path / "broken")
    assert reward_model.run(config, tmp_path / "broken") == summary
    assert weights(tmp_path / "broken") == weights(tmp_path / "run")


def test_without_an_epoch_it_is_the_fitted_head_alone(config: reward_model.Config, tmp_path: Path) -> None:
    config = changed(config, epochs=0, probe=True, pool="mean")
    summary = reward_model.run(config, tmp_path / "run")
    assert summary["heldout_accuracy"] > 0.6
    assert rows(tmp_path / "run") == []
    reward = loaded(tmp_path / "run")
    training, heldout = split_by_prompt(reward_model.read_judgements(config, reward.model), 0.2, 0)
    frozen = Branch(reward.model.trunk, pool="mean")
    head = ScalarHead(frozen.trunk.shape.width, dtype=torch.float64)
    reading, effects = begin(training, Reading())
    fit_head(head, training, states_of(frozen, training, 4096), reading=reading, effects=effects, seed=0)
    group = heldout[0]
    wanted = head(states_of(frozen, [group], 4096)[0]).tolist()
    given = reward.score_ids([group.prompt] * len(wanted), group.completions)
    unit = (given[1] - given[0]) / (wanted[1] - wanted[0])
    assert unit > 0
    assert [unit * (x - wanted[0]) for x in wanted] == pytest.approx([x - given[0] for x in given], abs=1e-9)
    with pytest.raises(UserError, match="epochs: must be above 0 without probe: true, not 0"):
        parse(reward_model.Config, config.model_dump() | {"probe": False}, "a.yaml")
