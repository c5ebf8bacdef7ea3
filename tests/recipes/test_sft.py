"""Supervised fine-tuning on the tiny model: what it computes, what it leaves behind, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from plaudit.data.demonstrations import read_demonstrations, split
from plaudit.models.load import load_model
from plaudit.recipes import sft
from plaudit.types import UserError

PAIRS = [
    ("how are you today", " I feel great and happy"),
    ("what do you like", " good music and a book"),
    ("where is the cat", " in the garden"),
    ("tell me more", " not now"),
    ("how are you today", " tired and sad"),
    ("what is wrong", " my car is broken and I am late for work today"),
    ("what about dinner", " bread and tea"),
    ("can we talk", " yes of course we can"),
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> str:
    rows: list[dict[str, Any]] = [{"prompt": p, "completion": c} for p, c in PAIRS]
    rows.append({"prompt": [{"role": "user", "content": "help me"}], "completion": "with what"})
    return write(tmp_path / "demonstrations.jsonl", rows)


def config(data: str, **settings: Any) -> sft.Config:
    tree: dict[str, Any] = {
        "model": "tiny",
        "data": [data],
        "heldout": 0.0,
        "epochs": 2,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "warmup": 0.0,
        "precision": "float64",
        "threads": 1,
        "checkpoint_every": 2,
    }
    return sft.Config.model_validate(tree | settings)


def rows(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def everything(directory: Path) -> dict[str, bytes]:
    """What must be the same bit for bit."""
    kept = ["metrics.jsonl", "summary.json", "model/model.safetensors", "adapter/adapter_model.safetensors"]
    return {name: (directory / name).read_bytes() for name in kept}


def test_the_first_loss_is_transformers_own(data: str, tmp_path: Path) -> None:
    """Golden: cross-entropy of transformers' own forward with every prompt token's label ignored."""
    from transformers import AutoModelForCausalLM

    model = load_model("tiny", torch.float64)
    theirs = AutoModelForCausalLM.from_pretrained(str(model.directory), dtype=torch.float64)
    losses, tokens = 0.0, 0
    shown = read_demonstrations([data], model.tokenizer, 256)
    for s in shown:
        ids = torch.tensor([s.prompt + s.completion])
        labels = ids.clone()
        labels[:, : len(s.prompt)] = -100
        losses += float(theirs(input_ids=ids, labels=labels).loss.detach()) * len(s.completion)
        tokens += len(s.completion)
    sft.run(config(data, batch_size=100), tmp_path / "run", model=model)
    first = rows(tmp_path / "run")[0]
    assert first["tokens"] == tokens
    assert first["loss"] == pytest.approx(losses / tokens, abs=1e-6)  # their norms are float32


def test_completions_end_and_messages_are_rendered(data: str) -> None:
    model = load_model("tiny", torch.float64)
    shown = read_demonstrations([data], model.tokenizer, 256)
    assert all(s.completion[-1] in model.tokenizer.eos_ids for s in shown)
    assert model.tokenizer.inner.decode(shown[-1].prompt) == "<|user|>help me<|end|><|assistant|>"
    assert model.tokenizer.decode(shown[0].completion) == " I feel great and happy"


@pytest.mark.parametrize("rank", [4, 0])
def test_the_split_into_micro_batches_changes_nothing(data: str, tmp_path: Path, rank: int) -> None:
    found = []
    for budget in (1, 40, 10_000):
        where = tmp_path / str(budget)
        sft.run(config(data, micro_batch_tokens=budget, adapter={"rank": rank}), where)
        found.append([(row["loss"], row["grad_norm"]) for row in rows(where)])
    for other in found[1:]:
        torch.testing.assert_close(torch.tensor(other), torch.tensor(found[0]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("rank", "reached"), [(0, 1.0), (16, 4.5)])
def test_it_learns_what_it_is_shown(data: str, tmp_path: Path, rank: int, reached: float) -> None:
    """From chance, log 714 = 6.57 nats; an adapter leaves this random model's embedding as it is, and gets less far."""
    summary = sft.run(config(data, epochs=30, learning_rate=3e-3, adapter={"rank": rank}), tmp_path)
    losses = [row["loss"] for row in rows(tmp_path)]
    assert losses[0] == pytest.approx(6.57, abs=0.2)
    assert summary["loss"] == losses[-1] < reached


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


@pytest.mark.parametrize(
    ("attribute", "call"),
    [("take_step", step) for step in (1, 2, 3, 4)]
    + [("checkpoint.save", 1), ("checkpoint.save", 2), ("write_policy", 1)],
)
def test_a_killed_run_ends_with_the_same_bits(data: str, tmp_path: Path, attribute: str, call: int) -> None:
    """Four steps, saved after the second and the fourth; a kill between log and checkpoint repeats both steps."""
    chosen = config(data, heldout=0.3, warmup=0.2)
    sft.run(chosen, tmp_path / "whole")
    assert len(rows(tmp_path / "whole")) == 4
    run_until(attribute, call, chosen, tmp_path / "cut")
    assert not (tmp_path / "cut" / "summary.json").exists()
    sft.run(chosen, tmp_path / "cut")
    assert everything(tmp_path / "cut") == everything(tmp_path / "whole")


def test_heldout_prompts_are_kept_apart_and_measured(data: str, tmp_path: Path) -> None:
    chosen = config(data, heldout=0.4)
    shown = read_demonstrations([data], load_model("tiny", torch.float64).tokenizer, 256)
    training, heldout = split(shown, chosen.heldout, chosen.seed)
    assert heldout
    assert not {s.key for s in training} & {s.key for s in heldout}
    assert len(training) + len(heldout) == len(shown)
    again, _ = split(
        shown[::-1][:5] + training, chosen.heldout, chosen.seed
    )  # a prompt's side does not depend on the others
    assert {s.key for s in again} == {s.key for s in training}
    summary = sft.run(chosen, tmp_path)
    logged = [row["heldout_loss"] for row in rows(tmp_path) if "heldout_loss" in row]
    assert len(logged) == 2  # one an epoch
    assert summary["heldout_loss"] == logged[-1] != summary["heldout_loss_before"]
    assert summary["heldout_demonstrations"] == len(heldout)


def test_the_learning_rate_warms_up_and_goes_to_zero(data: str, tmp_path: Path) -> None:
    sft.run(config(data, batch_size=1, epochs=1, warmup=0.3), tmp_path)  # 9 steps, ceil(2.7) = 3 to warm up
    rates = [row["learning_rate"] / 1e-2 for row in rows(tmp_path)]
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def logits_of(load: Callable[[], Any], ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = load().to(torch.float64).eval()(input_ids=ids).logits
    return found


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)  # peft asks for it
@pytest.mark.parametrize("rank", [4, 0])
def test_transformers_and_peft_load_the_result_with_our_logits(data: str, tmp_path: Path, rank: int) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = load_model("tiny", torch.float64)
    sft.run(config(data, adapter={"rank": rank, "blocks": 3 if rank else 0}), tmp_path, model=model)
    text = "how are you today"
    ids = torch.tensor([AutoTokenizer.from_pretrained(str(tmp_path / "model"))(text)["input_ids"]])
    assert ids[0].tolist() == model.tokenizer.encode(text)

    ours = load_model(str(tmp_path / "model"), torch.float64).trunk
    columns = ids.shape[1]
    context = ours.context(
        torch.arange(columns)[None], torch.ones(1, columns, columns, dtype=torch.bool).tril()
    )
    mine = ours.finish(ours.run(ours.embed(ids), context)) @ ours.output_weight.T

    whole = logits_of(lambda: AutoModelForCausalLM.from_pretrained(str(tmp_path / "model")), ids)
    base = logits_of(lambda: AutoModelForCausalLM.from_pretrained(str(model.directory)), ids)
    torch.testing.assert_close(whole, mine, rtol=0, atol=1e-5)  # their norms are float32
    assert (whole - base).abs().max() > 0.1
    assert (tmp_path / "adapter").exists() == (rank > 0)
    if rank:
        plain = AutoModelForCausalLM.from_pretrained(str(model.directory), dtype=torch.float64)
        adapted = logits_of(lambda: PeftModel.from_pretrained(plain, str(tmp_path / "adapter")), ids)
        torch.testing.assert_close(adapted, mine, rtol=0, atol=1e-5)  # the merge is rounded to float32


def test_other_records_are_refused_by_name(data: str, tmp_path: Path) -> None:
    other = write(tmp_path / "more.jsonl", [{"prompt": "a", "completions": ["b", "c"], "choice": 0}])
    with pytest.raises(
        UserError, match=r"more\.jsonl: record 1: is a preference, not a demonstration; write"
    ):
        sft.run(config(data).model_copy(update={"data": [data, other]}), tmp_path / "run")


def test_a_demonstration_too_long_is_named(tmp_path: Path) -> None:
    long = write(tmp_path / "long.jsonl", [{"prompt": "a", "completion": "b " * 300}])
    with pytest.raises(UserError, match=r"record 1: has \d+ tokens, the model takes 256; shorten"):
        sft.run(config(long), tmp_path / "run")


def test_nothing_left_to_train_on(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(UserError, match="all 1 demonstrations are held out; lower it"):
        sft.run(config(one, heldout=0.999), tmp_path / "run")


def test_a_run_that_diverges_says_so(data: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a number at step \d; lower the learning rate"):
        sft.run(config(data, learning_rate=1e200, max_grad_norm=1e200), tmp_path)
    assert not (tmp_path / "summary.json").exists()


def test_weights_that_the_last_step_broke_are_not_written(data: str, tmp_path: Path) -> None:
    """No later loss sees them."""
    with pytest.raises(
        UserError, match="a weight is not a number after the last step; lower the learning rate"
    ):
        sft.run(config(data, learning_rate=1e308, epochs=1, batch_size=16), tmp_path)
    assert len(rows(tmp_path)) == 1
    assert not (tmp_path / "model").exists()
