"""Learning from good and bad completions on the tiny model: whose label counts, the baseline, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from plaudit.data.collate import pack
from plaudit.models.branch import Branch, token_logprobs
from plaudit.models.load import load_model
from plaudit.randomness import rng
from plaudit.recipes import kto
from plaudit.recipes.kto import Labelled
from plaudit.types import Preference, Ranking, Rating, Record, UserError

ROWS: list[dict[str, Any]] = [
    {"prompt": "how are you today", "completions": ["great and happy", "bad"], "choice": 0},
    {"prompt": "what do you like", "completions": ["nothing", "good music and a book"], "choice": 1},
    {"prompt": "where is the cat", "completions": ["garden", "in the garden", "no"], "ranking": [1, 0, 2]},
    {"prompt": [{"role": "user", "content": "help me"}], "completions": ["what", "no"], "choice": "both_bad"},
    {"prompt": "tell me more", "completion": "of course", "scores": {"overall": 0.5}},
    {"prompt": "tell me more", "completion": "", "scores": {"overall": 0.1}},
    {"prompt": "can we talk", "completion": "yes we can", "scores": {"tone": 0.9, "help": 0.3}},
    {"prompt": "coffee or tea", "completions": ["tea", "coffee"], "choice": "tie"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write(tmp_path / "judgements.jsonl", ROWS)


def config(data: str, **settings: Any) -> kto.Config:
    tree: dict[str, Any] = {
        "data": [data],
        "model": "tiny",
        "heldout": 0.0,
        "epochs": 2,
        "batch_size": 6,
        "learning_rate": 1e-2,
        "warmup": 0.0,
        "adapter": {"rank": 4},
        "precision": "float64",
        "threads": 1,
        "checkpoint_every": 2,
    }
    return kto.Config.model_validate(tree | settings)


def rows(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def everything(directory: Path) -> dict[str, bytes]:
    """What must be the same bit for bit."""
    kept = ["metrics.jsonl", "summary.json", "model/model.safetensors", "adapter/adapter_model.safetensors"]
    return {name: (directory / name).read_bytes() for name in kept}


# Whose label counts


def test_votes() -> None:
    records: list[Record] = [
        Preference("p", ("a", "b"), 0),
        Preference("p", ("b", "a"), 0),  # another rater disagrees
        Preference("p", ("a", "b"), 0),
        Preference("p", ("c", "d"), "tie"),
        Preference("p", ("c", "c"), 0),  # says nothing
        Preference("q", ("a", "b"), "both_bad"),
        Ranking("r", ("a", "b", "c", "d"), (2, 0, 3, 1)),
        Rating("s", "a", {"overall": 0.5}),
        Rating("s", "b", {"overall": 0.49, "tone": 1.0}),
        Rating("s", "c", {"tone": 1.0, "help": 0.2}),
    ]
    found = {(json.loads(key), text): vote for (key, text), vote in kto.votes_of(records, 0.5).items()}
    assert found == {
        ("p", "a"): 1, ("p", "b"): -1, ("p", "c"): 0, ("p", "d"): 0, ("q", "a"): -1, ("q", "b"): -1,
        ("r", "c"): 3, ("r", "a"): 1, ("r", "d"): -1, ("r", "b"): -3,
        ("s", "a"): 1, ("s", "b"): -1, ("s", "c"): 1,
    }  # fmt: skip


def test_what_is_learned_from(data: str, tmp_path: Path) -> None:
    summary = kto.run(config(data, epochs=1), tmp_path)
    assert {name: summary[name] for name in ("desirable", "undesirable", "undecided", "empty", "steps")} == {
        "desirable": 5, "undesirable": 6, "undecided": 3, "empty": 1, "steps": 2,
    }  # fmt: skip


def test_the_threshold_parts_ratings(data: str, tmp_path: Path) -> None:
    summary = kto.run(config(data, epochs=1, threshold=0.61), tmp_path)
    assert (summary["desirable"], summary["undesirable"]) == (3, 8)


# The baseline


def sample(key: str, completion: int) -> Labelled:
    return Labelled(key, (ord(key),), (completion,), True)


def test_mismatched_texts_are_the_next_other_prompts() -> None:
    batch = [sample("a", 1), sample("a", 2), sample("b", 3), sample("c", 4)]
    found = kto.mismatched(batch, batch)
    assert found == [((97,), (3,)), ((97,), (3,)), ((98,), (4,)), ((99,), (1,))]


def test_a_batch_of_one_prompt_borrows_from_its_order() -> None:
    """What follows it there, and from the end on what comes first."""
    order = [sample("b", 1), sample("a", 2), sample("a", 3), sample("c", 4)]
    assert kto.mismatched(order[1:3], order, 1) == [((97,), (4,)), ((97,), (4,))]
    assert kto.mismatched(order[3:], order, 3) == [((99,), (1,))]


def test_the_first_step_has_no_baseline_and_half_a_loss(data: str, tmp_path: Path) -> None:
    """Five desirable at 1.5 and six others at 1, all at one half."""
    kto.run(config(data, desirable_weight=1.5, batch_size=11), tmp_path)
    first, second = rows(tmp_path)
    assert abs(first["baseline"]) < 1e-12
    assert first["loss"] == pytest.approx((5 * 1.5 + 6) / 11 / 2, abs=1e-12)
    assert second["baseline"] >= 0


def test_the_reference_is_read_once(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass over every text of the run; afterwards each step asks for its mismatched texts of the policy alone."""
    asked: list[int] = []
    real = kto.sums_of

    def counted(texts: Any, *args: Any) -> torch.Tensor:
        asked.append(len(texts))
        return real(texts, *args)

    monkeypatch.setattr(kto, "sums_of", counted)
    kto.run(config(data), tmp_path / "run")
    assert asked[1:] == [6, 5, 6, 5]
    assert 11 < asked[0] <= 33


@pytest.mark.parametrize("rank", [4, 0])
def test_the_split_into_micro_batches_changes_nothing(data: str, tmp_path: Path, rank: int) -> None:
    found = []
    for budget in (1, 40, 10_000):
        where = tmp_path / str(budget)
        chosen = config(
            data, micro_batch_tokens=budget, adapter={"rank": rank}, undesirable_weight=0.7, learning_rate=2e-3,
            max_grad_norm=1e9, epochs=3,
        )  # fmt: skip
        kto.run(chosen, where)
        found.append([(row["loss"], row["grad_norm"], row["baseline"]) for row in rows(where)])
    assert max(row[2] for row in found[0]) > 0
    for other in found[1:]:
        torch.testing.assert_close(torch.tensor(other), torch.tensor(found[0]), rtol=1e-9, atol=1e-9)


# Learning


def feelings(count: int) -> list[dict[str, Any]]:
    """Ratings of sentences with a good word (high) or a bad one (low), one a prompt: no pairs."""
    good, bad = ("happy", "love", "wonderful", "kind", "smile"), ("angry", "hate", "awful", "rude", "cry")
    made = []
    for i in range(count):
        draw = rng("feelings", i)
        fine = i % 3 != 0
        text = (
            f"I {(good if fine else bad)[draw.integers(5)]} the {draw.choice(['city', 'car', 'book', 'day'])}"
        )
        made.append({"prompt": f"say {i}", "completion": text, "scores": {"overall": 0.8 if fine else 0.2}})
    return made


def sums(model: str, records: list[dict[str, Any]]) -> torch.Tensor:
    loaded = load_model(model, torch.float64)
    t = loaded.tokenizer
    packed = pack([t.render(r["prompt"]) for r in records], [t.complete(r["completion"]) for r in records])
    with torch.no_grad():
        return token_logprobs(Branch(loaded.trunk), packed).logprobs.sum(1)


def test_it_learns_what_is_good(tmp_path: Path) -> None:
    """On prompts that it never saw, good sentences gain on bad ones, which are half as many."""
    path = write(tmp_path / "feelings.jsonl", feelings(210))
    chosen = config(
        path,
        heldout=0.2,
        epochs=3,
        batch_size=16,
        learning_rate=3e-3,
        precision="float32",
        undesirable_weight=2.0,
    )
    summary = kto.run(chosen, tmp_path / "run")
    held = [r for r in feelings(210) if rng(0, "heldout", json.dumps(r["prompt"])).random() < 0.2]
    assert len(held) == summary["heldout_completions"]
    gain = sums(str(tmp_path / "run" / "model"), held) - sums("tiny", held)
    good = torch.tensor([r["scores"]["overall"] > 0.5 for r in held])
    assert gain[good].mean() - gain[~good].mean() > 2
    assert (gain[good][:, None] > gain[~good]).double().mean() > 0.9
    assert summary["heldout_loss"] < summary["heldout_loss_before"]
    assert summary["heldout_accuracy"] > 0.8


# Kills and resumes


def run_until(attribute: str, call: int, chosen: kto.Config, directory: Path) -> None:
    """A run that dies when it calls what it knows as `attribute` for the call-th time (1, 2, ...)."""
    calls = 0
    owner, _, name = attribute.rpartition(".")
    place = getattr(kto, owner) if owner else kto
    real = getattr(place, name)

    def dying(*args: Any, **settings: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return real(*args, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, name, dying)
        with pytest.raises(KeyboardInterrupt):
            kto.run(chosen, directory)


@pytest.mark.parametrize(
    ("attribute", "call"),
    [("take_step", step) for step in (1, 2, 3, 4)]
    + [("sums_of", 1), ("checkpoint.save", 1), ("checkpoint.save", 2), ("write_policy", 1)],
)
def test_a_killed_run_ends_with_the_same_bits(data: str, tmp_path: Path, attribute: str, call: int) -> None:
    """Four steps, saved after the second and the fourth; a kill between log and checkpoint repeats both steps."""
    chosen = config(data, heldout=0.2, warmup=0.2, seed=5, batch_size=5, precision="float32")
    kto.run(chosen, tmp_path / "whole")
    assert len(rows(tmp_path / "whole")) == 4
    assert "heldout_loss" in rows(tmp_path / "whole")[1]
    run_until(attribute, call, chosen, tmp_path / "cut")
    assert not (tmp_path / "cut" / "summary.json").exists()
    kto.run(chosen, tmp_path / "cut")
    assert everything(tmp_path / "cut") == everything(tmp_path / "whole")


# What is refused


def rated(*scores: float, prompts: str = "abcdef") -> list[dict[str, Any]]:
    return [
        {"prompt": prompt, "completion": f"say {score}", "scores": {"overall": score}}
        for prompt, score in zip(prompts, scores, strict=False)
    ]


@pytest.mark.parametrize(
    ("records", "settings", "words"),
    [
        (
            [{"prompt": "a", "completion": "b"}],
            {},
            "record 1: is a demonstration, which says what is good and not",
        ),
        (rated(0.9, 0.8), {}, r"all 2 completions are desirable, .*set threshold above 0\.5"),
        (rated(0.1, 0.2), {}, r"all 2 completions are undesirable, .*set threshold below 0\.5"),
        (
            [{"prompt": "a", "completions": ["b", "c"], "choice": "tie"}],
            {},
            "calls no completion good or bad",
        ),
        (
            [{"prompt": "a", "completions": ["b", "c"], "choice": c} for c in (0, 1)],
            {},
            "calls no completion good",
        ),
        (
            rated(0.1, 0.9, prompts="aa"),
            {},
            "judges completions of one prompt, and the baseline needs another's",
        ),
        (rated(0.1, 0.9), {"heldout": 0.999}, "all 2 completions are held out; lower it"),
    ],
)
def test_nothing_to_learn_from(
    tmp_path: Path, records: list[dict[str, Any]], settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        kto.run(config(write(tmp_path / "d.jsonl", records), **settings), tmp_path / "run")


def test_a_run_that_diverges_says_so(data: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a number at step \d; lower the learning rate"):
        kto.run(config(data, learning_rate=1e200, max_grad_norm=1e200, epochs=4), tmp_path)
    assert not (tmp_path / "summary.json").exists()


def test_weights_that_the_last_step_broke_are_not_written(data: str, tmp_path: Path) -> None:
    """No later loss sees them."""
    with pytest.raises(
        UserError, match="a weight is not a number after the last step; lower the learning rate"
    ):
        kto.run(config(data, learning_rate=1e308, epochs=1, batch_size=64), tmp_path)
    assert len(rows(tmp_path)) == 1
    assert not (tmp_path / "model").exists()


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="start is an adapter"):
        config("d.jsonl", start="runs/sft/adapter", adapter={"rank": 0})
    with pytest.raises(ValueError, match="batch_size"):
        config("d.jsonl", batch_size=1)


def test_a_step_of_one_kind_only_has_no_figure_of_the_other(tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", rated(0.9, 0.9, 0.1))
    kto.run(config(data, batch_size=2, epochs=1), tmp_path / "run")
    logged = rows(tmp_path / "run")
    assert any(row["reward_undesirable"] is None for row in logged)
    assert all(math.isfinite(row["loss"]) for row in logged)
