"""The settings of `plaudit loop`; each is described in docs/loop.md."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from plaudit.config import Config as Base
from plaudit.loop.quickstart import PolicyConfig, RewardConfig
from plaudit.training import machine

Source = Literal["studio", "served", "panel", "judge", "files", "behaviour"]
Weight = Field(default=0.0, ge=0, le=1000)


class Sources(Base):
    """How much a judgement of each source counts; 0: the source is not used."""

    studio: float = Weight
    served: float = Weight
    panel: float = Weight
    judge: float = Weight
    files: float = Weight
    behaviour: float = Weight

    @model_validator(mode="after")
    def _somebody_judges(self) -> Self:
        if not self.used:
            raise ValueError("every source has weight 0, so that nobody judges")
        if self.behaviour and not self.served:
            raise ValueError("behaviour is that of a served model; give served a weight, too")
        return self

    @property
    def used(self) -> dict[str, float]:
        """Name and weight of those above 0."""
        return {name: weight for name, weight in self.model_dump().items() if weight > 0}


class CollectConfig(Base):
    """How much is judged a round, and by how many."""

    enough: int = Field(default=300, ge=1)
    prompts: int = Field(default=120, ge=2)
    completions: int = Field(default=4, ge=2)
    overlap: int = Field(default=2, ge=1, le=50)
    most_overlap: int = Field(default=5, ge=1, le=50)
    random_share: float = Field(default=0.5, ge=0, le=1)
    stale: float = Field(default=0.1, ge=0, le=1)

    @model_validator(mode="after")
    def _overlaps_fit(self) -> Self:
        if self.most_overlap < self.overlap:
            raise ValueError("most_overlap is below overlap")
        return self


class OnlineConfig(Base):
    """The online mode's part: a small step of KTO for each judgement as it comes in; see the kto recipe."""

    judgements_per_step: int = Field(default=1, ge=1)
    replay: int = Field(default=7, ge=0)
    learning_rate: float = Field(default=5e-5, gt=0)
    beta: float = Field(default=0.2, gt=0)
    threshold: float = Field(default=0.5, gt=0, le=1)


class GateConfig(Base):
    """Who decides whether a round's model is published, and how sure it must be."""

    judges: str = "panel"
    raters: list[str] = Field(default=[])
    overlap: int = Field(default=1, ge=1, le=50)
    prompts: int = Field(default=160, ge=10)
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    effect: float = Field(default=0.05, gt=0, lt=0.5)
    beta: float = Field(default=0.1, gt=0, lt=0.5)

    @model_validator(mode="after")
    def _people_are_named(self) -> Self:
        if self.judges == "people" and len(self.raters) < self.overlap:
            raise ValueError("judges people wants raters: as many names as judge a prompt")
        return self


class SuiteConfig(Base):
    """Prompts on which a new model may not be much worse than its parent. scorer: from 0 to 1, as `plaudit score`
    takes it; margin: how much worse."""

    prompts: str
    scorer: str
    margin: float = Field(default=0.05, gt=0, le=1)


class StopConfig(Base):
    """When the loop ends: whichever comes first."""

    rounds: int = Field(default=3, ge=1)
    target: float | None = Field(default=None, gt=0, lt=1)
    judgements: int | None = Field(default=None, ge=1)
    hours: float | None = Field(default=None, gt=0)
    patience: int = Field(default=2, ge=1)


class Config(Base):
    """Settings of the loop."""

    model: str = "smollm2"
    name: str = Field(default="policy", min_length=1)
    store: str | None = None
    prompts: str | None = None
    heldout: str | None = None
    data: list[str] = Field(default=[])
    judge: str | None = None
    sources: Sources
    seed: int = 0
    max_new_tokens: int = Field(default=24, ge=1)
    collect: CollectConfig = CollectConfig()
    reward: RewardConfig = RewardConfig()
    policy: PolicyConfig = PolicyConfig()
    mode: Literal["rounds", "online"] = "rounds"
    online: OnlineConfig = OnlineConfig()
    gate: GateConfig = GateConfig()
    suites: dict[str, SuiteConfig] = Field(default={})
    stop: StopConfig = StopConfig()
    missing_eos_penalty: float | None = None
    precision: machine.Precision = "auto"
    threads: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _sources_have_what_they_need(self) -> Self:
        wanted: tuple[tuple[float, Any, str], ...] = (
            (self.sources.files, self.data, "files wants data: the files of judgements"),
            (self.sources.judge, self.judge, "judge wants judge: its YAML, as `plaudit judge` takes it"),
        )
        for weight, given, fault in wanted:
            if weight and not given:
                raise ValueError(f"the source {fault}")
        if (self.prompts is None) != (self.heldout is None):
            raise ValueError("prompts and heldout are given together, or neither")
        if "parent" in self.suites or "anchor" in self.suites:
            raise ValueError("a suite may not be called parent or anchor")
        return self
