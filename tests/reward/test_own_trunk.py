"""A reward model that was trained on another model than the policy: it reads texts, on its own trunk."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import plaudit.reward.open as opening
from plaudit.models import tiny
from plaudit.models.load import Model, load_model
from plaudit.reward.combine import Ensemble
from plaudit.reward.model import OnOwnTrunk, RewardModel, load_reward_model
from plaudit.reward.open import open_scorer
from plaudit.reward.score import score
from plaudit.tensors import Sample
from plaudit.types import Message, Prompt, UserError, prompt_to_json
from runs import foreign_model, reward_model
from tiny_models import as_samples

ASKED: list[Prompt] = [
    "good morning",
    (Message("system", "be kind"), Message("user", "how are you")),
    "tea or",
]
SAID = [" great and happy, thanks", " sad", " coffee; 咖啡"]


@pytest.fixture
def policy() -> Model:
    return load_model("tiny", torch.float64)


@pytest.fixture
def foreign(tmp_path: Path) -> str:
    return reward_model(tmp_path / "reward", blocks=2, model_name=foreign_model(tmp_path))


def drawn(policy: Model) -> list[Sample]:
    """What a policy might have said; the second was cut off."""
    prompts = [policy.tokenizer.render(prompt) for prompt in ASKED]
    completions = [policy.tokenizer.complete(text, ended=i != 1) for i, text in enumerate(SAID)]
    samples = as_samples(prompts, completions, policy.tokenizer)
    return [replace(sample, asked=prompt) for sample, prompt in zip(samples, ASKED, strict=True)]


def by_command(samples: list[Sample], prompts: list[Prompt], scorer: str, tmp_path: Path) -> list[float]:
    """What `plaudit score` says of the texts."""
    found = tmp_path / "rows.jsonl"
    rows = [
        {"prompt": prompt_to_json(prompt), "completion": s.text, "finish_reason": s.finish_reason}
        for s, prompt in zip(samples, prompts, strict=True)
    ]
    found.write_text("".join(json.dumps(row) + "\n" for row in rows))
    score(scorer, found, tmp_path / "scored.jsonl", dtype=torch.float64)
    return [json.loads(line)["score"] for line in (tmp_path / "scored.jsonl").read_text().splitlines()]


def test_samples_of_another_tokenizer_are_read_as_texts(policy: Model, foreign: str, tmp_path: Path) -> None:
    scorer, samples = open_scorer(foreign, policy), drawn(policy)
    assert isinstance(scorer, OnOwnTrunk)
    assert tuple(scorer.reward.model.tokenizer.encode("good morning")) != samples[0].prompt_ids
    wanted = by_command(samples, ASKED, foreign, tmp_path)
    assert scorer.score(samples) == pytest.approx(wanted, abs=1e-12)
    assert scorer.score(samples[1:2]) == pytest.approx(wanted[1:2], abs=1e-12)
    assert scorer.score([]) == []
    unknown = [replace(sample, asked=None) for sample in samples]
    decoded: list[Prompt] = [policy.tokenizer.decode(sample.prompt_ids) for sample in samples]
    assert scorer.score(unknown) == pytest.approx(by_command(samples, decoded, foreign, tmp_path), abs=1e-12)


def test_samples_of_the_same_tokenizer_are_read_as_ids(policy: Model, tmp_path: Path) -> None:
    base = str(tiny.make(tmp_path, seed=1))
    place = reward_model(tmp_path / "reward", blocks=2, model_name=base)
    samples = [replace(sample, text="else", asked="else") for sample in drawn(policy)]
    samples.append(replace(samples[0], action_mask=(False, *[True] * (len(samples[0].completion_ids) - 1))))
    wanted = load_reward_model(Path(place), load_model(base, torch.float64)).score(samples)
    assert open_scorer(place, policy).score(samples) == pytest.approx(wanted, abs=1e-12)


def test_members_on_both_trunks_go_together_and_a_base_is_loaded_once(
    policy: Model, foreign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = reward_model(tmp_path / "own", blocks=1)
    yaml = tmp_path / "ensemble.yaml"
    yaml.write_text(f"kind: ensemble\nmembers: [{own}, {foreign}, {foreign}]\n")
    loaded: list[str] = []

    def load(name: str, *args: Any) -> Model:
        loaded.append(name)
        return load_model(name, *args)

    monkeypatch.setattr(opening, "load_model", load)
    scorer = open_scorer(str(yaml), policy)
    assert len(loaded) == 1
    assert isinstance(scorer, Ensemble)
    assert [type(member) for member in scorer.members] == [RewardModel, OnOwnTrunk, OnOwnTrunk]
    said, samples = scorer.detail(drawn(policy)).members, drawn(policy)
    assert said[0] == pytest.approx(open_scorer(own, policy).score(samples), abs=1e-12)
    assert said[1] == said[2] == open_scorer(foreign, policy).score(samples)


def test_what_the_context_does_not_hold_is_cut(policy: Model, foreign: str) -> None:
    scorer, (sample, *_) = open_scorer(foreign, policy), drawn(policy)
    assert isinstance(scorer, OnOwnTrunk)
    long = replace(sample, text=" happy" * 300)
    own, context = scorer.reward.model.tokenizer, scorer.reward.model.trunk.shape.context
    prompt = own.render(ASKED[0])
    wanted = scorer.reward.score_ids([prompt], [own.complete(long.text)[: context - len(prompt)]])
    assert scorer.score([long]) == wanted
    with pytest.raises(UserError, match=r"reward: a prompt: has \d+ tokens, the model takes 256"):
        scorer.score([replace(sample, asked="happy " * 300)])


def test_what_cannot_be_read_is_one_line(policy: Model, foreign: str, tmp_path: Path) -> None:
    (sample, *_) = drawn(policy)
    turns = replace(sample, action_mask=(True,) * len(sample.completion_ids))
    with pytest.raises(
        UserError, match=r"reward: was trained on another tokenizer, and cannot read an episode"
    ):
        open_scorer(foreign, policy).score([turns])
    base = tmp_path / "tiny-1"
    weights = load_file(base / "model.safetensors")
    save_file({name: weight * 2 for name, weight in weights.items()}, base / "model.safetensors")
    with pytest.raises(
        UserError, match=r"reward: was trained on another model; .*that model has changed since"
    ):
        open_scorer(foreign, policy)
    shutil.rmtree(base)
    with pytest.raises(
        UserError, match=r"reward: its base model .*tiny-1 cannot be loaded \(there is no such"
    ):
        open_scorer(foreign, policy)
