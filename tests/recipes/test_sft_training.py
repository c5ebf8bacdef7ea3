"""How the sft recipe trains: mixtures, regularisation, optimisers, early stopping, the best model, plain text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from plaudit.config import parse
from plaudit.data.demonstrations import read_demonstrations
from plaudit.models.branch import Branch
from plaudit.models.load import load_model
from plaudit.recipes import sft
from plaudit.training import checkpoint, optim
from plaudit.training.optim import OPTIMIZERS, SCHEDULES
from plaudit.training.stop import Best, measured
from plaudit.types import UserError
from tiny_models import transformers_model

TASKS = {
    "mood": [
        "how are you? happy and calm",
        "how is work? boring today",
        "are you sad? not at all",
        "tired? yes",
    ],
    "food": [
        "tea or coffee? tea with bread",
        "is it good? delicious",
        "lunch now? yes",
        "cold? it is perfect",
    ],
    "town": [
        "where is the cat? in the garden",
        "can we walk? to the city",
        "the car? broken",
        "which? that one",
    ],
}
EVERYTHING: dict[str, Any] = {
    "heldout": 0.4, "epochs": 3, "batch_size": 2, "evaluate_every": 2, "keep": "best", "checkpoint_every": 3,
    "schedule": "cosine", "warmup": 0.2, "l1": 1e-4, "dropout": 0.3, "weight_decay": 0.1, "patience": 50,
    "mixture": {"rule": "ratio", "strength": 5.0}, "adapter": {"rank": 2},
}  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    for task, lines in TASKS.items():
        pairs = [line.split("?") for line in lines]
        rows = [json.dumps({"prompt": f"{p}?", "completion": c}) + "\n" for p, c in pairs]
        (tmp_path / f"{task}.jsonl").write_text("".join(rows))
    return [str(tmp_path / f"{task}.jsonl") for task in TASKS]


def config(files: list[str], **settings: Any) -> sft.Config:
    tree: dict[str, Any] = {
        "model": "tiny",
        "data": files,
        "seed": 0,
        "heldout": 0.0,
        "epochs": 2,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "warmup": 0.0,
        "adapter": {"rank": 2},
        "precision": "float64",
        "threads": 1,
    }
    return parse(sft.Config, tree | settings, "sft.yaml")


def rows(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def everything(directory: Path) -> dict[str, bytes]:
    """What must be the same bit for bit."""
    files = [p for p in directory.rglob("*") if p.is_file() and "tensorboard" not in p.parts]
    assert {p.name for p in files} >= {"metrics.jsonl", "summary.json", "model.safetensors"}
    # A report says where it stands.
    return {
        str(p.relative_to(directory)): p.read_bytes().replace(str(directory).encode(), b"here") for p in files
    }


def run_until(attribute: str, call: int, chosen: sft.Config, directory: Path) -> None:
    """A run that dies when it calls what it knows as `attribute` for the call-th time (1, 2, ...)."""
    calls = 0
    owner, _, name = attribute.rpartition(".")
    place = getattr(sft, owner) if owner else sft
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
            sft.run(chosen, directory)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run with everything on that nobody touched, and its data."""
    place = tmp_path_factory.mktemp("whole")
    paths: list[str] = data.__wrapped__(place)  # type: ignore[attr-defined]
    sft.run(config(paths, **EVERYTHING), place / "run")
    return place / "run", paths


@pytest.mark.parametrize(
    ("attribute", "call"),
    [("take_step", step) for step in (1, 2, 5, 8, 9)]
    + [("heldout_losses", call) for call in (2, 4)]
    + [("checkpoint.save", call) for call in (1, 2, 3, 5)]
    + [("checkpoint.at", 1), ("write_policy", 1), ("files.write_json", 1)],
)
def test_a_killed_run_ends_with_the_same_bits(
    whole: tuple[Path, list[str]], tmp_path: Path, attribute: str, call: int
) -> None:
    """Mixture, weights that follow losses, dropout, the best model and the patience all go on as they were."""
    unbroken, paths = whole
    assert len(rows(unbroken)) == 9
    chosen = config(paths, **EVERYTHING)
    run_until(attribute, call, chosen, tmp_path / "cut")
    assert not (tmp_path / "cut" / "summary.json").exists()
    sft.run(chosen, tmp_path / "cut")
    assert everything(tmp_path / "cut") == everything(unbroken)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_learns_and_is_resumed(data: list[str], tmp_path: Path, name: str) -> None:
    rate = {"sgd": 1.0, "adadelta": 3.0}.get(name, 1e-2)
    settings: dict[str, Any] = {
        "epochs": 4,
        "learning_rate": rate,
        "checkpoint_every": 5,
        "schedule": "constant",
    }
    chosen = config(data, optimizer={"name": name}, **settings)
    sft.run(chosen, tmp_path / "whole")
    losses = [row["loss"] for row in rows(tmp_path / "whole")]
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.3
    run_until("take_step", 8, chosen, tmp_path / "cut")
    sft.run(chosen, tmp_path / "cut")
    assert everything(tmp_path / "cut") == everything(tmp_path / "whole")


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rate_follows_its_schedule(data: list[str], tmp_path: Path, name: str) -> None:
    """Golden: 12 demonstrations in threes are 4 steps; half-way from 1 to 0.25, and its quarters."""
    chosen = config(data, epochs=1, batch_size=3, schedule=name, rate_end=0.0625, learning_rate=1e-3)
    sft.run(chosen, tmp_path)
    table = {
        "constant": [1, 1, 1, 1],
        "linear": [1, 0.765625, 0.53125, 0.296875],
        "cosine": [1, 0.86270629, 0.53125, 0.19979371],
        "exponential": [1, 0.5, 0.25, 0.125],
    }[name]
    assert [row["learning_rate"] * 1e3 for row in rows(tmp_path)] == pytest.approx(table, rel=1e-6)


@pytest.mark.parametrize("mixture", [{}, {"rule": "fixed", "weights": [5.0, 2.0, 1.0]}])
def test_the_order_of_files_changes_nothing(data: list[str], tmp_path: Path, mixture: dict[str, Any]) -> None:
    turned = dict(mixture)
    if mixture:
        turned["weights"] = mixture["weights"][::-1]
    sft.run(config(data, heldout=0.3, mixture=mixture), tmp_path / "one")
    sft.run(config(data[::-1], heldout=0.3, mixture=turned), tmp_path / "other")
    assert everything(tmp_path / "one") == everything(tmp_path / "other")


@pytest.mark.parametrize("rank", [2, 0])
def test_the_split_into_micro_batches_changes_nothing_with_everything_on(
    data: list[str], tmp_path: Path, rank: int
) -> None:
    found = []
    for budget in (1, 30, 10_000):
        where = tmp_path / str(budget)
        sft.run(config(data, **EVERYTHING | {"micro_batch_tokens": budget, "adapter": {"rank": rank}}), where)
        names = ("loss", "grad_norm", "weight/mood")
        found.append([[row[name] for name in names] for row in rows(where)])
    for other in found[1:]:
        torch.testing.assert_close(torch.tensor(other), torch.tensor(found[0]), rtol=1e-9, atol=1e-9)


def test_dropout_is_off_where_losses_are_measured(data: list[str], tmp_path: Path) -> None:
    plain = sft.run(config(data, heldout=0.4, learning_rate=1e-30), tmp_path / "plain")
    dropped = sft.run(
        config(data, heldout=0.4, learning_rate=1e-30, dropout=0.5, adapter={"rank": 0}), tmp_path / "dropped"
    )
    assert dropped["heldout_loss_before"] == plain["heldout_loss_before"]
    assert dropped["heldout_loss"] == pytest.approx(plain["heldout_loss"], rel=1e-12)
    assert rows(tmp_path / "dropped")[0]["loss"] != pytest.approx(
        rows(tmp_path / "plain")[0]["loss"], rel=1e-3
    )


def test_what_is_best_by_hand() -> None:
    """Golden: 3.0 before; then 2.0, 2.5, 2.0 (no lower), 1.0, 1.5."""
    best, seen = Best(0, 3.0), []
    for step, loss in enumerate((2.0, 2.5, 2.0, 1.0, 1.5), 1):
        best = measured(best, step, loss)
        seen.append((best.step, best.loss, best.since))
    assert seen == [(1, 2.0, 0), (1, 2.0, 1), (1, 2.0, 2), (4, 1.0, 0), (4, 1.0, 1)]


def measure_as(
    patch: pytest.MonkeyPatch, losses: Sequence[float], every: int = 1
) -> list[dict[str, torch.Tensor]]:
    """From now on the held-out losses are these: the first before training, then at every measurement, whichever
    step a run is resumed at. Gives the adapter's weights after each step, as they are taken."""
    states: list[dict[str, torch.Tensor]] = []
    taken = {"steps": 0}
    real_step, real_at, real_latest = optim.take_step, checkpoint.at, checkpoint.latest
    real_tasks, branches = sft.read_tasks, list[Branch]()

    def heldout_losses(tasks: Any, branch: Branch, _: Any) -> tuple[float, dict[str, float]]:
        if not branches:
            branches.append(branch)
        loss = losses[taken["steps"] // every]
        return loss, {task.name: loss for task in tasks}

    def read_tasks(*args: Any) -> Any:
        taken["steps"] = 0
        branches.clear()
        return real_tasks(*args)

    def take_step(*args: Any, **settings: Any) -> float:
        norm = real_step(*args, **settings)
        taken["steps"] += 1
        states.append({name: t.detach().clone() for name, t in branches[0].state().items()})
        return norm

    def latest(*args: Any) -> Any:
        found = real_latest(*args)
        taken["steps"] = 0 if found is None else found[1]["step"]
        return found

    def at(directory: Path, step: int) -> Any:
        taken["steps"] = step
        return real_at(directory, step)

    patch.setattr(sft, "heldout_losses", heldout_losses)
    patch.setattr(sft, "read_tasks", read_tasks)
    patch.setattr(sft, "take_step", take_step)
    patch.setattr(checkpoint, "latest", latest)
    patch.setattr(checkpoint, "at", at)
    return states


LOSSES = [5.0, 4.0, 3.0, 3.5, 3.2, 3.0, 2.9, 1.0]
"""Before, and after steps 1 to 7: with a patience of 3, step 5 (3.0 is no lower than 3.0) is the last."""


def exported(directory: Path) -> torch.Tensor:
    found: torch.Tensor = load_file(directory / "adapter" / "adapter_model.safetensors")[
        "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    ]
    return found


@pytest.mark.parametrize(("keep", "kept"), [("best", 2), ("last", 5)])
def test_a_run_stops_by_itself_and_keeps_what_it_should(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str, kept: int
) -> None:
    states = measure_as(monkeypatch, LOSSES)
    chosen = config(
        data, heldout=0.4, evaluate_every=1, patience=3, keep=keep, epochs=20, checkpoint_every=1, seed=0
    )
    summary = sft.run(chosen, tmp_path)
    assert len(states) == len(rows(tmp_path)) == summary["steps"] == 5
    assert summary["stopped"] == "the held-out loss has not fallen below 3.0000, its value at step 2"
    assert summary["kept_step"] == kept
    assert torch.equal(exported(tmp_path), states[kept - 1]["adapter.factors.1_up_proj_B"])
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == (["step-000002"] if keep == "best" else []) + ["step-000004", "step-000005"]


def test_a_run_killed_after_it_stopped_does_not_go_on(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure_as(monkeypatch, LOSSES)
    chosen = config(data, heldout=0.4, evaluate_every=1, patience=3, keep="best", epochs=20)
    sft.run(chosen, tmp_path / "whole")
    for attribute, call in (("write_policy", 1), ("checkpoint.save", 3), ("take_step", 4)):
        run_until(attribute, call, chosen, tmp_path / attribute)
        sft.run(chosen, tmp_path / attribute)
        assert everything(tmp_path / attribute) == everything(tmp_path / "whole")


def test_training_that_only_harms_leaves_the_model_as_it_was(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure_as(monkeypatch, [1.0, 2.0, 3.0, 4.0], every=2)
    summary = sft.run(config(data, heldout=0.4, evaluate_every=2, keep="best"), tmp_path)
    assert summary["kept_step"] == 0
    assert not exported(tmp_path).any()


def test_a_mixture_that_follows_a_reference_run(data: list[str], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"heldout": 0.4, "batch_size": 2, "evaluate_every": 2}
    summary = sft.run(
        config(data, mixture={"rule": "fixed", "temperature": 1e9}, **settings), tmp_path / "first"
    )
    assert summary["heldout_losses"].keys() == TASKS.keys()
    fixed = rows(tmp_path / "first")
    assert all(row["weight/mood"] == pytest.approx(1 / 3) for row in fixed)
    mixture = {"rule": "excess", "reference": str(tmp_path / "first")}
    sft.run(config(data, mixture=mixture, learning_rate=1e-3, **settings), tmp_path / "second")
    found = rows(tmp_path / "second")
    before, after = found[1], found[2]  # measured after step 2: what step 3 is drawn with
    names = list(TASKS)
    raw = [
        before[f"weight/{n}"]
        * torch.tensor(max(before[f"heldout_loss/{n}"] - summary["heldout_losses"][n], 0.0))
        .double()
        .exp()
        .item()
        for n in names
    ]
    expected = [0.999 * weight / sum(raw) + 0.001 / 3 for weight in raw]
    assert [after[f"weight/{n}"] for n in names] == pytest.approx(expected, rel=1e-6)
    assert [after[f"weight/{n}"] for n in names] != pytest.approx([before[f"weight/{n}"] for n in names])


def test_plain_text_is_learned_once_token_for_token(tmp_path: Path) -> None:
    """Golden: transformers' cross-entropy of every token of the text, each after at most a window of tokens."""
    text = "I walk the dog.\n\n  The cat is in the garden, and it is happy!\n" * 3
    path = tmp_path / "story.txt"
    path.write_text(text, encoding="utf-8")
    model = load_model("tiny", torch.float64)
    shown = read_demonstrations([str(path)], model.tokenizer, 256, window=20)
    learned = [token for s in shown for token in s.completion]
    assert learned == [*model.tokenizer.encode(text), 1]
    assert model.tokenizer.inner.decode(learned[:-1]) == text
    assert [len(s.completion) for s in shown[:-1]] == [20] * (len(shown) - 1)
    assert [s.prompt for s in shown] == [[1], *([s.completion[-1]] for s in shown[:-1])]
    assert all(
        len(s.prompt + s.completion) <= 16 for s in read_demonstrations([str(path)], model.tokenizer, 16, 512)
    )

    theirs = transformers_model(model.directory, torch.float64)
    losses = []
    for s in shown:
        ids = torch.tensor([s.prompt + s.completion])
        losses.append(float(theirs(input_ids=ids, labels=ids).loss.detach()) * len(s.completion))
    sft.run(config([str(path)], window=20, batch_size=100), tmp_path / "run", model=model)
    first = rows(tmp_path / "run")[0]
    assert first["tokens"] == len(learned)
    assert first["loss"] == pytest.approx(sum(losses) / len(learned), abs=1e-6)  # their loss is float32


def test_a_text_without_words_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(UserError, match=r"empty\.txt: holds no text; check"):
        sft.run(config([str(tmp_path / "empty.txt")]), tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"keep": "best"}, "keep best goes by the held-out loss, and heldout 0 measures none"),
        ({"patience": 2}, "patience goes by the held-out loss"),
        ({"mixture": {"rule": "ratio"}}, "mixture rule ratio goes by the held-out loss"),
        ({"schedule": "exponential"}, "an exponential schedule never reaches 0; set rate_end, such as 0.01"),
        ({"data": ["a.jsonl", "a.jsonl"]}, "data names a file twice"),
        ({"mixture": {"rule": "fixed", "weights": [1.0]}}, "mixture.weights are 1, data's files 3"),
        ({"optimizer": {"name": "sgd", "eps": 0.1}}, "optimizer: sgd has no eps; it has momentum"),
        ({"dropout": 1.0}, "dropout: input should be less than 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(data: list[str], settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        config(data, **settings)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"heldout": 0.001, "keep": "best"}, "no prompt is held out; raise it"),
        ({"heldout": 0.001, "mixture": {"rule": "ratio"}}, "nothing of food is, so its weight cannot follow"),
        ({"heldout": 0.6, "mixture": {"rule": "fixed"}}, "all of .* is held out; lower it"),
    ],
)
def test_a_split_that_cannot_work_is_refused(
    data: list[str], tmp_path: Path, settings: dict[str, Any], fault: str
) -> None:
    with pytest.raises(UserError, match=fault):
        sft.run(config(data, **settings), tmp_path / "run")
