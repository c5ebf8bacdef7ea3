"""A scorer by its name in a config: a reward model's directory, "package.module:function", or a YAML file.

The YAML describes a scorer. Names inside it are such names again, so that scorers are made of scorers; paths start at
the current directory.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator

from plaudit import config as configs
from plaudit.config import Config
from plaudit.models.load import Model, find_model, load_model
from plaudit.reward.answers import read_answers
from plaudit.reward.combine import (
    Combine,
    Ensemble,
    Transform,
    Transformed,
    WeightedSum,
    two_ensembles,
    uncertain,
)
from plaudit.reward.judge import Judge, JudgeConfig, open_judge
from plaudit.reward.model import OnOwnTrunk, describe, load_reward_model
from plaudit.reward.rules import rule_scorer
from plaudit.reward.transform import TRANSFORMS, parameters
from plaudit.tensors import Scorer
from plaudit.types import UserError

Named = Literal[
    "linear", "clip", "sigmoid", "log_sigmoid", "tanh", "log_odds", "standardise", "threshold", "rank"
]
Options = dict[str, bool | int | float | str]


class Step(Config):
    """One transform: its name in reward/transform.py, and what that function takes, in the scores' unit."""

    name: Named
    gain: float | None = None
    shift: float | None = None
    low: float | None = None
    high: float | None = None
    centre: float | None = None
    width: float | None = None
    margin: float | None = None
    mean: float | None = None
    std: float | None = None
    at: float | None = None

    @model_validator(mode="after")
    def _settings_fit(self) -> Step:
        known, needed = parameters(self.name)
        given = self.given().keys()
        if given - known:
            raise ValueError(
                f"{self.name} takes {', '.join(sorted(known)) or 'nothing'}, not {min(given - known)}"
            )
        if needed - given:
            raise ValueError(f"{self.name} needs {' and '.join(sorted(needed - given))}")
        return self

    def given(self) -> dict[str, float]:
        values = self.model_dump(exclude={"name"})
        return {key: value for key, value in values.items() if value is not None}


class Term(Config):
    """One scorer of a sum. options: for a function, its keyword arguments."""

    scorer: str
    weight: float = 1.0
    options: Options = Field(default={})


class EnsembleConfig(Config):
    """k: how many deviations `mean_minus_std` takes off."""

    members: list[str] = Field(min_length=2)
    combine: Combine = "mean"
    k: float = Field(default=1.0, ge=0)
    transform: list[Step] = Field(default=[])


class SumConfig(Config):
    """A weighted sum of scorers."""

    terms: list[Term] = Field(min_length=1)
    transform: list[Step] = Field(default=[])


class RuleConfig(Config):
    """A function of samples with its keyword arguments and its time limit in seconds."""

    rule: str
    options: Options = Field(default={})
    seconds: float = Field(default=60.0, gt=0)
    transform: list[Step] = Field(default=[])


class AnswersConfig(Config):
    """1 for the known answer to the prompt, else 0."""

    data: str
    after: str | None = None
    transform: list[Step] = Field(default=[])


class TransformConfig(Config):
    """Another scorer's scores, transformed."""

    scorer: str
    transform: list[Step] = Field(min_length=1)


class Judging(JudgeConfig):
    """A judge model."""

    transform: list[Step] = Field(default=[])


KINDS: dict[str, type[Config]] = {
    "ensemble": EnsembleConfig, "sum": SumConfig, "rule": RuleConfig, "answers": AnswersConfig, "judge": Judging,
    "transform": TransformConfig,
}  # fmt: skip


class Opened(NamedTuple):
    """A scorer of texts. base: the model whose ids it reads, None where it reads texts alone."""

    scorer: Scorer
    base: Model | None


def open_scorer(spec: str, model: Model) -> Scorer:
    """The scorer on this model's trunk; a reward model in it that was trained on another model, on that one's.

    UserError where there is none, or one whose base cannot be loaded or has changed.
    """
    return _open(spec, model, bases={})


def open_for_texts(
    spec: str,
    base: str | None = None,
    *,
    near: Model | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Opened:
    """The scorer with the model that its reward models stand on: `base`, or the one that they name. near: a model in
    memory, which serves where it is the one. UserError as `open_scorer`, and where the base cannot be loaded."""
    first = next(reward_models(spec), None)
    name = base
    if first is not None and base is None:
        name = str(describe(first).get("base_model"))
    if name is None:
        return Opened(_open(spec, None, dtype, device), None)
    try:
        here = near is not None and find_model(name) == near.directory
        model = near if near is not None and here else load_model(name, dtype, device)
    except UserError as error:
        if base is not None:
            raise
        raise UserError(
            f"its base model {name} cannot be loaded ({error.what})",
            where=str(first),
            fix="name the base with --model, if it has moved",
        ) from None
    return Opened(_open(spec, model), model)


def judge_of(path: str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Judge:
    """The judge that a YAML describes, without its transforms. UserError for another kind of scorer."""
    config = read_description(path) if is_description(path) else None
    if not isinstance(config, Judging):
        raise UserError("describes no judge", where=path, fix="name a YAML with `kind: judge`")
    return open_judge(config, path, None, dtype, device)


def is_function(spec: str) -> bool:
    """Whether the name is that of a function of samples, which scores whole completions."""
    return ":" in spec


def is_description(spec: str) -> bool:
    """Whether the name is that of a YAML file."""
    return spec.endswith((".yaml", ".yml"))


def read_description(path: str) -> Config:
    """What a YAML says of a scorer, as one of KINDS. UserError names the file and the fault."""
    tree = configs.read_yaml(Path(path))
    kind = tree.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        what = "names no kind of scorer" if kind is None else f"unknown kind {kind!r}"
        raise UserError(what, where=path, fix=f"set `kind` to one of {', '.join(KINDS)}")
    return configs.parse(KINDS[kind], tree, path)


def reward_models(spec: str, within: Sequence[str] = ()) -> Iterator[Path]:
    """The directories of all reward models that a scorer is made of. UserError for a description of itself."""
    if is_function(spec):
        return
    if not is_description(spec):
        yield Path(spec)
        return
    for part in _parts(read_description(spec)):
        yield from reward_models(part, _inside(spec, within))


def _parts(config: Config) -> list[str]:
    if isinstance(config, EnsembleConfig):
        return config.members
    if isinstance(config, SumConfig):
        return [term.scorer for term in config.terms]
    return [config.scorer] if isinstance(config, TransformConfig) else []


def _inside(spec: str, within: Sequence[str]) -> tuple[str, ...]:
    """The chain of descriptions down to this one."""
    place = str(Path(spec).resolve())
    if place in within:
        raise UserError("is made of itself", where=spec, fix="take it out of its own parts")
    return (*within, place)


def _open(
    spec: str,
    model: Model | None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    within: Sequence[str] = (),
    options: Options | None = None,
    bases: dict[str, Model] | None = None,
) -> Scorer:
    """bases: other models' trunks that reward models stand on, so far; None: all are on the model's."""
    if is_function(spec):
        return rule_scorer(spec, options=options)
    if options:
        raise UserError("takes no options, which are a function's", where=spec, fix="leave them out")
    if not is_description(spec):
        assert model is not None  # `open_for_texts` has loaded its base
        return load_reward_model(Path(spec), model) if bases is None else _learned(Path(spec), model, bases)
    config, chain = read_description(spec), _inside(spec, within)

    def part(name: str, options: Options | None = None) -> Scorer:
        return _open(name, model, dtype, device, chain, options, bases)

    scorer: Any
    if isinstance(config, EnsembleConfig):
        scorer = Ensemble(tuple(map(part, config.members)), config.combine, config.k, spec)
    elif isinstance(config, SumConfig):
        scorer = WeightedSum(tuple((t.weight, part(t.scorer, t.options)) for t in config.terms), spec)
        if sum(uncertain(term) for _, term in scorer.terms) > 1:
            raise two_ensembles(spec)
    elif isinstance(config, RuleConfig):
        scorer = rule_scorer(config.rule, config.seconds, config.options)
    elif isinstance(config, AnswersConfig):
        tokenizer = None if model is None else model.tokenizer
        scorer = read_answers(config.data, config.after, tokenizer, spec)
    elif isinstance(config, TransformConfig):
        scorer = part(config.scorer)
    else:
        assert isinstance(config, Judging)
        scorer = open_judge(config, spec, model, dtype, device)
    steps: list[Step] = getattr(config, "transform", [])
    return Transformed(scorer, tuple(map(_function, steps)), spec) if steps else scorer


def _learned(directory: Path, model: Model, bases: dict[str, Model]) -> Scorer:
    """A reward model on the model's trunk where it was trained on it, else on that of its own base."""
    about = describe(directory)
    if (about.get("tokenizer"), about.get("trunk")) == (
        model.tokenizer.fingerprint,
        model.trunk.fingerprint(),
    ):
        return load_reward_model(directory, model)
    name = str(about.get("base_model"))
    if name not in bases:
        try:
            bases[name] = load_model(name, model.trunk.dtype, model.trunk.device)
        except UserError as error:
            raise UserError(
                f"its base model {name} cannot be loaded ({error.what})",
                where=str(directory),
                fix="put it back, or train a reward model on the policy's",
            ) from None
    return OnOwnTrunk(load_reward_model(directory, bases[name]), model.tokenizer, str(directory))


def _function(step: Step) -> Transform:
    return functools.partial(TRANSFORMS[step.name], **step.given())
