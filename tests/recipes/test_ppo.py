"""The ppo recipe as it is run: its laws, its faults, kills between its steps, and that it learns."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
import torch

from plaudit.models.branch import Branch, Pool, token_logprobs
from plaudit.models.load import load_model
from plaudit.recipes import ppo
from plaudit.reward.model import RewardModel, load_reward_model
from plaudit.reward.open import open_scorer
from plaudit.reward.rules import RuleScorer, rule_scorer
from plaudit.rollout.collect import forward
from plaudit.rollout.local import LocalEngine
from plaudit.tensors import Sample
from plaudit.training import checkpoint, online
from plaudit.training.online import prompts_of_step
from plaudit.training.optim import adam, linear_to_zero, take_step
from plaudit.types import UserError
from runs import (
    KILLS,
    PROMPTS,
    TIMES,
    Kill,
    Killed,
    after_it_is_logged,
    foreign_model,
    peaked_model,
    reward_model,
    rows,
    same,
    weights,
    within_the_update,
    write_prompts,
)
from tiny_models import as_samples, random_branch, transformers_model


@pytest.fixture
def config(tmp_path: Path) -> ppo.Config:
    return ppo.Config(
        model="tiny",
        prompts=write_prompts(tmp_path),
        reward="rules:fourths",
        steps=4,
        prompts_per_step=3,
        samples_per_prompt=2,
        max_new_tokens=6,
        epochs=2,
        learning_rate=3e-3,
        missing_eos_penalty=None,
        adapter=ppo.AdapterConfig(rank=4, alpha=8.0, blocks=3, value_blocks=2),
        precision="float64",
        threads=1,
        checkpoint_every=2,
    )


def changed(config: ppo.Config, **settings: Any) -> ppo.Config:
    return ppo.Config.model_validate(config.model_dump() | settings)


def test_a_run_leaves_what_it_promises(config: ppo.Config, tmp_path: Path) -> None:
    summary = ppo.run(config, tmp_path / "run")
    logged = rows(tmp_path / "run")
    assert [row["step"] for row in logged] == [1, 2, 3, 4]
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 4
    assert summary["stopped"] is None
    first = logged[0]
    assert first["kl"] == 0.0, "a fresh adapter is the reference"
    assert first["learning_rate"] == 3e-3
    assert logged[-1]["learning_rate"] == pytest.approx(3e-3 / 4)
    assert first["kl_coef"] == 0.05
    assert first["length"] <= 6
    for name in ("reward", "entropy", "policy_loss", "value_loss", "grad_norm", "value_error", "eos_rate"):
        assert math.isfinite(first[name]), name
    assert all(row["sampler_difference"] < 1e-10 for row in logged)
    model = load_model(str(tmp_path / "run" / "model"), torch.float64)
    again = transformers_model(tmp_path / "run" / "model", torch.float64)
    ids = torch.tensor([[5, 6, 7, 8]])
    packed = ppo_packed(ids[0].tolist())
    with torch.no_grad():
        theirs = torch.log_softmax(again(ids).logits, -1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    assert torch.allclose(token_logprobs(Branch(model.trunk), packed).logprobs[0], theirs, atol=1e-10)
    assert weights(tmp_path / "run").keys() == {
        "adapter/adapter_model.safetensors",
        "model/model.safetensors",
    }


def ppo_packed(ids: list[int], prompt: int = 1) -> Any:
    from plaudit.data.collate import pack

    return pack([ids[:prompt]], [ids[prompt:]])


@pytest.mark.parametrize("minibatches", [1, 2])
def test_the_split_into_micro_batches_changes_nothing(
    config: ppo.Config, tmp_path: Path, minibatches: int
) -> None:
    config = changed(config, minibatches=minibatches, whiten_rewards=True)
    found = []
    for budget in (100_000, 30, 1):
        ppo.run(changed(config, micro_batch_tokens=budget), tmp_path / str(budget))
        found.append(rows(tmp_path / str(budget)))
    same(found[1], found[0], 1e-9)
    same(found[2], found[0], 1e-9)


@pytest.mark.parametrize("case", ["adapters", "with a reward model", "whole model, reward on all blocks"])
def test_streams_shared_between_branches_change_nothing(
    config: ppo.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """The streams that the rollout keeps for the epochs only save work: thrown away, the run is the same."""
    if case != "adapters":
        config = changed(config, reward=reward_model(tmp_path / "reward", blocks=0 if "whole" in case else 2))
    if "whole" in case:
        config = changed(config, adapter={"rank": 0}, learning_rate=1e-3)
    ppo.run(config, tmp_path / "kept")
    monkeypatch.setattr(
        online, "forward", lambda *args, **kwargs: replace(forward(*args, **kwargs), streams={})
    )
    ppo.run(config, tmp_path / "thrown")
    same(rows(tmp_path / "kept"), rows(tmp_path / "thrown"), 1e-9)


@pytest.mark.parametrize("kill", KILLS)
def test_a_killed_run_that_goes_on_ends_with_the_same_bits(
    config: ppo.Config, tmp_path: Path, kill: Kill
) -> None:
    """Killed before anything is saved, and again at the end."""
    config = changed(config, steps=5, kl={"coef": 0.1, "target": 0.001, "horizon": 20.0})
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    ppo.run(config, unbroken)
    with pytest.MonkeyPatch.context() as monkeypatch:
        kill(monkeypatch, 1, ppo)
        with pytest.raises(Killed):
            ppo.run(config, broken)
    with pytest.MonkeyPatch.context() as monkeypatch:
        after_it_is_logged(monkeypatch, 5, ppo)
        try:
            ppo.run(config, broken)
        except Killed:
            assert not (broken / "summary.json").exists()
    ppo.run(config, broken)
    assert rows(broken) == rows(unbroken)
    assert weights(broken) == weights(unbroken)
    assert len({row["kl_coef"] for row in rows(broken)}) > 1, "the controller's state is part of it"
    first, second = (json.loads((d / "summary.json").read_text()) for d in (unbroken, broken))
    for summary in (first, second):
        summary["last"] = {k: v for k, v in summary["last"].items() if k not in TIMES}
    assert first == second


def test_the_checkpoint_holds_all_that_a_step_reads(config: ppo.Config, tmp_path: Path) -> None:
    ppo.run(changed(config, kl={"coef": 0.1, "target": 0.001, "horizon": 20.0}), tmp_path / "run")
    found = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert found is not None
    tensors, state = found
    assert state["step"] == 4
    assert state["kl_coef"] != 0.1
    assert {name.split(".")[0] for name in tensors} == {"policy", "value", "optimizer"}
    parameters = [n for n in tensors if n.startswith(("policy.adapter", "value.adapter"))]
    assert sum(n.startswith("optimizer") for n in tensors) == 3 * (
        len(parameters) + 2
    )  # moments and step; head


# -- rewards ---------------------------------------------------------------------------------------------------


def seen_and_samples() -> tuple[Any, list[Sample]]:
    model = load_model("tiny", torch.float64)
    completions = [[5, 6, 1], [7, 8, 9, 10], [1], [3]]
    samples = as_samples([[4, 5]] * 2 + [[6]] * 2, completions)
    policy, value = random_branch(model.trunk, blocks=2, head=False), random_branch(model.trunk, blocks=1)
    seen = forward(
        samples, reference=model.trunk, policy=policy, value=value, reward=None, temperature=1.0, budget=99
    )
    return seen, samples


def test_the_score_sits_on_the_last_token(config: ppo.Config) -> None:
    seen, samples = seen_and_samples()
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    rewards = ppo.experience_from(seen, scores, samples, 0.0, config).rewards
    assert rewards.tolist() == [[0, 0, 1, 0], [0, 0, 0, 2], [3, 0, 0, 0], [4, 0, 0, 0]]
    with_kl = ppo.experience_from(seen, scores, samples, 0.5, config).rewards
    kl = seen.logprobs - seen.ref_logprobs
    assert float(kl.abs().max()) > 0.01
    assert torch.allclose(with_kl, rewards - 0.5 * kl, atol=1e-15)


def test_a_fixed_penalty_stands_in_place_of_an_unfinished_completions_score(config: ppo.Config) -> None:
    seen, samples = seen_and_samples()
    scores = torch.tensor([1.0, 2.0, 3.0, -4.0], dtype=torch.float64)
    found = ppo.experience_from(seen, scores, samples, 0.0, changed(config, missing_eos_penalty=-1.5))
    assert found.rewards.sum(1).tolist() == [1.0, -1.5, 3.0, -1.5]
    assert found.scores.tolist() == [1.0, 2.0, 3.0, -4.0], "the scorer's own numbers are what is logged"
    off = ppo.experience_from(seen, scores, samples, 0.0, config)
    assert off.rewards.sum(1).tolist() == scores.tolist()
    assert ppo.Config(prompts="", reward="").missing_eos_penalty == -1.0


def test_a_dense_reward_gives_every_token_its_own_share(config: ppo.Config) -> None:
    seen, samples = seen_and_samples()
    shares = torch.tensor(
        [[0.5, -1.0, 2.0, 0.0], [1.0, 1.0, -4.0, 0.5], [3.0, 0.0, 0.0, 0.0], [-4.0, 0.0, 0.0, 0.0]],
        dtype=torch.float64,
    )
    seen, dense = replace(seen, shares=shares), changed(config, dense_reward=True, reward="a model")
    found = ppo.experience_from(seen, shares.sum(1), samples, 0.5, dense)
    kl = seen.logprobs - seen.ref_logprobs
    assert torch.allclose(found.rewards, shares - 0.5 * kl, atol=1e-15)
    assert found.scores.tolist() == [1.5, -1.5, 3.0, -4.0]
    # The second and the last do not end by themselves: they get the penalty at their end and nothing before.
    penalised = changed(dense, missing_eos_penalty=-1.25)
    short = ppo.experience_from(seen, shares.sum(1), samples, 0.0, penalised).rewards
    assert short.tolist() == [[0.5, -1, 2, 0], [0, 0, 0, -1.25], [3, 0, 0, 0], [-1.25, 0, 0, 0]]
    sparse = ppo.experience_from(seen, shares.sum(1), samples, 0.0, config).rewards
    assert sparse.tolist() == [[0, 0, 1.5, 0], [0, 0, 0, -1.5], [3, 0, 0, 0], [-4, 0, 0, 0]]


def test_a_dense_reward_needs_a_reward_model_that_pools_the_mean(config: ppo.Config, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dense_reward wants a reward model"):
        changed(config, reward="rules:first_id", dense_reward=True)
    last = reward_model(tmp_path / "reward", blocks=2)
    with pytest.raises(UserError, match=r"no other has a share for dense_reward.*pool: mean"):
        ppo.run(changed(config, reward=last, dense_reward=True), tmp_path / "run")


def test_a_reward_model_of_another_model_scores_texts_and_shares_nothing(
    config: ppo.Config, tmp_path: Path
) -> None:
    """What it gives is what its own base says of the same words; no value begins as it, and no token has a share."""
    place = reward_model(tmp_path / "reward", blocks=2, pool="mean", model_name=foreign_model(tmp_path))
    own = reward_model(tmp_path / "own", blocks=2, pool="mean")
    config = changed(config, reward=place, gold=own, steps=2)
    world = online.open_world(config)
    assert world.reward_branch is None
    branches = ppo.make_branches(config, world.model, world.scorer)
    samples = online.draw(world, branches["policy"], 0, config, "ppo").samples
    base = load_model(str(tmp_path / "tiny-1"), torch.float64)
    words = base.tokenizer
    given = load_reward_model(Path(place), base).score_ids(
        [words.encode(str(sample.asked)) for sample in samples],
        [words.complete(s.text, ended=s.finish_reason == "stop") for s in samples],
    )
    ppo.run(config, tmp_path / "run")
    first = rows(tmp_path / "run")[0]
    assert first["reward"] == pytest.approx(sum(given) / len(given), rel=1e-9)
    assert first["gold"] != pytest.approx(first["reward"], abs=1e-3)
    with pytest.raises(
        UserError, match=r"reward: scores whole completions, so that no token has a share for dense"
    ):
        ppo.run(changed(config, dense_reward=True), tmp_path / "dense")


def test_the_entropy_bonus_keeps_the_policy_open(config: ppo.Config, tmp_path: Path) -> None:
    """The same steps with and without it: the policy that is paid for entropy has more of it."""
    last = [
        ppo.run(changed(config, entropy_coef=coef, steps=4), tmp_path / str(coef))["last"]["entropy"]
        for coef in (0.0, 1.0)
    ]
    assert last[1] > last[0] + 1e-4


def test_equal_scores_leave_the_errors_of_the_values_whitened(config: ppo.Config) -> None:
    """What docs/configs.md says of such a step: with lambda 1 an advantage is the score less the value, at the scale of
    any other step's."""
    seen, samples = seen_and_samples()
    free = changed(config, gamma=1.0, lam=1.0, missing_eos_penalty=None)
    found = ppo.experience_from(seen, torch.full((4,), 3.0, dtype=torch.float64), samples, 0.0, free)
    error = 3.0 - found.values[found.mask]
    expected = (error - error.mean()) / error.std(correction=0)
    torch.testing.assert_close(found.advantages[found.mask], expected, rtol=1e-4, atol=0)
    assert float(expected.abs().max()) > 0.5


def test_advantages_are_whitened_over_the_tokens_and_returns_are_not(config: ppo.Config) -> None:
    seen, samples = seen_and_samples()
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    found = ppo.experience_from(seen, scores, samples, 0.1, changed(config, gamma=1.0, lam=1.0))
    counted = found.advantages[found.mask]
    assert abs(float(counted.mean())) < 1e-12
    assert abs(float(counted.std(correction=0)) - 1) < 1e-6
    rest = found.rewards.flip(1).cumsum(1).flip(1)  # with lambda 1 a return is the reward to come
    assert torch.allclose(found.returns[found.mask], rest[found.mask], atol=1e-12)


def test_the_reward_logged_is_the_rules_own(
    config: ppo.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each score belongs to its own sample, in whatever order the engine hands them out."""
    drawn: list[Sample] = []
    sample = LocalEngine.sample

    def backwards(self: LocalEngine, *args: Any) -> Any:
        found = list(sample(self, *args))
        drawn.extend(found)
        return reversed(found)

    config = changed(config, reward="rules:first_id", steps=2, minibatches=2)
    ppo.run(config, tmp_path / "forwards")
    monkeypatch.setattr(LocalEngine, "sample", backwards)
    ppo.run(config, tmp_path / "run")
    assert rows(tmp_path / "run") == rows(tmp_path / "forwards")
    del drawn[6:]
    expected = sum(s.completion_ids[0] / 700 for s in drawn) / len(drawn)
    assert len(drawn) == 6
    assert rows(tmp_path / "run")[0]["reward"] == pytest.approx(expected, abs=1e-12)
    assert {s.policy_version for s in drawn} == {"step-0"}


@pytest.mark.parametrize(("pool", "dense"), [("last", False), ("mean", False), ("mean", True)])
def test_a_reward_model_scores_as_it_does_alone(
    config: ppo.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: Pool, dense: bool
) -> None:
    from plaudit.reward.model import load_reward_model

    directory = reward_model(tmp_path / "reward", blocks=2, pool=pool)
    drawn: list[Sample] = []
    sample = LocalEngine.sample

    def watched(*args: Any) -> Any:
        for one in sample(*args):
            drawn.append(one)
            yield one

    monkeypatch.setattr(LocalEngine, "sample", watched)
    ppo.run(changed(config, reward=directory, steps=1, dense_reward=dense), tmp_path / "run")
    scores = load_reward_model(Path(directory), load_model("tiny", torch.float64)).score(drawn)
    assert rows(tmp_path / "run")[0]["reward"] == pytest.approx(sum(scores) / 6, abs=1e-12)


def test_the_value_begins_as_the_reward_with_a_head_of_zero(config: ppo.Config, tmp_path: Path) -> None:
    model = load_model("tiny", torch.float64)
    scorer = open_scorer(reward_model(tmp_path / "reward", blocks=2), model)
    assert isinstance(scorer, RewardModel)
    value = ppo.make_branches(config, model, scorer)["value"]
    assert value.head is not None
    assert value.adapter is not None
    assert scorer.branch.adapter is not None
    assert not bool(value.head.weight.any())
    assert not bool(value.head.bias.any())
    for name, factor in value.adapter.factors.items():
        theirs = scorer.branch.adapter.factors[name]
        assert torch.equal(factor, theirs)
        assert factor.requires_grad
        assert not theirs.requires_grad
        assert factor.data_ptr() != theirs.data_ptr()


# -- what a step samples, and what it costs to move away -------------------------------------------------------


@pytest.mark.parametrize(("count", "a_step"), [(5, 3), (3, 5), (7, 7), (1, 4), (12, 5)])
def test_all_prompts_come_once_before_any_comes_again(count: int, a_step: int) -> None:
    steps = [prompts_of_step(count, step, a_step, 0) for step in range(3 * count)]
    assert all(len(step) == a_step for step in steps)
    flat = [prompt for step in steps for prompt in step]
    passes = [flat[i : i + count] for i in range(0, len(flat), count)]
    assert all(sorted(one) == list(range(count)) for one in passes)
    assert count < 5 or len({tuple(one) for one in passes}) > 1, "each pass has an order of its own"
    assert steps[2] == prompts_of_step(count, 2, a_step, 0), "keyed, not carried"
    assert count < 5 or [prompts_of_step(count, step, a_step, 1) for step in range(3 * count)] != steps


@pytest.mark.parametrize(("estimator", "budget"), [("k2", 10_000), ("k3", 1)])
def test_the_price_in_the_loss_adds_its_own_slope(config: ppo.Config, estimator: str, budget: int) -> None:
    """What coef * the tokens' mean of d^2 / 2 (or of exp(d) - 1 - d) adds, d the reference's log-probability less the
    policy's, a sample at a time."""
    seen, samples = seen_and_samples()
    trunk = load_model("tiny", torch.float64).trunk
    policy, value = random_branch(trunk, blocks=2, head=False), random_branch(trunk, blocks=1)
    parameters = policy.parameters()
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    slopes: list[list[torch.Tensor]] = []

    class Still:
        """Keeps the gradients in place of a step."""

        branches: ClassVar = {"policy": policy, "value": value}

        def update(self, _rate: float) -> float:
            slopes.append([p.grad.clone() for p in parameters if p.grad is not None])
            for parameter in (*parameters, *value.parameters()):
                parameter.grad = None
            return 0.0

    for coef in (0.0, 0.7):
        chosen = changed(
            config,
            kl={"coef": 0.3, "place": "loss", "estimator": estimator},
            epochs=1,
            micro_batch_tokens=budget,
        )
        experience = ppo.experience_from(seen, scores, samples, coef, chosen)
        assert experience.rewards.sum(1).tolist() == scores.tolist(), "none of it is in the reward"
        ppo.update(seen, experience, cast(Any, Still()), 0, 1.0, coef, chosen)

    price = torch.zeros((), dtype=torch.float64)
    for sample in samples:
        packed = ppo_packed([*sample.prompt_ids, *sample.completion_ids], len(sample.prompt_ids))
        with torch.no_grad():
            reference = token_logprobs(Branch(trunk), packed).logprobs
        d = reference - token_logprobs(policy, packed).logprobs
        price = price + (d.square() / 2 if estimator == "k2" else d.exp() - 1 - d).sum()
    torch.autograd.backward(0.7 * price / sum(len(s.completion_ids) for s in samples))
    for with_it, without, parameter in zip(slopes[1], slopes[0], parameters, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(with_it - without, parameter.grad, rtol=1e-9, atol=1e-12)
    assert max(float(p.grad.abs().max()) for p in parameters if p.grad is not None) > 1e-4


# -- ends and refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("raises", "failed .KeyError"),
        ("times_out", "failed .TimeoutError: a service"),
        ("leaves", "failed .SystemExit: 6 samples"),
        ("gives_nan", "not a finite number"),
        ("gives_infinity", "not a finite number"),
        ("one_too_few", "gave 5 scores for 6 samples"),
        ("gives_none", "failed .TypeError"),
        ("nowhere", "no such function"),
        ("NOT_A_FUNCTION", "no such function"),
    ],
)
def test_a_rule_at_fault_is_named(config: ppo.Config, tmp_path: Path, rule: str, said: str) -> None:
    with pytest.raises(UserError, match=f"rules:{rule}: .*{said}"):
        ppo.run(changed(config, reward=f"rules:{rule}"), tmp_path / "run")


def test_a_rule_that_hangs_is_named_by_the_run(config: ppo.Config, tmp_path: Path) -> None:
    (tmp_path / "slow.yaml").write_text("kind: rule\nrule: rules:sleeps\nseconds: 0.2\n")
    with pytest.raises(UserError, match=r"rules:sleeps: took longer than 0\.2 s"):
        ppo.run(changed(config, reward=str(tmp_path / "slow.yaml")), tmp_path / "run")


def test_a_reward_that_never_differs_stops_the_run_with_the_reason(
    config: ppo.Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "same.yaml").write_text(
        "kind: transform\nscorer: rules:fourths\ntransform: [{name: linear, gain: 0.0, shift: 0.25}]\n"
    )
    constant = changed(config, reward=str(tmp_path / "same.yaml"), stop=online.StopConfig(patience=2))
    summary = ppo.run(constant, tmp_path / "run")
    assert summary["stopped"].startswith("every sample of 2 steps scored 0.25, so there is nothing to learn")
    assert "every score is the same" in capsys.readouterr().err
    assert summary["steps"] == 1


def test_an_ensemble_logs_its_uncertainty_and_a_rate_of_price(config: ppo.Config, tmp_path: Path) -> None:
    """Two rules and a price for length; the deviation of two members is half their distance."""
    (tmp_path / "e.yaml").write_text("kind: ensemble\nmembers: [rules:fourths, rules:first_id]\n")
    term = "scorer: plaudit.reward.rules:length, weight: -0.01, options: {unit: tokens}"
    (tmp_path / "s.yaml").write_text(
        f"kind: sum\nterms: [{{scorer: {tmp_path / 'e.yaml'}, weight: 2.0}}, {{{term}}}]\n"
    )
    ppo.run(changed(config, reward=str(tmp_path / "s.yaml"), steps=1), tmp_path / "run")
    (logged,) = rows(tmp_path / "run")
    ppo.run(changed(config, reward="rules:fourths", steps=1), tmp_path / "one")
    ppo.run(changed(config, reward="rules:first_id", steps=1), tmp_path / "two")
    one, two = rows(tmp_path / "one")[0], rows(tmp_path / "two")[0]
    assert logged["reward"] == pytest.approx(one["reward"] + two["reward"] - 0.01 * logged["length"])
    assert logged["reward_uncertainty"] >= abs(one["reward"] - two["reward"]) - 1e-12
    assert "reward_uncertainty" not in one


def test_dense_rewards_are_refused_of_what_scores_whole_completions(
    config: ppo.Config, tmp_path: Path
) -> None:
    (tmp_path / "e.yaml").write_text("kind: ensemble\nmembers: [rules:fourths, rules:first_id]\n")
    with pytest.raises(UserError, match=r"e\.yaml: scores whole completions"):
        ppo.run(changed(config, reward=str(tmp_path / "e.yaml"), dense_reward=True), tmp_path / "run")


def test_a_rule_that_takes_too_long_is_named() -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match=r"rules:sleeps: took longer than 0\.2 s"):
        rule_scorer("rules:sleeps", seconds=0.2).score(as_samples([[1]], [[2]]))
    assert time.monotonic() - began < 2


def test_a_rule_that_never_ends_does_not_keep_the_process() -> None:
    code = (
        "import time\nfrom plaudit.reward.rules import RuleScorer\nfrom plaudit.types import UserError\n"
        "try:\n    RuleScorer(lambda s: time.sleep(600), 'endless', 0.1).score([])\n"
        "except UserError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert "endless: took longer" in done.stdout


def test_a_rule_is_given_the_samples_and_its_numbers_come_back() -> None:
    scorer = RuleScorer(lambda samples: [s.completion_ids[0] for s in samples], "ids")
    assert scorer.score(as_samples([[1], [1]], [[2], [3]])) == [2.0, 3.0]


NO_FUNCTION = "there is no such function; write package.module:function"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("rules:", NO_FUNCTION),
        (":fourths", NO_FUNCTION),
        ("no_such_module:f", NO_FUNCTION),
        ("no_such.module:f", NO_FUNCTION),
        ("rules.module:f", NO_FUNCTION),
        ("broken_rules:f", "cannot be imported (SyntaxError: "),
        ("needy_rules:f", "cannot be imported (ModuleNotFoundError: No module named 'needy')"),
        ("wrong_rules:f", "cannot be imported (ValueError: no table)"),
        ("leaving_rules:f", "cannot be imported (SystemExit: 0)"),
    ],
)
def test_a_rule_that_is_not_there_is_refused(
    spec: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (
        ("broken", "def f(:"),
        ("needy", "import needy"),
        ("wrong", "raise ValueError('no table')"),
        ("leaving", "raise SystemExit(0)"),
    ):
        (tmp_path / f"{name}_rules.py").write_text(text + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError) as caught:
        rule_scorer(spec)
    assert str(caught.value).startswith(f"{spec}: {said}")


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0}, {"temperature": -1.0}, {"steps": -1}, {"prompts_per_step": 0}, {"samples_per_prompt": 0},
        {"max_new_tokens": 0}, {"epochs": 0}, {"minibatches": 0}, {"learning_rate": -1.0}, {"checkpoint_every": 0},
        {"gamma": 1.5}, {"lam": -0.1}, {"clip": -0.2}, {"kl": {"target": 0.0}}, {"kl": {"horizon": 0.0}},
        {"adapter": {"rank": -1}}, {"max_grad_norm": 0.0}, {"threads": -1}, {"importance_cap": 0.0},
        {"start": "a", "adapter": {"rank": 0}}, {"kl": {"target": 0.1, "horizon": 1.0}},
    ],
    ids=str,
)  # fmt: skip
def test_a_setting_without_meaning_is_refused(config: ppo.Config, settings: dict[str, Any]) -> None:
    from plaudit.config import parse

    with pytest.raises(UserError, match=next(iter(settings))):
        parse(ppo.Config, config.model_dump() | settings, "a.yaml")


def test_a_prompt_that_leaves_no_room_is_refused_at_once(config: ppo.Config, tmp_path: Path) -> None:
    """Not in the middle of a run, when its turn comes."""
    path = tmp_path / "long.txt"
    path.write_text("\n".join([*PROMPTS * 4, "good " * 300]) + "\n")
    with pytest.raises(UserError, match="prompt 21"):
        ppo.run(changed(config, prompts=str(path), steps=1), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


# -- other ways to begin ---------------------------------------------------------------------------------------


def test_a_killed_run_of_the_whole_model_goes_on(config: ppo.Config, tmp_path: Path) -> None:
    config = changed(config, adapter={"rank": 0}, learning_rate=1e-3, steps=3)
    ppo.run(config, tmp_path / "unbroken")
    with pytest.MonkeyPatch.context() as monkeypatch:
        within_the_update(monkeypatch, 3, ppo)
        with pytest.raises(Killed):
            ppo.run(config, tmp_path / "broken")
    ppo.run(config, tmp_path / "broken")
    assert rows(tmp_path / "broken") == rows(tmp_path / "unbroken")
    assert weights(tmp_path / "broken") == weights(tmp_path / "unbroken")
    transformers_model(tmp_path / "broken" / "model", torch.float32)


def test_more_minibatches_than_samples_are_as_many_as_samples(config: ppo.Config, tmp_path: Path) -> None:
    samples = config.prompts_per_step * config.samples_per_prompt
    ppo.run(changed(config, minibatches=samples, steps=2), tmp_path / "each")
    ppo.run(changed(config, minibatches=50, steps=2), tmp_path / "fifty")
    same(rows(tmp_path / "fifty"), rows(tmp_path / "each"), 1e-12)


# -- the optimiser ---------------------------------------------------------------------------------------------


def test_the_learning_rate_goes_to_zero() -> None:
    assert [linear_to_zero(s, 4) for s in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert [linear_to_zero(s, 6, 2) for s in range(6)] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_a_step_by_hand() -> None:
    """Adam's first step is the learning rate times g / (|g| + eps), the gradient scaled to norm 1 before."""
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    optimizer = adam([weight], learning_rate=0.5)
    weight.grad = torch.tensor([3.0, 4.0], dtype=torch.float64)
    norm = take_step(optimizer, [weight], learning_rate=0.1, max_grad_norm=1.0)
    assert norm == pytest.approx(5.0)
    expected = [1 - 0.1 * 0.6 / (0.6 + 1e-5), 2 - 0.1 * 0.8 / (0.8 + 1e-5)]
    assert weight.tolist() == pytest.approx(expected, abs=1e-7)
    assert weight.grad is None


# -- learning --------------------------------------------------------------------------------------------------


@pytest.mark.proof
@pytest.mark.parametrize("seed", [0, 1])
def test_the_reward_rises_and_the_kl_stays_in_its_range(
    config: ppo.Config, tmp_path: Path, seed: int
) -> None:
    """A third of the tokens are wanted ones by chance, and 1 is the best that there is."""
    config = changed(
        config, model=peaked_model(tmp_path), seed=seed, steps=25, prompts_per_step=5, samples_per_prompt=16,
        max_new_tokens=8, epochs=4, learning_rate=5e-3, kl={"coef": 0.05}, precision="float32",
    )  # fmt: skip
    summary = ppo.run(config, tmp_path / "run")
    logged = rows(tmp_path / "run")
    assert summary["stopped"] is None
    begin = sum(row["reward"] for row in logged[:2]) / 2
    end = sum(row["reward"] for row in logged[-3:]) / 3
    assert begin < 0.45
    assert end > 0.85
    assert all(-0.05 < row["kl"] < 1.0 for row in logged)
    assert logged[-1]["kl"] > 0.3
    assert logged[-1]["explained_variance"] > 0.5
    assert logged[-1]["entropy"] > 0.5
