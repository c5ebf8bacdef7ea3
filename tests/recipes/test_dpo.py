"""Learning from comparisons on the tiny model: what it computes, what it leaves behind, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from plaudit.data.collate import pack
from plaudit.models.adapter import load_adapter
from plaudit.models.branch import Branch, token_logprobs
from plaudit.models.load import linear_sizes, load_model
from plaudit.randomness import rng
from plaudit.recipes import dpo
from plaudit.types import UserError
from runs import shipped

ROWS: list[dict[str, Any]] = [
    {"prompt": "how are you today", "completions": ["great and happy", "bad"], "choice": 0, "strength": 3},
    {"prompt": "how are you today", "completions": ["bad", "tired and sad"], "choice": "tie"},
    {"prompt": "what do you like", "completions": ["nothing", "good music and a book"], "choice": 1},
    {"prompt": "where is the cat", "completions": ["garden", "in the garden", "no"], "ranking": [1, 0, 2]},
    {"prompt": [{"role": "user", "content": "help me"}], "completions": ["with what", "no"], "choice": 0},
    {"prompt": "tell me more", "completions": ["of course", ""], "choice": 0, "strength": 1},
    {"prompt": "can we talk", "completions": ["no", "yes we can"], "choice": 1, "strength": 4},
    {"prompt": "coffee or tea", "completions": ["tea", "coffee"], "choice": 0, "rater": "ana"},
    {"prompt": "coffee or tea", "completions": ["tea", "coffee"], "choice": 1, "rater": "ben"},
]
GOOD = ("happy", "love", "wonderful", "kind", "smile")
BAD = ("angry", "hate", "awful", "rude", "cry")


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write(tmp_path / "comparisons.jsonl", ROWS)


def config(data: str, **settings: Any) -> dpo.Config:
    tree: dict[str, Any] = {
        "data": [data],
        "model": "tiny",
        "heldout": 0.0,
        "epochs": 2,
        "prompts_per_step": 4,
        "learning_rate": 1e-2,
        "warmup": 0.0,
        "adapter": {"rank": 4},
        "precision": "float64",
        "threads": 1,
        "checkpoint_every": 2,
    }
    return dpo.Config.model_validate(tree | settings)


def rows(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def everything(directory: Path) -> dict[str, bytes]:
    """What must be the same bit for bit."""
    kept = ["metrics.jsonl", "summary.json", "model/model.safetensors", "adapter/adapter_model.safetensors"]
    return {name: (directory / name).read_bytes() for name in kept}


# What it computes


def test_a_policy_that_is_its_reference_pays_the_log_of_two(data: str, tmp_path: Path) -> None:
    dpo.run(config(data), tmp_path)
    first = rows(tmp_path)[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-12)
    assert abs(first["reward_chosen"]) < 1e-12
    assert abs(first["reward_rejected"]) < 1e-12


@pytest.mark.parametrize(
    ("loss", "rank"),
    [("dpo", 4), ("dpo", 0), ("robust", 4), ("ipo", 4), ("simpo", 4), ("orpo", 4), ("orpo", 0)],
)
def test_the_split_into_micro_batches_changes_nothing(
    data: str, tmp_path: Path, loss: str, rank: int
) -> None:
    found = []
    for budget in (1, 40, 10_000):
        where = tmp_path / str(budget)
        chosen = config(
            data, loss=loss, micro_batch_tokens=budget, adapter={"rank": rank}, label_smoothing=0.1, margin=0.1,
            max_grad_norm=1e9, learning_rate=1e-3,
        )  # fmt: skip
        dpo.run(chosen, where)
        found.append([(row["loss"], row["grad_norm"], row["reward_chosen"]) for row in rows(where)])
    for other in found[1:]:
        torch.testing.assert_close(torch.tensor(other), torch.tensor(found[0]), rtol=1e-9, atol=1e-9)


def test_exchanging_the_completions_of_every_record_changes_nothing(data: str, tmp_path: Path) -> None:
    turned = []
    for row in ROWS:
        if "ranking" in row:
            turned.append(row)
            continue
        choice = {0: 1, 1: 0}.get(row["choice"], row["choice"])
        turned.append(row | {"completions": row["completions"][::-1], "choice": choice})
    other = write(tmp_path / "turned.jsonl", turned)
    found = []
    for place, path in enumerate((data, other)):
        dpo.run(config(path, margin=0.3, label_smoothing=0.1), tmp_path / str(place))
        found.append([(row["loss"], row["grad_norm"], row["margin"]) for row in rows(tmp_path / str(place))])
    torch.testing.assert_close(torch.tensor(found[1]), torch.tensor(found[0]), rtol=1e-9, atol=1e-9)


def test_the_reference_is_read_once(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = dpo.reference_sums

    def counted(groups: Any, *args: Any) -> torch.Tensor:
        calls.append(len(groups))
        return real(groups, *args)

    monkeypatch.setattr(dpo, "reference_sums", counted)
    dpo.run(config(data, epochs=3), tmp_path / "run")
    assert calls == [7]


def test_the_reference_is_where_the_adapter_starts(data: str, tmp_path: Path) -> None:
    """Going on from an adapter, the first loss is that of a policy that is its reference; the adapter goes on."""
    dpo.run(config(data), tmp_path / "first")
    start = str(tmp_path / "first" / "adapter")
    dpo.run(config(data, start=start, learning_rate=1e-9), tmp_path / "second")
    assert rows(tmp_path / "second")[0]["loss"] == pytest.approx(math.log(2), abs=1e-12)
    model = load_model("tiny", torch.float64)
    one, two = (
        load_adapter(tmp_path / run / "adapter", linear_sizes(model.trunk), 4, torch.float64).state_dict()
        for run in ("first", "second")
    )
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-6)


def test_margins_follow_strength(tmp_path: Path) -> None:
    """Where policy is reference, a lead of m costs ln(1 + e^m): 0.5 a unit, strengths 1 and 4, and none."""
    strong = [
        {"prompt": "a", "completions": ["b", "c"], "choice": 0, "strength": 1},
        {"prompt": "d", "completions": ["b", "c"], "choice": 1, "strength": 4},
        {"prompt": "e", "completions": ["b", "c"], "choice": 1},
        {"prompt": "f", "completions": ["b", "c"], "choice": "tie", "strength": 4},
    ]
    dpo.run(config(write(tmp_path / "d.jsonl", strong), margin=0.5, epochs=1), tmp_path / "run")
    wanted = sum(math.log1p(math.exp(m)) for m in (0.5, 2.0, 0.0, 0.0)) / 4
    assert rows(tmp_path / "run")[0]["loss"] == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(("ties", "comparisons", "left"), [("half", 11, 1), ("drop", 10, 0)])
def test_ties_are_halves_or_dropped(
    data: str, tmp_path: Path, ties: str, comparisons: int, left: int
) -> None:
    """Nine records, one of them a ranking of three."""
    summary = dpo.run(config(data, ties=ties, epochs=1, prompts_per_step=8), tmp_path)
    assert (summary["comparisons"], summary["ties"], summary["empty"]) == (comparisons, left, 1)
    assert rows(tmp_path)[0]["comparisons"] == comparisons


def test_contradictory_judgements_are_the_share_of_raters(tmp_path: Path) -> None:
    """Of two raters who disagree the gradient is that of a tie."""
    both: list[dict[str, Any]] = [
        {"prompt": "a", "completions": ["b", "c"], "choice": choice} for choice in (0, 1)
    ]
    other: dict[str, Any] = {"prompt": "d", "completions": ["e", "f"], "choice": 0}
    tie: list[dict[str, Any]] = [{"prompt": "a", "completions": ["b", "c"], "choice": "tie"}] * 2
    norms = []
    for place, records in enumerate(([*both, other], [*tie, other])):
        dpo.run(config(write(tmp_path / f"{place}.jsonl", records)), tmp_path / str(place))
        norms.append([row["grad_norm"] for row in rows(tmp_path / str(place))])
    assert norms[0] == pytest.approx(norms[1], rel=1e-9)


# Learning


def feelings(count: int) -> list[dict[str, Any]]:
    """Comparisons of a good word with a bad one, in sentences that say nothing else; either may stand first."""
    made = []
    for i in range(count):
        draw = rng("feelings", i)
        better, worse = (
            f"I {words[draw.integers(5)]} the {draw.choice(['city', 'car', 'book', 'day'])}"
            for words in (GOOD, BAD)
        )
        turn = int(draw.integers(2))
        texts = [better, worse][:: -1 if turn else 1]
        made.append({"prompt": f"say {i}", "completions": texts, "choice": turn})
    return made


def gaps(model: str, records: list[dict[str, Any]]) -> torch.Tensor:
    """log pi(chosen) - log pi(rejected) of each record."""
    loaded = load_model(model, torch.float64)
    t = loaded.tokenizer
    prompts = [t.render(r["prompt"]) for r in records for _ in range(2)]
    texts = [t.complete(r["completions"][i]) for r in records for i in (r["choice"], 1 - r["choice"])]
    with torch.no_grad():
        sums = token_logprobs(Branch(loaded.trunk), pack(prompts, texts)).logprobs.sum(1)
    return sums[::2] - sums[1::2]


@pytest.mark.proof
@pytest.mark.parametrize("loss", ["dpo", "robust", "ipo", "simpo", "orpo"])
def test_it_learns_which_are_better(tmp_path: Path, loss: str) -> None:
    """On prompts that it never saw: chosen over rejected more often, and by more nats, than before."""
    path = write(tmp_path / "feelings.jsonl", feelings(160))
    chosen = config(
        path, loss=loss, heldout=0.2, epochs=3, prompts_per_step=8, learning_rate=3e-3, precision="float32",
        label_smoothing=0.1 if loss == "robust" else 0.0,
    )  # fmt: skip
    summary = dpo.run(chosen, tmp_path / "run")
    held = [r for r in feelings(160) if rng(0, "heldout", json.dumps(r["prompt"])).random() < 0.2]
    assert len(held) == summary["heldout_prompts"]
    before, after = gaps("tiny", held), gaps(str(tmp_path / "run" / "model"), held)
    assert (before > 0).double().mean() < 0.75
    assert (after > 0).double().mean() > 0.9
    assert (after - before).mean() > 1
    assert summary["heldout_accuracy"] > 0.9
    assert summary["heldout_loss"] < summary["heldout_loss_before"]


# Kills and resumes


def run_until(attribute: str, call: int, chosen: dpo.Config, directory: Path) -> None:
    """A run that dies when it calls what it knows as `attribute` for the call-th time (1, 2, ...)."""
    calls = 0
    owner, _, name = attribute.rpartition(".")
    place = getattr(dpo, owner) if owner else dpo
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
            dpo.run(chosen, directory)


@pytest.mark.parametrize(
    ("attribute", "call"),
    [("take_step", step) for step in (1, 2, 3, 4)]
    + [("reference_sums", 1), ("checkpoint.save", 1), ("checkpoint.save", 2), ("write_policy", 1)],
)
def test_a_killed_run_ends_with_the_same_bits(data: str, tmp_path: Path, attribute: str, call: int) -> None:
    """Four steps, saved after the second and the fourth; a kill between log and checkpoint repeats both steps."""
    chosen = config(data, heldout=0.3, warmup=0.2, seed=1, prompts_per_step=3, precision="float32")
    dpo.run(chosen, tmp_path / "whole")
    assert len(rows(tmp_path / "whole")) == 4
    run_until(attribute, call, chosen, tmp_path / "cut")
    assert not (tmp_path / "cut" / "summary.json").exists()
    dpo.run(chosen, tmp_path / "cut")
    assert everything(tmp_path / "cut") == everything(tmp_path / "whole")


# What is refused


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"prompt": "a", "completion": "b"}, "record 2: is a demonstration, not a comparison or a ranking; "),
        ({"prompt": "a", "completion": "b", "scores": {"overall": 1.0}}, "record 2: is a rating, not a comp"),
    ],
)
def test_other_records_are_refused_by_name(tmp_path: Path, record: dict[str, Any], words: str) -> None:
    data = write(tmp_path / "d.jsonl", [ROWS[0], record])
    with pytest.raises(UserError, match=words):
        dpo.run(config(data), tmp_path / "run")


@pytest.mark.parametrize(
    ("records", "settings", "words"),
    [
        (
            [{"completions": ["b", "c"], "choice": "tie"}] * 2,
            {},
            r"all 2 comparisons are ties, so there is nothing",
        ),
        (
            [{"completions": ["b", "c"], "choice": choice} for choice in (0, 1, 1, 0, "tie")],
            {},
            "all 5 comparisons cancel each other, so there is nothing to learn; collect more",
        ),
        (
            [{"completions": two, "choice": 0} for two in (["b", "c"], ["c", "d"], ["d", "b"])],
            {},
            "all 3 comparisons cancel each other",
        ),
        (
            [{"completions": ["b", "c"], "ranking": order} for order in ([0, 1], [1, 0])],
            {"loss": "orpo"},
            "all 2 comparisons cancel each other",
        ),
        (
            [{"completions": ["b", "c"], "choice": "both_bad"}],
            {"ties": "drop"},
            "holds no comparison that is no tie",
        ),
        ([{"completions": ["b", "b"], "choice": 0}], {}, "holds no comparison of two different completions"),
        (
            [{"completions": ["b", "c"], "choice": 0}],
            {"heldout": 0.999},
            "all 1 prompts are held out; lower it",
        ),
        (
            [{"completions": ["b", "c " * 300], "choice": 0}],
            {},
            r"has \d+ tokens, the model takes 256; shorten",
        ),
    ],
)
def test_nothing_to_learn_from(
    tmp_path: Path, records: list[dict[str, Any]], settings: dict[str, Any], words: str
) -> None:
    data = write(tmp_path / "d.jsonl", [{"prompt": "a", **record} for record in records])
    with pytest.raises(UserError, match=words):
        dpo.run(config(data, **settings), tmp_path / "run")


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_a_strong_word_outweighs_a_weak_one_where_strength_counts(tmp_path: Path, margin: float) -> None:
    rows = [{"prompt": "a", "completions": ["b", "c"], "choice": i, "strength": (4, 1)[i]} for i in (0, 1)]
    given = config(write(tmp_path / "d.jsonl", rows), margin=margin)
    if margin > 0:
        assert dpo.run(given, tmp_path / "run")["comparisons"] == 2
    else:
        with pytest.raises(UserError, match="all 2 comparisons cancel each other"):
            dpo.run(given, tmp_path / "run")


def test_a_run_that_diverges_says_so(data: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a number at step \d; lower the learning rate"):
        dpo.run(config(data, learning_rate=1e200, max_grad_norm=1e200, epochs=4), tmp_path)
    assert not (tmp_path / "summary.json").exists()


def test_weights_that_the_last_step_broke_are_not_written(data: str, tmp_path: Path) -> None:
    """No later loss sees them."""
    with pytest.raises(
        UserError, match="a weight is not a number after the last step; lower the learning rate"
    ):
        dpo.run(config(data, learning_rate=1e308, epochs=1, prompts_per_step=16), tmp_path)
    assert len(rows(tmp_path)) == 1
    assert not (tmp_path / "model").exists()


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="start is an adapter"):
        config("d.jsonl", start="runs/sft/adapter", adapter={"rank": 0})
    with pytest.raises(ValueError, match="label_smoothing"):
        config("d.jsonl", label_smoothing=0.5)


OTHER = {"beta": 0.3, "ipo_average": False, "simpo_gamma": 0.5, "orpo_lambda": 0.2}


@pytest.mark.parametrize(
    ("loss", "read"),
    [
        ("dpo", {"beta"}), ("robust", {"beta"}), ("ipo", {"beta", "ipo_average"}), ("simpo", {"beta", "simpo_gamma"}),
        ("orpo", {"orpo_lambda"}),
    ],
)  # fmt: skip
def test_a_setting_that_the_loss_does_not_read_is_refused(loss: str, read: set[str]) -> None:
    """Not the default written out, as configs/dpo.yaml has it, whatever the loss is on the command line."""
    wrong = {"label_smoothing": 0.1}
    assert shipped("dpo", loss=loss, **wrong)[1].loss == loss
    for name, value in OTHER.items():
        if name in read:
            assert getattr(shipped("dpo", loss=loss, **wrong, **{name: value})[1], name) == value
        else:
            with pytest.raises(
                UserError, match=f"{loss} does not read {name}; it reads {', '.join(sorted(read))}"
            ):
                shipped("dpo", loss=loss, **wrong, **{name: value})


def test_robust_wants_the_share_of_wrong_labels() -> None:
    with pytest.raises(UserError, match="robust with label_smoothing 0 is dpo; set the share of labels"):
        shipped("dpo", loss="robust")


def test_heldout_prompts_of_ties_alone_have_a_loss_and_no_accuracy(tmp_path: Path) -> None:
    seed = next(
        s for s in range(99) if rng(s, "heldout", '"a"').random() < 0.3 < rng(s, "heldout", '"b"').random()
    )
    data = write(
        tmp_path / "d.jsonl",
        [
            {"prompt": "a", "completions": ["c", "d"], "choice": "tie"},
            {"prompt": "b", "completions": ["c", "d"], "choice": 0},
        ],
    )
    summary = dpo.run(config(data, heldout=0.3, seed=seed), tmp_path / "run")
    assert summary["heldout_loss"] is not None
    assert summary["heldout_accuracy"] is None
