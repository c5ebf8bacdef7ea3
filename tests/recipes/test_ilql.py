"""The ilql recipe on the tiny model: what it reads, what it leaves behind, how it is steered by, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plaudit.data.episodes import read_episodes, rewards_of
from plaudit.models.load import load_model
from plaudit.models.q_heads import load_heads
from plaudit.recipes import ilql
from plaudit.rollout.generate import generate
from plaudit.tensors import SamplingParams
from plaudit.types import Demonstration, Preference, Ranking, Rating, Record, UserError
from tiny_models import transformers_model

RECORDS: list[dict[str, Any]] = [
    {"prompt": "how are you", "completion": " great and happy", "scores": {"overall": 0.9}},
    {"prompt": "what do you like", "completions": [" good music", " nothing, it is all awful"], "choice": 0},
    {"prompt": "tell me", "completions": [" no", " a book", " yes of course"], "ranking": [2, 1, 0]},
    {"prompt": "what about dinner", "completion": " bread and tea", "scores": {"overall": 0.25}},
    {"prompt": "can we talk", "completion": " not now", "scores": {"overall": 0.0}},
    {"prompt": "can we talk", "completion": " yes we can", "scores": {"overall": 1.0}},
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write(tmp_path / "feedback.jsonl", RECORDS)


def config(data: str, **settings: Any) -> ilql.Config:
    tree: dict[str, Any] = {
        "model": "tiny",
        "data": [data],
        "heldout": 0.0,
        "epochs": 2,
        "batch_size": 5,
        "learning_rate": 1e-2,
        "polyak": 0.2,
        "warmup": 0.0,
        "adapter": {"rank": 4},
        "precision": "float64",
        "threads": 1,
        "checkpoint_every": 2,
    }
    return ilql.Config.model_validate(tree | settings)


def rows(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def everything(directory: Path) -> dict[str, bytes]:
    """What must be the same bit for bit."""
    kept = ["metrics.jsonl", "summary.json", "model/model.safetensors", "heads/heads.safetensors"]
    return {name: (directory / name).read_bytes() for name in [*kept, "adapter/adapter_model.safetensors"]}


TWO = ("good", "bad")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (Rating("p", "good", {"overall": 0.9}), [("good", 0.8)]),  # 2 (0.9 - 0.5)
        (Rating("p", "good", {"tone": 0.2, "truth": 0.4}), [("good", -0.4)]),  # 2 (0.3 - 0.5)
        (Preference("p", TWO, 0), [("good", 1.0), ("bad", -1.0)]),
        (Preference("p", TWO, 1), [("good", -1.0), ("bad", 1.0)]),
        (Preference("p", TWO, "tie"), [("good", 0.0), ("bad", 0.0)]),
        (Preference("p", TWO, "both_bad"), [("good", -1.0), ("bad", -1.0)]),
        (Ranking("p", ("a", "b", "c"), (2, 0, 1)), [("c", 1.0), ("a", 0.0), ("b", -1.0)]),
        (Preference("p", ("good", "good"), 0), []),  # nothing was compared
        (Preference("p", ("good", "good"), "both_bad"), []),
        (Ranking("p", ("a", "a"), (0, 1)), []),
        (Ranking("p", ("a", "b", "a"), (2, 0, 1)), [("a", 1.0), ("b", -1.0)]),  # at its better place
        (Demonstration("p", "good"), [("good", 0.7)]),
    ],
)
def test_what_each_judgement_is_worth(record: Record, expected: list[tuple[str, float]]) -> None:
    found = list(rewards_of(record, 0.5, 2.0, 0.7))
    assert [text for text, _ in found] == [text for text, _ in expected]
    assert [reward for _, reward in found] == pytest.approx([reward for _, reward in expected], abs=1e-15)


def test_sampled_ids_are_taken_where_known_and_texts_end(data: str) -> None:
    tokenizer = load_model("tiny", torch.float64).tokenizer
    known = {(json.dumps("tell me"), " no"): [5, 6, 7]}
    read = read_episodes([data], tokenizer, known, context=256, centre=0.5, scale=2.0, demonstration=None)
    assert len(read) == 9
    assert next(e for e in read if e.completion == [5, 6, 7]).reward == -1.0
    assert all(e.completion[-1] == 1 for e in read if e.completion != [5, 6, 7])
    assert {e.key for e in read if e.reward == -1.0} == {
        json.dumps(p) for p in ("what do you like", "tell me", "can we talk")
    }


@pytest.mark.parametrize("target", ["ilql", "q_learning", "sarsa"])
def test_the_split_into_micro_batches_changes_nothing(data: str, tmp_path: Path, target: str) -> None:
    found = []
    for budget in (1, 40, 10_000):
        where = tmp_path / str(budget)
        ilql.run(config(data, micro_batch_tokens=budget, target=target, awac_beta=0.5), where)
        found.append([(row["loss"], row["grad_norm"], row["advantage"]) for row in rows(where)])
    for other in found[1:]:
        torch.testing.assert_close(torch.tensor(other), torch.tensor(found[0]), rtol=1e-10, atol=1e-10)


def run_until(attribute: str, call: int, chosen: ilql.Config, directory: Path) -> None:
    """A run that dies when it calls what it knows as `attribute` for the call-th time (1, 2, ...)."""
    calls = 0
    owner, _, name = attribute.rpartition(".")
    place = getattr(ilql, owner) if owner else ilql
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
            ilql.run(chosen, directory)


@pytest.mark.parametrize(
    ("attribute", "call"),
    [("take_step", 1), ("take_step", 3), ("take_step", 4), ("checkpoint.save", 1), ("checkpoint.save", 2),
     ("write_policy", 1), ("save_heads", 1)],
)  # fmt: skip
def test_a_killed_run_ends_with_the_same_bits(data: str, tmp_path: Path, attribute: str, call: int) -> None:
    """Four steps, saved after the second and the fourth; the slow heads and what was measured come back too."""
    chosen = config(data, heldout=0.3, head_hidden=8, batch_size=3)
    ilql.run(chosen, tmp_path / "whole")
    assert len(rows(tmp_path / "whole")) == 4
    run_until(attribute, call, chosen, tmp_path / "cut")
    assert not (tmp_path / "cut" / "summary.json").exists()
    ilql.run(chosen, tmp_path / "cut")
    assert everything(tmp_path / "cut") == everything(tmp_path / "whole")


def test_q_and_v_learn_the_rewards(data: str, tmp_path: Path) -> None:
    """With gamma 1 and one judgement for most answers, what is good is soon told from what is bad."""
    chosen = config(data, epochs=60, gamma=1.0, learning_rate=5e-3, polyak=0.1)
    model = load_model("tiny", torch.float64)
    summary = ilql.run(chosen, tmp_path, model=model)
    assert summary["q_loss"] < 0.1 * rows(tmp_path)[0]["q_loss"]
    reloaded = load_model(str(tmp_path / "model"), torch.float64)
    heads = load_heads(tmp_path, reloaded)
    episodes = read_episodes(
        [data], model.tokenizer, {}, context=256, centre=0.5, scale=2.0, demonstration=None
    )
    from plaudit.models.branch import Branch

    figures = ilql.measure(episodes, Branch(reloaded.trunk), heads, chosen)
    assert figures["heldout_correlation"] > 0.95
    assert figures["heldout_reward_error"] < 0.5 * figures["heldout_constant_error"]


def test_heldout_prompts_are_kept_apart_and_measured(data: str, tmp_path: Path) -> None:
    chosen = config(data, heldout=0.4)
    summary = ilql.run(chosen, tmp_path)
    assert summary["heldout_episodes"] + summary["episodes"] == 9
    assert summary["heldout_episodes"] > 0
    logged = [row for row in rows(tmp_path) if "heldout_value" in row]
    assert len(logged) == 2  # one an epoch
    assert summary["heldout_nll"] == logged[-1]["heldout_nll"]


def whole_tables(directory: Path, row: dict[str, Any], beta: float, temperature: float) -> Tensor:
    """Steered log-probabilities [T, V] of a row's tokens: transformers' logits and states, heads as plain matrices."""
    from safetensors.torch import load_file

    theirs = transformers_model(directory / "model", torch.float64)
    heads = {k: v.double() for k, v in load_file(directory / "heads" / "heads.safetensors").items()}
    prompt = load_model("tiny", torch.float64).tokenizer.encode(row["prompt"])
    with torch.no_grad():
        out = theirs(torch.tensor([prompt + row["completion_ids"]]), output_hidden_states=True)
    states = out.hidden_states[-1][0, len(prompt) - 1 : -1]
    even = states / states.square().mean(-1, keepdim=True).sqrt()
    both = []
    for i in range(2):
        name = f"targets.{i}."
        inner = torch.relu(even @ heads[name + "inner"].T + heads[name + "inner_bias"])
        both.append(inner @ heads[name + "weight"].T + heads[name + "bias"])
    logits = out.logits[0, len(prompt) - 1 : -1] + beta * torch.minimum(*both)
    return torch.log_softmax(logits / (temperature or 1.0), -1)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_steered_draws_are_reported_as_what_they_were_drawn_from(
    data: str, tmp_path: Path, temperature: float
) -> None:
    """Against transformers' forward of the written model and the heads read as plain tensors."""
    ilql.run(config(data, head_hidden=8, epochs=10), tmp_path / "run")
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": r["prompt"]} for r in RECORDS[:3]])
    found = {}
    for beta in (0.0, 30.0):
        out = tmp_path / f"{beta}.jsonl"
        generate(
            str(tmp_path / "run" / "model"), Path(prompts), out, SamplingParams(6, temperature), n=2, seed=1,
            steer=tmp_path / "run", steer_beta=beta, dtype=torch.float64,
        )  # fmt: skip
        found[beta] = [json.loads(line) for line in out.read_text().splitlines()]
        for row in found[beta]:
            said = whole_tables(tmp_path / "run", row, beta, temperature)
            ids = torch.tensor(row["completion_ids"])
            own = said.gather(1, ids[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(row["logprobs"]).double(), own, rtol=0, atol=1e-6)
            assert temperature or bool((said.argmax(-1) == ids).all())
    plain = tmp_path / "plain.jsonl"
    generate(
        str(tmp_path / "run" / "model"), Path(prompts), plain, SamplingParams(6, temperature), n=2, seed=1,
        dtype=torch.float64,
    )  # fmt: skip
    tokens = [json.loads(line)["completion_ids"] for line in plain.read_text().splitlines()]
    assert [
        row["completion_ids"] for row in found[0.0]
    ] == tokens  # keyed draws, and a beta of 0 changes nothing
    assert [row["completion_ids"] for row in found[30.0]] != tokens


def test_heads_belong_to_the_model_that_was_written(data: str, tmp_path: Path) -> None:
    ilql.run(config(data), tmp_path / "run")
    prompts = Path(write(tmp_path / "prompts.jsonl", [{"prompt": "how are you"}]))
    out, params = tmp_path / "out.jsonl", SamplingParams(4)
    with pytest.raises(UserError, match=r"Q heads read another model's states; sample from .*run/model"):
        generate("tiny", prompts, out, params, steer=tmp_path / "run")
    with pytest.raises(UserError, match="holds no Q heads; name the directory of an ilql run"):
        generate("tiny", prompts, out, params, steer=tmp_path)
    with pytest.raises(UserError, match="has its adapter in it; give --steer alone"):
        generate("tiny", prompts, out, params, steer=tmp_path / "run", adapter=tmp_path / "run" / "adapter")
    with pytest.raises(UserError, match="steer-beta: is nan"):
        generate("tiny", prompts, out, params, steer=tmp_path / "run", steer_beta=float("nan"))
    about = json.loads((tmp_path / "run" / "heads" / "heads.json").read_text())
    assert about["target"] == "ilql"
    assert about["hidden"] == 0


def test_full_fine_tuning_is_steered_as_well(data: str, tmp_path: Path) -> None:
    ilql.run(config(data, adapter={"rank": 0}, epochs=1), tmp_path / "run")
    assert not (tmp_path / "run" / "adapter").exists()
    prompts = Path(write(tmp_path / "prompts.jsonl", [{"prompt": "how are you"}]))
    model = str(tmp_path / "run" / "model")
    said = generate(model, prompts, tmp_path / "out.jsonl", SamplingParams(4), steer=tmp_path / "run")
    assert said["samples"] == 1


@pytest.mark.parametrize(
    ("records", "settings", "line"),
    [
        (
            [{"prompt": "a", "completion": "b"}],
            {},
            "record 1: is a demonstration, which says no reward; set demonst",
        ),
        (
            [RECORDS[0], RECORDS[0]],
            {},
            "all 2 rewards are 0.8, so there is nothing to learn; judge more varied",
        ),
        (
            [{"prompt": "a", "completions": ["b", "c"], "choice": "tie"}],
            {},
            "all 2 rewards are 0, so there is",
        ),
        (
            [{"prompt": "a", "completions": ["b", "c"], "choice": c} for c in (0, 1)],
            {},
            "the rewards of every completion have the mean 0, so there is nothing to learn; collect more",
        ),
        (
            [{"prompt": p, "completion": "b", "scores": {"overall": s}} for p in "ab" for s in (0.3, 0.6)],
            {},
            "the rewards of every completion have the mean -0.1, so there is",
        ),
        (
            [{"prompt": "a", "completions": ["b", "b"], "choice": 0}],
            {},
            "holds no rating, and no comparison of different completions; collect judgements",
        ),
        (RECORDS, {"heldout": 0.999}, "all 9 episodes are held out; lower it"),
        (
            [{"prompt": "a", "completion": "b " * 300, "scores": {"overall": 1}}],
            {},
            r"record 1: has \d+ tokens, the",
        ),
        (
            RECORDS,
            {"learning_rate": 1e200, "max_grad_norm": 1e200},
            r"not a number at step \d; lower the learning",
        ),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, records: list[dict[str, Any]], settings: dict[str, Any], line: str
) -> None:
    with pytest.raises(UserError, match=line):
        ilql.run(config(write(tmp_path / "data.jsonl", records), **settings), tmp_path / "run")


def test_demonstrations_with_a_stated_reward_are_learnt_from(tmp_path: Path) -> None:
    shown = {"prompt": "where is the cat", "completion": " in the garden"}
    data = write(tmp_path / "data.jsonl", [*RECORDS, shown])
    summary = ilql.run(config(data, demonstration_reward=1.0, epochs=1), tmp_path / "run")
    assert summary["episodes"] == 10


def test_the_command_line_trains_and_steers(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from plaudit.cli import main

    (tmp_path / "ilql.yaml").write_text(
        "recipe: ilql\nmodel: tiny\nepochs: 2\nadapter: {rank: 4}\nprecision: float32\nthreads: 1\n"
    )
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "how are you"}])
    run, out = str(tmp_path / "run"), str(tmp_path / "out.jsonl")
    assert main(["train", str(tmp_path / "ilql.yaml"), f"data=[{data}]", "--out", run]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    assert main(["resume", run]) == 0  # of a finished run, the summary
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    steered = ["--steer", run, "--steer-beta", "8", "--prompts", prompts, "--out", out, "--threads", "1"]
    assert main(["generate", f"{run}/model", "--n", "3", "--precision", "float32", *steered]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 3
    assert "steered by 8" in json.loads(Path(out).read_text().splitlines()[0])["policy_version"]


def test_weights_that_the_last_step_broke_are_not_written(data: str, tmp_path: Path) -> None:
    """No later loss sees them."""
    with pytest.raises(
        UserError, match="a weight is not a number after the last step; lower the learning rate"
    ):
        ilql.run(config(data, learning_rate=1e308, epochs=1, batch_size=64), tmp_path)
    assert len(rows(tmp_path)) == 1
    assert not (tmp_path / "model").exists()
