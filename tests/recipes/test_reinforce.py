"""The reinforce recipe: what a token is worth, by hand; people's scores as the reward; and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from plaudit import config as configs
from plaudit.cli import main
from plaudit.data.logged import read_logged
from plaudit.models.adapter import save_adapter
from plaudit.models.load import load_model
from plaudit.recipes import reinforce
from plaudit.reward.rules import RuleScorer, rule_scorer
from plaudit.training import checkpoint
from plaudit.types import UserError
from runs import CONFIGS, PROMPTS, changed, judged, made_up, rows, shipped, write_prompts
from tiny_models import random_adapter

KL = [[0.2, -0.4, 0.6], [1.0], [0.0, 0.2], [-0.2, 0.0]]
SCORES = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
# Each score less half of its tokens' KL: 1 - 0.2, 2 - 0.5, 3 - 0.1, 6 + 0.1; their mean is 2.825.


@pytest.fixture
def config() -> reinforce.Config:
    return reinforce.Config(prompts="", reward="", missing_eos_penalty=None)


def worth(config: reinforce.Config, baseline: float | None = None) -> tuple[list[list[float]], float]:
    """Advantages of the tokens that count, and the mean return, at a price of 0.5."""
    seen, samples = made_up(KL, prompts=[0, 0, 1, 1], ended=[True, False, True, True])
    found, earned = reinforce.advantages_of(seen, SCORES, samples, baseline, 0.5, config)
    assert not bool(found[~seen.packed.mask].any())
    return [row[mask].tolist() for row, mask in zip(found, seen.packed.mask, strict=True)], earned


@pytest.mark.parametrize(
    ("baseline", "before", "expected"),
    [
        ("none", None, [0.8, 1.5, 2.9, 6.1]),
        ("batch", 99.0, [-2.025, -1.325, 0.075, 3.275]),
        ("moving", None, [-2.025, -1.325, 0.075, 3.275]),
        ("moving", 1.0, [-0.2, 0.5, 1.9, 5.1]),
        ("leave_one_out", None, [-0.7, 0.7, -3.2, 3.2]),
    ],
)
def test_a_completion_is_worth_its_return_beside_the_baseline(
    config: reinforce.Config, baseline: str, before: float | None, expected: list[float]
) -> None:
    """One action: every one of its tokens has the same advantage."""
    found, earned = worth(changed(config, baseline=baseline), before)
    assert found == [pytest.approx([x] * len(row)) for x, row in zip(expected, KL, strict=True)]
    assert earned == pytest.approx(2.825)


@pytest.mark.parametrize(
    ("baseline", "less"),
    [("none", [0.0] * 4), ("batch", [2.825] * 4), ("leave_one_out", [1.5, 0.8, 6.1, 2.9])],
)
def test_a_token_is_worth_what_comes_from_it_on(
    config: reinforce.Config, baseline: str, less: list[float]
) -> None:
    """Its own KL included; what was paid before it is not its doing."""
    found, earned = worth(changed(config, baseline=baseline, action="token"))
    to_come = [[0.8, 0.9, 0.7], [1.5], [2.9, 2.9], [6.1, 6.0]]
    assert found == [pytest.approx([x - b for x in row]) for row, b in zip(to_come, less, strict=True)]
    assert earned == pytest.approx(2.825)


def test_whitening_is_over_what_is_acted_on(config: reinforce.Config) -> None:
    """Completions weigh the same however long they are; with tokens as actions every token weighs the same."""
    found, _ = worth(changed(config, baseline="none", whiten=True))
    spread = math.sqrt(sum((x - 2.825) ** 2 for x in (0.8, 1.5, 2.9, 6.1)) / 4)
    expected = [(x - 2.825) / spread for x in (0.8, 1.5, 2.9, 6.1)]
    assert found == [pytest.approx([x] * len(row), rel=1e-6) for x, row in zip(expected, KL, strict=True)]
    found, _ = worth(changed(config, baseline="none", whiten=True, action="token"))
    flat = [0.8, 0.9, 0.7, 1.5, 2.9, 2.9, 6.1, 6.0]
    mean = sum(flat) / 8
    spread = math.sqrt(sum((x - mean) ** 2 for x in flat) / 8)
    assert [x for row in found for x in row] == pytest.approx([(x - mean) / spread for x in flat], rel=1e-6)


def test_a_price_in_the_loss_is_not_paid_in_the_reward_too(config: reinforce.Config) -> None:
    found, _ = worth(changed(config, baseline="none", kl={"place": "loss", "estimator": "k2"}))
    assert [row[0] for row in found] == SCORES.tolist()
    found, _ = worth(changed(config, baseline="none", kl={"estimator": "k2"}))
    assert found[0][0] == pytest.approx(1 - 0.25 * (0.04 + 0.16 + 0.36))


def test_a_penalty_for_a_missing_end_is_not_laid_on_what_people_have_judged(config: reinforce.Config) -> None:
    found, _ = worth(changed(config, baseline="none", missing_eos_penalty=-7.0))
    assert [row[0] for row in found] == pytest.approx([0.8, -7.5, 2.9, 6.1])
    free = {"prompts": None, "reward": None, "kl": {"coef": 0.0}}
    people = changed(config, baseline="none", missing_eos_penalty=-7.0, feedback=["a"], **free)
    assert worth(people)[0][1] == pytest.approx([1.5]), "at the price that worth is told"


def test_the_moving_baseline_is_the_decayed_mean_of_past_returns(
    config: reinforce.Config, tmp_path: Path
) -> None:
    """It begins at the first step's own mean, and is kept with the checkpoint."""
    small = {"model": "tiny", "reward": "rules:fourths", "prompts": write_prompts(tmp_path), "steps": 4,
             "prompts_per_step": 2, "samples_per_prompt": 2, "max_new_tokens": 4, "baseline_decay": 0.75,
             "precision": "float64", "threads": 1}  # fmt: skip
    reinforce.run(changed(config, **small), tmp_path / "run")
    returns = [row["return"] for row in rows(tmp_path / "run")]
    assert len(set(returns)) > 1
    expected = returns[0]
    for one in returns[1:]:
        expected = 0.75 * expected + 0.25 * one
    found = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert found is not None
    assert found[1]["baseline"] == pytest.approx(expected, rel=1e-12)


# -- people's scores -----------------------------------------------------------------------------------------------


def test_tokens_of_unknown_origin_count_as_drawn_from_the_policy_as_it_began() -> None:
    seen, _ = made_up(KL, prompts=[0, 0, 1, 1])
    heard = seen.sampled_logprobs.clone()
    heard[1] = float("nan")
    first = torch.full_like(heard, -7.0)
    known = reinforce.with_known_sampler(replace(seen, sampled_logprobs=heard), first).sampled_logprobs
    assert known[1].tolist() == first[1].tolist()
    assert known[0].tolist() == seen.sampled_logprobs[0].tolist()


@pytest.mark.parametrize("reference", ["model", "start"])
def test_before_the_first_update_no_unknown_token_weighs_more_than_another(
    tmp_path: Path, reference: str
) -> None:
    """Whichever reference there is, what nobody drew counts as drawn from the policy of the first step."""
    other = random_adapter(load_model("tiny", torch.float64).trunk, rank=3, blocks=2, seed=8)
    save_adapter(other, tmp_path, base="tiny")
    settings = {
        "model": "tiny", "feedback": judged(tmp_path)["feedback"], "start": str(tmp_path), "reference": reference,
        "steps": 2, "adapter": {"rank": 4, "alpha": 8.0, "blocks": 3}, "precision": "float64", "threads": 1,
        "learning_rate": 3e-2,
    }  # fmt: skip
    recipe, config = shipped("reinforce_feedback", **settings)
    recipe.run(config, tmp_path / "run")
    first, second = rows(tmp_path / "run")
    assert first["sampler_difference"] == pytest.approx(0.0, abs=1e-9)
    assert first["importance_mean"] == pytest.approx(1.0, abs=1e-9)
    assert first["importance_capped"] == 0.0
    assert second["sampler_difference"] > 1e-6


@pytest.mark.parametrize("reference", [[0.25, 0.25, 0.25, 0.25], [0.1, 0.2, 0.3, 0.4]])
@pytest.mark.parametrize("policy", [[0.45, 0.25, 0.2, 0.1], [0.97, 0.01, 0.01, 0.01]])
def test_the_kl_of_logged_tokens_is_that_of_the_policy(policy: list[float], reference: list[float]) -> None:
    """Of four words, each drawn once by a sampler that likes all the same: the mean is the exact expectation, far from
    the sampler too."""
    seen, _ = made_up([[0.0]] * 4, prompts=[0, 1, 2, 3])
    p, r, q = (torch.tensor(x, dtype=torch.float64).log()[:, None] for x in (policy, reference, [0.25] * 4))
    found = reinforce.kl_from_logged(replace(seen, logprobs=p, ref_logprobs=r, sampled_logprobs=q))
    assert found == pytest.approx(sum(a * math.log(a / b) for a, b in zip(policy, reference, strict=True)))


def test_a_step_takes_all_judged_completions_of_its_prompts(config: reinforce.Config, tmp_path: Path) -> None:
    tokenizer = load_model("tiny", torch.float64).tokenizer
    files = judged(tmp_path)
    logged = read_logged(files["feedback"], files["samples"], tokenizer, context=256)
    assert [len(one.samples) for one in logged] == [4, 3, 3, 3, 3]
    config = changed(config, prompts=None, reward=None, prompts_per_step=5, kl={"coef": 0.0}, **files)
    drawn, scores = reinforce.judged_of_step(logged, 0, config)
    samples = drawn.samples
    assert len(samples) == len(scores) == 16
    assert sorted({s.prompt for s in samples}) == [0, 1, 2, 3, 4]
    for sample, given in zip(samples, scores, strict=True):
        share = sum(i % 4 == 0 for i in sample.completion_ids) / len(sample.completion_ids)
        assert given == pytest.approx(share)
        assert math.isnan(sample.logprobs[0]) == (sample.text == " good morning to you")
    again, _ = reinforce.judged_of_step(logged, 1, config)
    assert {s.text for s in again.samples} == {s.text for s in samples}


def told(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    status = main([str(word) for word in words])
    return status, capsys.readouterr().err


SMALL = [
    "model=tiny",
    "precision=float64",
    "threads=1",
    "prompts_per_step=3",
    "max_new_tokens=5",
    "adapter.rank=4",
]


def test_from_generate_by_way_of_ratings_to_a_better_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole way on the command line: what was rated high grows likelier, what was rated low less so."""
    drawn, ratings, run = tmp_path / "drawn.jsonl", tmp_path / "ratings.jsonl", tmp_path / "run"
    words = ["--prompts", write_prompts(tmp_path), "--out", drawn, "--n", 4, "--max-new-tokens", 5]
    assert told(capsys, "generate", "tiny", *words)[0] == 0
    found = [json.loads(line) for line in drawn.read_text().splitlines()]
    scores = [float(i % 2) for i in range(len(found))]
    ratings.write_text(
        "".join(
            json.dumps({"prompt": r["prompt"], "completion": r["completion"], "scores": {"overall": s}})
            + "\n"
            for r, s in zip(found, scores, strict=True)
        )
    )
    assert len(found) == 4 * len(PROMPTS)
    people = [f"feedback=[{ratings}]", f"samples=[{drawn}]"]
    more = ["steps=10", "prompts_per_step=5", "learning_rate=3e-3", "kl.coef=0.01"]
    config = CONFIGS / "reinforce_feedback.yaml"
    status, said = told(capsys, "train", config, *SMALL, *people, *more, "--out", run)
    assert status == 0, said
    logged = rows(run)
    assert [row["reward"] for row in logged] == pytest.approx([0.5] * 10)
    assert logged[0]["importance_mean"] == pytest.approx(1.0, abs=1e-3), "drawn from the model itself"
    assert logged[0]["kl"] == 0.0
    assert all(row["kl"] >= 0 for row in logged)
    assert logged[-1]["kl"] > 1e-3
    likelier = []
    for directory in ("tiny", str(run / "model")):
        model = load_model(directory, torch.float64)
        scorer = Likelihood(model)
        likelier.append([scorer.of(r["prompt"], r["completion_ids"]) for r in found])
    gains = [b - a for a, b in zip(*likelier, strict=True)]
    good = [g for g, s in zip(gains, scores, strict=True) if s == 1.0]
    bad = [g for g, s in zip(gains, scores, strict=True) if s == 0.0]
    assert min(good) > 0
    assert max(bad) < 0


class Likelihood:
    """How likely a model finds a completion, nats."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def of(self, prompt: str, ids: list[int]) -> float:
        from plaudit.data.collate import pack
        from plaudit.models.branch import Branch, token_logprobs

        packed = pack([self.model.tokenizer.render(prompt)], [ids])
        with torch.no_grad():
            return float(token_logprobs(Branch(self.model.trunk), packed).logprobs.sum())


def test_patience_is_not_asked_where_the_reward_cannot_rise(tmp_path: Path) -> None:
    """The logged completions stay as they are, and so do their scores, while the policy moves away."""
    settings = {
        "model": "tiny", "steps": 8, "prompts_per_step": 5, "learning_rate": 1e-2, "precision": "float64",
        "threads": 1, "stop": {"patience": 2, "max_kl": 100.0}, "kl": {"coef": 0.0}, "checkpoint_every": 100,
    }  # fmt: skip
    config = reinforce.Config.model_validate(settings | judged(tmp_path))
    summary = reinforce.run(config, tmp_path / "run")
    kl = [row["kl"] for row in rows(tmp_path / "run")]
    grown = [now > 1.5 * max(then, 0.01) for then, now in zip(kl, kl[2:], strict=False)]
    assert any(grown), "else patience would not have spoken"
    assert summary["stopped"] is None
    assert summary["steps"] == 8


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["prompts=null"], "prompts is not set"),
        (["prompts=nowhere.txt"], "nowhere.txt: cannot be read"),
        (["reward=null"], "reward is not set"),
        (
            ["baseline=leave_one_out", "samples_per_prompt=1"],
            "leave_one_out wants samples_per_prompt of 2 or more",
        ),
        (
            ["kl.place=loss"],
            "kl: k1's slope is 0 on average, so in the loss it holds nothing; take k2 or k3 there",
        ),
        (["reward=rules:raises"], "rules:raises: failed (KeyError"),
        (["reward=rules:gives_nan"], "rules:gives_nan: gave the score nan, which is not a finite number"),
        (["reward=rules:one_too_few"], "rules:one_too_few: gave 11 scores for 12 samples"),
        (["reward=rules:sleeps"], "rules:sleeps: took longer than 0.1 s; make it faster"),
        (["gold=rules:raises"], "rules:raises: failed"),
        (["samples=[a.jsonl]"], "samples are looked up for feedback, and none is named"),
        (
            ["feedback=[a.jsonl]"],
            "feedback holds prompts and scores; leave prompts, reward and environment out",
        ),
        (["importance_cap=0"], "importance_cap"),
        (["baseline=median"], "baseline"),
    ],
    ids=str,
)
def test_what_is_at_fault_is_named_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    settings: list[str],
    said: str,
) -> None:
    def quick(spec: str, **settings: Any) -> RuleScorer:
        return rule_scorer(spec, **settings | {"seconds": 0.1 if "sleeps" in spec else 60})

    monkeypatch.setattr("plaudit.reward.open.rule_scorer", quick)
    words = [*SMALL, f"prompts={write_prompts(tmp_path)}", "reward=rules:fourths", *settings]
    status, told_ = told(capsys, "train", CONFIGS / "reinforce.yaml", *words, "--out", tmp_path / "run")
    assert status == 2
    assert said in told_
    assert len(told_.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("feedback", "settings", "said"),
    [
        ([("a", " b", 0.5), ("a", " c", 0.5)], [], "the same score (0.5), so there is nothing to learn"),
        ([("a", " b", 1.5)], [], "not within 0 to 1"),
        ([], [], "ratings.jsonl"),
        (
            [("a", " b", 0.5), ("c", " d", 1.0)],
            ["baseline=leave_one_out"],
            "a prompt with one judged completion",
        ),
        (
            [("a", " b", 0.5), ("a", " c", 1.0)],
            ["kl.target=0.1", "kl.horizon=5.0", "samples_per_prompt=1"],
            "too many a step for kl.horizon",
        ),
    ],
    ids=str,
)
def test_feedback_at_fault_is_named_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    feedback: list[tuple[str, str, float]],
    settings: list[str],
    said: str,
) -> None:
    lines = [{"prompt": p, "completion": c, "scores": {"overall": s}} for p, c, s in feedback]
    path = tmp_path / "ratings.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = [*SMALL, f"feedback=[{path}]", "prompts_per_step=13", *settings]
    status, told_ = told(
        capsys, "train", CONFIGS / "reinforce_feedback.yaml", *words, "--out", tmp_path / "run"
    )
    assert status == 2
    assert said in told_
    assert len(told_.splitlines()) == 1


def test_rankings_alone_will_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The config as it is shipped names no samples, and a ranking is as many comparisons."""
    path = tmp_path / "rankings.jsonl"
    ranked = {"prompt": "tell me", "completions": [" a", " b", " c"], "ranking": [2, 0, 1]}
    path.write_text(json.dumps(ranked) + "\n")
    words = [*SMALL, f"feedback=[{path}]", "steps=1", "prompts_per_step=1"]
    config = CONFIGS / "reinforce_feedback.yaml"
    status, said = told(capsys, "train", config, *words, "--out", tmp_path / "run")
    assert status == 0, said
    assert [row["reward"] for row in rows(tmp_path / "run")] == pytest.approx([0.5])


def test_equal_scores_are_said_to_teach_nothing_and_change_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rules.first_id", lambda samples: [0.3 for _ in samples])
    words = [
        *SMALL,
        f"prompts={write_prompts(tmp_path)}",
        "reward=rules:first_id",
        "missing_eos_penalty=null",
    ]
    more = ["steps=2", "baseline=batch", "--out", tmp_path / "run"]
    status, said = told(capsys, "train", CONFIGS / "reinforce.yaml", *words, *more)
    assert status == 0
    assert said.count("every score is the same") == 2
    assert [row["grad_norm"] for row in rows(tmp_path / "run")] == pytest.approx([0.0, 0.0], abs=1e-9)


def test_a_setting_of_feedback_needs_no_prompts() -> None:
    with pytest.raises(UserError, match="prompts is not set"):
        configs.parse(reinforce.Config, {"reward": "a"}, "a.yaml")
    tree = {"feedback": ["a"], "kl": {"place": "loss", "estimator": "k2"}}
    assert configs.parse(reinforce.Config, tree, "a.yaml").prompts is None


def test_the_kl_of_logged_completions_is_no_part_of_a_return() -> None:
    """A token that the policy has left behind would be a prize, and the policy would leave them all."""
    with pytest.raises(UserError, match=r"set kl\.place: loss and kl\.estimator: k2"):
        configs.parse(reinforce.Config, {"feedback": ["a"]}, "a.yaml")
    assert configs.parse(reinforce.Config, {"feedback": ["a"], "kl": {"coef": 0.0}}, "a.yaml").kl.coef == 0
