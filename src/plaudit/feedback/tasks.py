"""What a project asks of its raters: the kind of judgement, its rubric, and how items are given out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from plaudit.config import Config
from plaudit.types import UserError

TaskKind = Literal["rating", "category", "comparison", "ranking", "edit"]
Flag = Literal["harmful", "private", "broken"]
COUNTS: dict[TaskKind, tuple[int, int]] = {
    "rating": (1, 1), "category": (0, 1), "comparison": (2, 2), "ranking": (2, 9), "edit": (1, 2),
}  # fmt: skip
"""How many completions an item of each kind has, at least and at most."""
Name = Annotated[str, Field(min_length=1, max_length=80)]
MOST_RATERS = 1000
"""Who may be named of a project."""


class Criterion(Config):
    """One thing that is rated from 0 to 1. label: as raters read it; low, high: what the ends mean."""

    name: Name
    label: str = ""
    help: str = ""
    low: str = ""
    high: str = ""


class Task(Config):
    """The settings of a project."""

    kind: TaskKind
    criteria: Annotated[tuple[Criterion, ...], Field(min_length=1, max_length=20)] = (
        Criterion(name="overall"),
    )
    """Of a rating."""
    labels: Annotated[tuple[Name, ...], Field(max_length=50)] = ()
    """Of a category."""
    strength: bool = True
    """Whether a comparison says by how much (four grades each way)."""
    overlap: Annotated[int, Field(ge=1, le=50)] = 2
    """Raters an item."""
    random_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    """The share of items that are given out in no order of worth, so that what is measured on them is not biased by
    what was thought to teach most."""
    gold_every: Annotated[int, Field(ge=0)] = 10
    """Every how many items one comes whose answer is known; 0: none."""
    repeat_every: Annotated[int, Field(ge=0)] = 0
    """Every how many items one comes again that the rater has judged; 0: none."""
    lease_minutes: Annotated[float, Field(gt=0, le=1440)] = 20.0
    """How long an item is kept for who holds it."""
    rest_minutes: Annotated[int, Field(ge=0)] = 45
    """After how long at work a rater is reminded to rest; 0: never."""
    blur: bool = False
    """Whether texts are shown blurred until the rater wants to see them."""
    raters: Annotated[tuple[Name, ...], Field(max_length=MOST_RATERS)] = ()
    """Who may judge; everybody with an account where none is named."""
    most_judgements: Annotated[int, Field(ge=1)] | None = None
    """Stop rule: no more are given out when so many stand."""
    enough_alpha: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Stop rule: an item whose raters so far agree is not given to more, once Krippendorff's alpha of the project has
    reached this; what is left of the overlap is spent where they do not agree."""

    @model_validator(mode="after")
    def _labels_fit(self) -> Self:
        names = [criterion.name for criterion in self.criteria]
        if len(set(names)) != len(names):
            raise ValueError("two criteria have the same name")
        if "__proto__" in names:
            raise ValueError("no criterion may be called __proto__")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("two labels are the same")
        if self.kind == "category" and len(self.labels) < 2:
            raise ValueError("a category needs two labels or more")
        return self

    def admits(self, rater: str) -> bool:
        """Whether this rater is given its items."""
        return not self.raters or rater in self.raters

    def check_item(self, completions: int, where: str) -> None:
        """UserError for an item with another number of completions than its judgement takes."""
        least, most = COUNTS[self.kind]
        if not least <= completions <= most:
            wanted = str(least) if least == most else f"{least} to {most}"
            raise UserError(f"has {completions} completions, where a {self.kind} takes {wanted}", where=where)

    def asked(self) -> Task:
        """What a rater may know of it: not when gold comes, who else judges or when it is enough."""
        return Task(
            kind=self.kind, criteria=self.criteria, labels=self.labels, strength=self.strength,
            rest_minutes=self.rest_minutes, blur=self.blur,
        )  # fmt: skip

    def check_answer(self, payload: Mapping[str, Any], completions: int, where: str) -> None:
        """UserError for an answer that leaves out what is asked, or says what is not. (The store checks the rest.)"""
        if self.kind == "rating":
            scores = payload.get("scores")
            wanted, given = (
                {one.name for one in self.criteria},
                set(scores if isinstance(scores, Mapping) else ()),
            )
            if wanted != given:
                raise UserError(
                    f"scores are of {', '.join(sorted(given)) or 'nothing'}, not of {', '.join(sorted(wanted))}",
                    where=where,
                )
        if self.kind == "edit":
            chosen = payload.get("chosen", 0 if completions == 1 else None)
            if type(chosen) is not int or not 0 <= chosen < completions:
                raise UserError(
                    f"chosen is {chosen!r}, not one of the {completions} completions", where=where
                )
        if self.kind == "category" and payload.get("label") not in self.labels:
            raise UserError(
                f"label is {payload.get('label')!r}, not one of {', '.join(self.labels)}", where=where
            )


def kind_of(task: Task) -> Any:
    """The kind of event that answers it."""
    return "demonstration" if task.kind == "edit" else task.kind


def agrees(task: Task, given: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    """Whether an answer is the right one: a rating within a quarter of it on every criterion, a comparison on the same
    side, a ranking with the same best; a category, and an edit, exactly."""
    match task.kind:
        case "rating":
            return all(
                abs(given["scores"].get(name, -1) - score) <= 0.25 for name, score in right["scores"].items()
            )
        case "comparison":
            return bool(given["choice"] == right["choice"])
        case "ranking":
            return bool(given["ranking"][0] == right["ranking"][0])
        case "category":
            return bool(given["label"] == right["label"])
        case "edit":
            return bool(given["completion"].strip() == right["completion"].strip())
