"""Completions of a file of prompts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from plaudit import files
from plaudit.data.judged import known_ids, prompt_key
from plaudit.models.adapter import save_adapter
from plaudit.models.load import load_model, make_adapter
from plaudit.rollout.generate import generate
from plaudit.tensors import SamplingParams
from plaudit.types import Message, UserError

PROMPTS: list[Any] = ["how are you", [{"role": "user", "content": "tell me more"}], "a cat and a dog"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    return path


def rows_of(prompts: Path, params: SamplingParams | None = None, **settings: Any) -> list[dict[str, Any]]:
    out = prompts.parent / "out.jsonl"
    generate("tiny", prompts, out, params or SamplingParams(12), dtype=torch.float64, **settings)
    return [json.loads(line) for line in out.read_text().split("\n")[:-1]]


def test_samples_come_in_the_prompts_order(prompts: Path) -> None:
    rows = rows_of(prompts, n=3)
    assert [row["prompt"] for row in rows] == [prompt for prompt in PROMPTS for _ in range(3)]
    assert [row["index"] for row in rows] == [0, 1, 2] * 3
    tokenizer = load_model("tiny", torch.float64).tokenizer
    for row in rows:
        assert tokenizer.decode(row["completion_ids"]) == row["completion"]
        assert len(row["logprobs"]) == len(row["completion_ids"]) <= 12
        assert (row["finish_reason"] == "stop") == (row["completion_ids"][-1] in tokenizer.eos_ids)
        assert row["tokenizer"] == tokenizer.fingerprint
        assert row["policy_version"] == "tiny"


def test_what_is_drawn_depends_on_the_seed_and_the_prompts_place_alone(prompts: Path) -> None:
    first = rows_of(prompts, n=2, seed=5)
    assert rows_of(prompts, n=2, seed=5) == first
    assert rows_of(prompts, n=2, seed=6) != first
    alone = rows_of(prompts, n=1, seed=5)
    assert [row["completion_ids"] for row in alone] == [row["completion_ids"] for row in first[::2]]


def test_logprobs_and_greedy_tokens_are_transformers_own(prompts: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = load_model("tiny", torch.float64)
    theirs = AutoModelForCausalLM.from_pretrained(str(model.directory), dtype=torch.float64)
    for temperature in (0.0, 0.7):
        for row in rows_of(prompts, SamplingParams(8, temperature)):
            prompt = row["prompt"]
            if not isinstance(prompt, str):
                prompt = tuple(Message(**message) for message in prompt)
            rendered = model.tokenizer.render(prompt)
            with torch.no_grad():
                logits = theirs(input_ids=torch.tensor([rendered + row["completion_ids"]])).logits[0]
            seen = torch.log_softmax(logits[len(rendered) - 1 : -1] / (temperature or 1), -1)
            ids = torch.tensor(row["completion_ids"])
            wanted = seen.gather(1, ids[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(row["logprobs"]).double(), wanted, rtol=0, atol=1e-5)
            assert temperature or bool((seen.argmax(-1) == ids).all())


def test_the_sampled_ids_are_found_again_for_training(prompts: Path, tmp_path: Path) -> None:
    """Also where a completion holds what Unicode calls a line's end, which JSON leaves as it is."""
    row = rows_of(prompts)[1] | {"completion": "a\u2028b\x85c"}
    files.write_rows(tmp_path / "more.jsonl", [row])
    ids = known_ids([str(tmp_path / "out.jsonl"), str(tmp_path / "more.jsonl")])
    key = prompt_key((Message("user", "tell me more"),))
    assert ids[key, "a\u2028b\x85c"] == row["completion_ids"]
    assert len(ids) == 4


def test_a_file_that_generate_did_not_write_holds_no_ids(prompts: Path) -> None:
    with pytest.raises(
        UserError, match=r"prompts\.jsonl:1: is no sample; name a file that `plaudit generate` wrote"
    ):
        known_ids([str(prompts)])


def test_weights_that_give_no_numbers_are_told_and_nothing_is_written(prompts: Path, tmp_path: Path) -> None:
    model = load_model("tiny", torch.float64)
    adapter = make_adapter(model.trunk, rank=2, alpha=4.0, blocks=1, seed=1)
    with torch.no_grad():
        for factor in adapter.factors.values():
            factor.fill_(math.nan)
    (tmp_path / "broken").mkdir()
    save_adapter(adapter, tmp_path / "broken", base="tiny")
    out = tmp_path / "none.jsonl"
    with pytest.raises(
        UserError, match="broken: gives probabilities that are no numbers; its weights are broken"
    ):
        generate("tiny", prompts, out, SamplingParams(4), adapter=tmp_path / "broken")
    assert not out.exists()


def test_an_adapter_is_sampled_from(prompts: Path, tmp_path: Path) -> None:
    model = load_model("tiny", torch.float64)
    adapter = make_adapter(model.trunk, rank=4, alpha=8.0, blocks=0, seed=1)
    plain = rows_of(prompts, n=2)
    for scale, same in ((0.0, True), (1.0, False)):
        with torch.no_grad():
            for name, factor in adapter.factors.items():
                if name.endswith("_B"):
                    factor.fill_(scale)
        (tmp_path / "adapter").mkdir(exist_ok=True)
        save_adapter(adapter, tmp_path / "adapter", base="tiny")
        rows = rows_of(prompts, n=2, adapter=tmp_path / "adapter")
        assert all(row["policy_version"] == f"tiny with {tmp_path / 'adapter'}" for row in rows)
        assert ([row["completion_ids"] for row in rows] == [row["completion_ids"] for row in plain]) is same


@pytest.mark.parametrize(
    ("params", "fault"),
    [
        (SamplingParams(250), r"prompt 1: has \d tokens; with 250 new ones the model takes 256; shorten"),
        (SamplingParams(8, float("nan")), "temperature: is nan"),
    ],
)
def test_what_cannot_be_drawn_is_refused_and_nothing_is_written(
    prompts: Path, params: SamplingParams, fault: str
) -> None:
    (prompts.parent / "prompts.jsonl").write_text('{"prompt": "a cat and a dog and a car"}\n')
    with pytest.raises(UserError, match=fault):
        rows_of(prompts, params)
    assert [path.name for path in prompts.parent.iterdir()] == ["prompts.jsonl"]
