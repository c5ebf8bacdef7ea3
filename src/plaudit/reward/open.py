"""A scorer by its name in a config: a reward model's directory, or "package.module:function"."""

from __future__ import annotations

from pathlib import Path

from plaudit.models.load import Model
from plaudit.reward.model import RewardModel, load_reward_model
from plaudit.reward.rules import RuleScorer, rule_scorer


def open_scorer(spec: str, model: Model) -> RewardModel | RuleScorer:
    """The scorer on this model's trunk. UserError where there is none, or one that belongs to another model."""
    return rule_scorer(spec) if is_function(spec) else load_reward_model(Path(spec), model)


def is_function(spec: str) -> bool:
    """Whether the name is that of a function of samples, which scores whole completions."""
    return ":" in spec
