"""A learned reward: an adapter and a scalar head on the trunk, kept in a directory of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from plaudit import files
from plaudit.data.collate import micro_batches, pack
from plaudit.data.tokenizer import Tokenizer, check_room
from plaudit.models.adapter import load_adapter, save_adapter
from plaudit.models.branch import Branch, ScalarHead, final_scores, pooled_states, sight
from plaudit.models.load import Model, linear_sizes
from plaudit.models.weights import read_safetensors
from plaudit.reward.criteria import CriteriaHead, load_criteria
from plaudit.tensors import Sample
from plaudit.types import UserError


class RewardModel:
    """A Scorer: the head's number of a completion (branch.pool), normalised on reference samples."""

    def __init__(
        self, branch: Branch, model: Model, *, budget: int = 4096, criteria: CriteriaHead | None = None
    ) -> None:
        """budget: columns a forward pass, padding counted. criteria: the heads whose weighted sum the score is."""
        self.branch, self.model, self.budget, self.criteria = branch, model, budget, criteria

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """One number a sample. UserError for a score that is not a number, and for samples of another tokenizer:
        a sample knows its prompt by ids alone, which would be other words here (`plaudit score` reads texts)."""
        return shared_scores([self], samples)[0]

    def score_ids(
        self,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        action_masks: Sequence[Sequence[bool] | None] | None = None,
    ) -> list[float]:
        """Scores of completions given as ids; action_masks: see `pack`."""
        return scores_of([self], prompts, completions, action_masks)[0]

    def criteria_ids(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> list[dict[str, float]]:
        """Each criterion's number by name, in log-odds: the score is their weighted sum, normalised. UserError for a
        reward model that was trained without criteria."""
        if self.criteria is None:
            raise UserError(
                "was trained without criteria",
                where="reward model",
                fix="train it with `criteria`, or score without",
            )
        packed = pack(prompts, completions, device=self.model.trunk.device)
        found = torch.zeros(len(prompts), len(self.criteria.names), dtype=torch.float64)
        with torch.no_grad():
            for rows in micro_batches(packed, self.budget):
                part, index = packed.take(rows)
                found[index.cpu()] = self.criteria.each(pooled_states(self.branch, part)).double().cpu()
        return [dict(zip(self.criteria.names, row, strict=True)) for row in found.tolist()]

    def save(self, directory: Path, facts: dict[str, Any]) -> None:
        """Write adapter (peft's format), head and facts; facts say what it was trained on and how well."""
        assert self.branch.head is not None
        assert self.branch.adapter is not None
        with files.new_directory(directory) as place:
            save_adapter(self.branch.adapter, place, base=str(self.model.directory))
            save_file(
                {k: v.contiguous() for k, v in self.branch.head.state_dict().items()},
                place / "head.safetensors",
            )
            about: dict[str, Any] = {
                "base_model": str(self.model.directory),
                "tokenizer": self.model.tokenizer.fingerprint,
                "trunk": self.model.trunk.fingerprint(),
                "exit": self.branch.exit,
                "pool": self.branch.pool,
            }
            if self.criteria is not None:
                self.criteria.save(place)
                about["criteria"] = self.criteria.by_name()
            files.write_json(place / "reward_model.json", about | facts)


class OnOwnTrunk:
    """A Scorer: a reward model that was trained on another model than the samples are drawn from, on that one's trunk.

    Samples of its own tokenizer are read as ids; of another (the one given) as texts: the prompt as it was asked, or
    decoded where nobody knows that, and the completion, cut to what the context holds.
    """

    def __init__(self, reward: RewardModel, tokenizer: Tokenizer, name: str) -> None:
        self.reward, self.tokenizer, self.name = reward, tokenizer, name

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """UserError as of `RewardModel.score`, for a prompt that does not fit, and for an episode of several turns."""
        found = [self._ids(sample) for sample in samples]
        prompts, completions = [prompt for prompt, _ in found], [completion for _, completion in found]
        masks = [s.action_mask and s.action_mask[: len(c)] for s, c in zip(samples, completions, strict=True)]
        return self.reward.score_ids(prompts, completions, masks)

    def _ids(self, sample: Sample) -> tuple[Sequence[int], Sequence[int]]:
        own, context = self.reward.model.tokenizer, self.reward.model.trunk.shape.context
        if sample.tokenizer == own.fingerprint:
            prompt, completion = sample.prompt_ids, sample.completion_ids
        elif sample.action_mask is not None:
            raise UserError(
                "was trained on another tokenizer, and cannot read an episode of several turns",
                where=self.name,
                fix="train it on the policy's model",
            )
        else:
            asked = self.tokenizer.decode(sample.prompt_ids) if sample.asked is None else sample.asked
            try:
                prompt = tuple(own.render(asked))
            except UserError as error:
                raise UserError(error.what, where=self.name, fix=error.fix) from None
            completion = tuple(own.complete(sample.text, ended=sample.finish_reason == "stop"))
        check_room(len(prompt) + 1, context, f"{self.name}: a prompt")
        return prompt, completion[: context - len(prompt)]


def shared_scores(models: Sequence[RewardModel], samples: Sequence[Sample]) -> list[list[float]]:
    """[models][samples]: what each reward model gives each sample; all on one trunk, whose common blocks are computed
    once. UserError for a score that is not a number, and for samples of another tokenizer."""
    for model in models:
        if any(s.tokenizer != model.model.tokenizer.fingerprint for s in samples):
            raise UserError(
                "was trained on another tokenizer than the samples'",
                where="reward model",
                fix=f"sample from {model.model.directory}, or score texts with `plaudit score`",
            )
    prompts, completions = [s.prompt_ids for s in samples], [s.completion_ids for s in samples]
    return scores_of(models, prompts, completions, [s.action_mask for s in samples])


@torch.no_grad()
def scores_of(
    models: Sequence[RewardModel],
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    action_masks: Sequence[Sequence[bool] | None] | None = None,
) -> list[list[float]]:
    """[models][n]: as `shared_scores`, of ids of the models' own tokenizer."""
    if not prompts or not models:
        return [[] for _ in models]
    trunk = models[0].branch.trunk
    packed = pack(prompts, completions, action_masks=action_masks, device=trunk.device)
    scores = torch.zeros(len(models), len(prompts), dtype=torch.float64)
    upward = sorted(range(len(models)), key=lambda m: models[m].branch.first)
    for rows in micro_batches(packed, min(model.budget for model in models)):
        part, index = packed.take(rows)
        context = trunk.context(part.positions, sight(part))
        stream, depth = trunk.embed(part.ids), 0
        for m in upward:
            branch = models[m].branch
            assert branch.trunk is trunk
            stream, depth = trunk.run(stream, context, start=depth, stop=branch.first), branch.first
            scores[m, index.cpu()] = final_scores(branch, part, stream=stream, depth=depth).double().cpu()
    if not bool(torch.isfinite(scores).all()):
        raise UserError("a score is not a number", where="reward model", fix="train it again at a lower rate")
    return [[float(score) for score in row] for row in scores]


def load_reward_model(directory: Path, model: Model) -> RewardModel:
    """The reward model in a directory, on the trunk it was trained on. UserError where the two do not belong."""
    about = describe(directory)
    trunk = model.trunk
    if (about.get("tokenizer"), about.get("trunk")) != (model.tokenizer.fingerprint, trunk.fingerprint()):
        base = about.get("base_model")
        fix = (
            "train it again: that model has changed since" if base == str(model.directory) else f"use {base}"
        )
        raise UserError("was trained on another model", where=str(directory), fix=fix)
    leave, pool = about.get("exit"), about.get("pool", "last")
    depth = trunk.shape.depth if leave is None else leave
    adapter = load_adapter(directory, linear_sizes(trunk), depth, trunk.wide).to(trunk.device)
    head = ScalarHead(trunk.shape.width, dtype=trunk.wide).to(trunk.device)
    criteria = None
    try:
        head.load_state_dict(read_safetensors(directory / "head.safetensors"))
        if shares := about.get("criteria"):
            criteria = load_criteria(directory, shares, trunk.shape.width, trunk.wide).to(trunk.device)
    except RuntimeError as error:  # a tensor is missing, too many or misshapen
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"does not fit this model ({reason})", where=str(directory / "head.safetensors")
        ) from None
    branch = Branch(trunk, adapter.requires_grad_(False), head.requires_grad_(False), exit=leave, pool=pool)
    return RewardModel(branch, model, criteria=criteria)


def describe(directory: Path) -> dict[str, Any]:
    """The facts kept with a reward model. UserError where the directory holds none."""
    path = directory / "reward_model.json"
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(
            "holds no reward model", where=str(directory), fix="train one with the reward_model recipe"
        ) from None
    except ValueError as error:
        raise UserError(f"is not JSON ({error})", where=str(path)) from None
    return about
