"""Several models on the same prompts: figures from rows by hand, log-probabilities by transformers."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from plaudit.cli import main
from plaudit.evaluation.evaluate import figures, kl
from plaudit.evaluation.evaluate import look as real_look
from plaudit.models import tiny
from plaudit.models.branch import Branch, ScalarHead
from plaudit.models.load import load_model, make_adapter
from plaudit.randomness import torch_seed
from plaudit.recipes import evaluate
from plaudit.reward.model import RewardModel
from plaudit.tensors import Sample
from plaudit.types import UserError

CONFIGS = Path(__file__).parents[2] / "configs"


def longer_is_better(samples: Sequence[Sample]) -> list[float]:
    return [float(len(sample.completion_ids)) for sample in samples]


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """The tiny model with its embedding doubled: the same tokenizer, sharper distributions."""
    directory = tmp_path / "other"
    shutil.copytree(load_model("tiny", torch.float64).directory, directory)
    tensors = load_file(directory / "model.safetensors")
    tensors["model.embed_tokens.weight"] *= 2
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    asked = ["how are you", [{"role": "user", "content": "hello"}], "a cat", "tell me"]
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in asked))
    return path


def config(models: list[str], prompts: Path, **settings: Any) -> evaluate.Config:
    tree = {"models": models, "prompts": str(prompts), "n": 3, "max_new_tokens": 10, "seed": 2}
    tree |= {"precision": "float64", "threads": 1, "reward": "test_evaluate:longer_is_better"}
    return evaluate.Config.model_validate(tree | settings)


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "samples.jsonl").read_text().split("\n") if line]


def row(
    ids: list[int], score: float | None, logprob: float, base: float, stop: bool = True
) -> dict[str, Any]:
    return {
        "model": "m",
        "completion": "",
        "completion_ids": ids,
        "tokenizer": "same",
        "finish_reason": "stop" if stop else "length",
        "sampling": {"temperature": 1.0, "top_k": 0, "top_p": 1.0},
        "score": score,
        "logprob": logprob,
        "baseline_logprob": base,
        "baseline_tokens": len(ids),
    }


class Same:
    fingerprint = "same"


def test_figures_by_hand() -> None:
    """Two prompts, two samples each."""
    first = [
        row([5, 6, 1], 1, -3, -3),
        row([5, 6], 2, -2, -2, False),
        row([7, 1], 0, -1, -1),
        row([5], 0, -2, -2, False),
    ]
    second = [
        row([5, 6, 5, 6], 2, -1, -5),
        row([6, 6], 2, -1, -2),
        row([5, 1], 0, -1, -1),
        row([9, 9, 1], -1, -1, -2),
    ]
    one, two = figures([first, second], Same(), n=2, seed=0)  # type: ignore[arg-type]
    assert one["reward"] == 0.75  # (1.5 + 0) / 2
    assert one["best_of_n"] == 1.0  # (2 + 0) / 2
    assert one["win_rate"] is None
    assert one["kl"] == 0
    assert one["perplexity"] == pytest.approx(math.exp(8 / 8))
    assert one["length"] == 2
    assert one["eos_rate"] == 0.5
    # 5-6, 6-1, 5-6, 7-1 of 8 tokens: three of four are distinct.
    assert (one["distinct_2"], one["distinct_2_tokens"]) == (0.75, 8)

    assert two["reward"] == 0.75  # (2 - 0.5) / 2
    # Prompt 1: 2 beats 1 twice, ties 2 twice: 3/4. Prompt 2: 0 ties 0 twice, -1 loses twice: 1/4.
    assert two["best_of_n"] == 1.0
    assert two["win_rate"] == 0.5
    assert two["win_rate_interval"] == [0.25, 0.75]
    assert two["reward_interval"] == [-0.5, 2.0]
    assert two["kl"] == pytest.approx((4 + 1 + 0 + 1) / 11)
    assert two["perplexity"] == pytest.approx(math.exp(10 / 11))
    # The first 8 of 11 tokens: 5-6, 6-5, 5-6, 6-6, 5-1.
    assert two["distinct_2"] == 4 / 5


@pytest.mark.parametrize(("setting", "value"), [("temperature", 0.7), ("top_k", 5), ("top_p", 0.9)])
def test_samples_of_another_distribution_estimate_no_kl(setting: str, value: float) -> None:
    rows = [row([1], None, -1, -2)]
    assert kl(rows) == 1
    rows[0]["sampling"][setting] = value
    assert kl(rows) is None


def test_a_model_beside_itself_is_its_equal(prompts: Path, tmp_path: Path) -> None:
    summary = evaluate.run(config(["tiny", "tiny"], prompts), tmp_path / "run")
    first, second = summary["models"]
    assert second["win_rate"] == 0.5
    assert second["kl"] == 0
    same = ("reward", "reward_interval", "perplexity", "distinct_2", "length", "eos_rate")
    assert [first[name] for name in same] == [second[name] for name in same]
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())


def test_kl_and_perplexity_are_what_transformers_says(prompts: Path, other: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    summary = evaluate.run(config(["tiny", str(other)], prompts), tmp_path / "run")
    base = load_model("tiny", torch.float64)
    sums = {}
    rows = rows_of(tmp_path / "run")[12:]
    for name, directory in (("base", base.directory), ("other", other)):
        theirs = AutoModelForCausalLM.from_pretrained(str(directory), dtype=torch.float64)
        sums[name] = 0.0
        for found in rows:
            asked = found["prompt"]
            rendered = (
                base.tokenizer.encode(asked)
                if isinstance(asked, str)
                else base.tokenizer.encode("<|user|>hello<|end|><|assistant|>")
            )
            ids = torch.tensor([rendered + found["completion_ids"]])
            labels = ids.clone()
            labels[:, : len(rendered)] = -100
            with torch.no_grad():
                loss = theirs(input_ids=ids, labels=labels).loss
            sums[name] -= float(loss) * len(found["completion_ids"])
    tokens = sum(len(found["completion_ids"]) for found in rows)
    found = summary["models"][1]
    assert found["kl"] == pytest.approx((sums["other"] - sums["base"]) / tokens, abs=1e-5)
    assert found["kl"] > 0.1
    assert found["perplexity"] == pytest.approx(math.exp(-sums["base"] / tokens), rel=1e-5)
    assert found["length"] == tokens / 12


def test_a_reward_model_reads_its_own_base(prompts: Path, other: Path, tmp_path: Path) -> None:
    model = load_model("tiny", torch.float64)
    adapter = make_adapter(model.trunk, rank=2, alpha=4.0, blocks=1, seed=0)
    head = ScalarHead(model.trunk.shape.width, dtype=torch.float64).initialise(torch_seed(1))
    reward = RewardModel(Branch(model.trunk, adapter, head), model)
    reward.save(tmp_path / "reward", {})
    evaluate.run(config([str(other), "tiny"], prompts, reward=str(tmp_path / "reward")), tmp_path / "run")
    found = rows_of(tmp_path / "run")[0]
    wanted = reward.score_ids([model.tokenizer.encode("how are you")], [found["completion_ids"]])[0]
    assert found["score"] == pytest.approx(wanted, abs=1e-10)


def test_without_a_reward_there_is_no_score(prompts: Path, other: Path, tmp_path: Path) -> None:
    summary = evaluate.run(config(["tiny", str(other)], prompts, reward=None), tmp_path / "run")
    assert all(found["reward"] is None and found["win_rate"] is None for found in summary["models"])
    assert summary["models"][1]["kl"] > 0


def test_another_tokenizer_gives_no_kl_but_a_perplexity(prompts: Path, other: Path, tmp_path: Path) -> None:
    template = other / "chat_template.jinja"
    template.write_text(tiny.TEMPLATE.replace("<|end|>", "<|end|> "))
    summary = evaluate.run(config(["tiny", str(other)], prompts), tmp_path / "run")
    found = summary["models"][1]
    assert found["kl"] is None
    assert found["perplexity"] > 1
    assert 0 < found["distinct_2"] <= 1


def test_a_run_that_was_killed_asks_no_model_twice(
    prompts: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = config(["tiny", str(other), "tiny"], prompts)
    whole = evaluate.run(chosen, tmp_path / "whole")
    asked: list[str] = []

    dies = True

    def look(model: Any, name: str, *rest: Any, **settings: Any) -> Any:
        asked.append(name)
        if len(asked) == 2 and dies:
            raise KeyboardInterrupt
        return real_look(model, name, *rest, **settings)

    monkeypatch.setattr(evaluate, "look", look)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(chosen, tmp_path / "cut")
    dies = False
    assert evaluate.run(chosen, tmp_path / "cut") == whole
    assert asked == ["tiny", str(other), str(other), "tiny"]
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")


@pytest.mark.parametrize("fault", ["no model", "another family", "nothing"])
def test_a_model_at_fault_is_told_before_any_is_asked(
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: str,
) -> None:
    """And no run is left behind."""

    def look(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(evaluate, "look", look)
    monkeypatch.chdir(tmp_path)
    if fault != "nothing":
        Path("second").mkdir()
    if fault == "another family":
        Path("second/config.json").write_text('{"model_type": "t5"}')
    words = [f"prompts={prompts}", "models=[tiny, ./second]", "reward=null", "threads=1", "--out", "run"]
    assert main(["evaluate", str(CONFIGS / "evaluate.yaml"), *words]) == 2
    assert capsys.readouterr().err.startswith(
        {
            "no model": "plaudit: second: holds no config.json; give a model directory",
            "another family": "plaudit: second/config.json: model type 't5' is not supported",
            "nothing": "plaudit: ./second: there is no such model; give a directory",
        }[fault]
    )
    assert not Path("run").exists()


def test_a_prompt_that_leaves_no_room_is_named(prompts: Path, tmp_path: Path) -> None:
    prompts.write_text('{"prompt": "a"}\n' + json.dumps({"prompt": "word " * 300}) + "\n")
    with pytest.raises(UserError, match=r"prompt 2: has \d+ tokens"):
        evaluate.run(config(["tiny"], prompts), tmp_path / "run")


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("raises", "failed .KeyError"),
        ("gives_nan", "not a finite number"),
        ("gives_infinity", "not a finite number"),
        ("one_too_few", "gave 11 scores for 12 samples"),
        ("sleeps", "took longer than 0.2 s"),
    ],
)
def test_a_rule_at_fault_is_named(prompts: Path, tmp_path: Path, rule: str, said: str) -> None:
    (tmp_path / "r.yaml").write_text(f"kind: rule\nrule: rules:{rule}\nseconds: 0.2\n")
    with pytest.raises(UserError, match=f"rules:{rule}: .*{said}"):
        evaluate.run(config(["tiny"], prompts, reward=str(tmp_path / "r.yaml")), tmp_path / "run")


def test_a_constant_reward_is_named_and_an_ensemble_says_how_sure_it_is(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "e.yaml").write_text("kind: ensemble\nmembers: [test_evaluate:one, test_evaluate:three]\n")
    evaluate.run(config(["tiny"], prompts, reward=str(tmp_path / "e.yaml")), tmp_path / "run")
    assert "every score is the same" in capsys.readouterr().err
    assert {(found["score"], found["uncertainty"]) for found in rows_of(tmp_path / "run")} == {(2.0, 1.0)}


def one(samples: Sequence[Sample]) -> list[float]:
    return [1.0 for _ in samples]


def three(samples: Sequence[Sample]) -> list[float]:
    assert all(sample.asked for sample in samples)
    return [3.0 for _ in samples]
