"""What goes over the HTTP API: requests that are checked, answers that have a schema."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError, to_json

from plaudit.access.roles import Permission, Role
from plaudit.feedback.tasks import MOST_RATERS, Flag, Name, Task, TaskKind

Text = Annotated[str, Field(max_length=200_000)]
Short = Annotated[str, Field(min_length=1, max_length=200)]
Id = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[\x20-\x7e]+$")]


OURS = "studio:"
"""How ids of events begin that the studio makes itself."""
MADE = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
"""What `event_id` makes: anybody could work out which id the store gives next."""
DEEPEST = 16


def _not_ours(id: str) -> str:
    if id.startswith(OURS):
        raise PydanticCustomError("reserved", "begins as the studio's own ids do")
    if MADE.fullmatch(id):
        raise PydanticCustomError(
            "reserved", "is a version 5 UUID, as the store's own ids are; take a random one"
        )
    return id


def _plain(given: dict[str, Any]) -> dict[str, Any]:
    """What can be kept and shown again: nested so far and no further, of numbers and whole characters."""
    level: list[Any] = [given]
    for _ in range(DEEPEST):
        below = list[Any]()
        for value in level:
            if isinstance(value, dict):
                below += [*value.keys(), *value.values()]
            elif isinstance(value, list):
                below += value
            elif isinstance(value, float) and not math.isfinite(value):
                raise PydanticCustomError("number", "holds a number that is none")
            elif isinstance(value, str) and not _whole(value):
                raise PydanticCustomError("character", "holds a character that cannot be kept")
        if not below:
            return given
        level = below
    raise PydanticCustomError("deep", "is nested deeper than {most}", {"most": DEEPEST})


def _whole(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


EventId = Annotated[Id, AfterValidator(_not_ours)]
Plain = Annotated[dict[str, Any], AfterValidator(_plain)]


class Body(BaseModel):
    """Of a request: unknown names are refused, numbers are finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Message(Body):
    role: Literal["system", "user", "assistant", "tool"]
    content: Text


Messages = Annotated[list[Message], Field(min_length=1, max_length=500)]


class NewItem(Body):
    """What is to be judged. answer: the payload that is right, of gold and training items."""

    prompt: (
        Annotated[str, Field(min_length=1, max_length=200_000)]
        | Annotated[list[Message], Field(min_length=1, max_length=500)]
    )
    completions: Annotated[list[Text], Field(max_length=9)] = []
    policy_version: Short | None = None
    meta: Plain = {}
    part: Literal["open", "gold", "training"] = "open"
    answer: Plain | None = None
    why: Annotated[str, Field(max_length=10_000)] = ""


class NewItems(Body):
    items: Annotated[list[NewItem], Field(min_length=1, max_length=10_000)]


def _unset(shape: dict[str, Any]) -> None:
    for setting in shape["properties"].values():
        setting.pop("default", None)


class TaskChange(Task):
    """Those of a task's settings that change; the others stay as they are."""

    model_config = ConfigDict(json_schema_extra=_unset)
    kind: TaskKind = "comparison"

    @model_validator(mode="after")
    def _labels_fit(self) -> Self:
        return self  # whether they fit is seen in the whole task


def _as_json(shape: type[Task]) -> Callable[[Any], Any]:
    """Reads a task as JSON has it: lists stand for tuples there."""

    def read(given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        try:
            return shape.model_validate_json(to_json(given))
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join(map(str, first["loc"]))
            raise PydanticCustomError("task", "{what}", {"what": first["msg"], "at": at}) from None

    return read


GivenTask = Annotated[Task, BeforeValidator(_as_json(Task))]
GivenChange = Annotated[TaskChange, BeforeValidator(_as_json(TaskChange))]


class NewProject(Body):
    name: Short
    task: GivenTask
    guideline: dict[Literal["en", "zh"], Text] = {}


class RatersChange(Body):
    """Who is named from now on among those who may judge, and who no more; all others stay."""

    admit: Annotated[list[Name], Field(max_length=MOST_RATERS)] = []
    dismiss: Annotated[list[Name], Field(max_length=MOST_RATERS)] = []


class ProjectChange(Body):
    """What is left out stays as it is, also within task."""

    name: Short | None = None
    task: GivenChange | None = None
    raters: RatersChange | None = None
    archived: bool | None = None
    guideline: dict[Literal["en", "zh"], Text] | None = None


class Answer(Body):
    """event: made by the client, so that sending it again is harmless. payload: None passes the item over. ahead: how
    many turns to send back with the acknowledgement, those in have left out, as `next` does."""

    event: EventId
    item: Id
    payload: Plain | None
    ahead: Annotated[int, Field(ge=0, le=3)] = 0
    have: Annotated[list[Id], Field(max_length=10)] = []
    assignment: Annotated[str, Field(max_length=500)] | None = None
    guideline: Annotated[int, Field(ge=0, lt=2**31)] = 0
    comment: Annotated[str, Field(max_length=10_000)] | None = None
    flags: Annotated[list[Flag], Field(max_length=3)] = []
    supersedes: Id | None = None


class Decision(Body):
    """A reviewer's. event: made by the client, as an answer's."""

    event: EventId
    item: Id
    payload: Plain
    guideline: Annotated[int, Field(ge=0, lt=2**31)] = 0
    comment: Annotated[str, Field(max_length=10_000)] | None = None
    flags: Annotated[list[Flag], Field(max_length=3)] = []


class Draft(Body):
    draft: Plain


class Practice(Body):
    item: Id
    payload: Plain


class LogIn(Body):
    name: Annotated[str, Field(max_length=100)]
    password: Annotated[str, Field(max_length=1000)]


class NewPassword(Body):
    old: Annotated[str, Field(max_length=1000)]
    new: Annotated[str, Field(max_length=1000)]


class Acceptance(Body):
    name: Annotated[str, Field(max_length=100)]
    password: Annotated[str, Field(max_length=1000)]
    identity: dict[Short, Annotated[str, Field(max_length=200)]] = {}


class Invite(Body):
    role: Role
    project: Id | None = None
    days: Annotated[float, Field(gt=0, le=90)] = 7.0


class NewKey(Body):
    scopes: Annotated[list[Permission], Field(min_length=1, max_length=5)]
    label: Annotated[str, Field(max_length=200)] = ""
    days: Annotated[float, Field(gt=0, le=3660)] | None = None


# Answers


class Said(BaseModel):
    """Done."""

    ok: Literal[True] = True


class Fault(BaseModel):
    """What is wrong, where, and how to mend it."""

    what: str
    where: str = ""
    fix: str = ""


class Begun(BaseModel):
    """A log-in. The cookie has its token; csrf: what the page sends back."""

    name: str
    role: Role
    csrf: str
    project: str | None = None


class Me(BaseModel):
    name: str
    role: Role
    permissions: list[Permission]


class ProjectShown(BaseModel):
    """guideline: the newest version; guidelines: its text by language."""

    id: str
    name: str
    task: Task
    created_at: str
    archived: bool
    guideline: int
    guidelines: dict[str, str]


class Added(BaseModel):
    added: int


class Shown(BaseModel):
    """A completion on the rater's screen. index: its place in the item; raw: as it is; text: with what cannot be seen
    made visible; html: as Markdown."""

    index: int
    raw: str
    text: str
    html: str


class TurnShown(BaseModel):
    """What a rater is given; completions in the order of their screen."""

    item: str
    part: Literal["open", "training"]
    assignment: str | None
    prompt: list[dict[str, str]]
    completions: list[Shown]
    draft: dict[str, Any]


class Next(BaseModel):
    """turns: what comes next; empty where nothing is left. task, guideline: what is asked."""

    turns: list[TurnShown]
    task: Task
    guideline: int
    guidelines: dict[str, str]


class Written(BaseModel):
    """next: where the answer asked for turns ahead."""

    seq: int
    next: Next | None = None


class Lesson(BaseModel):
    right: bool
    answer: dict[str, Any]
    why: str


class AccountShown(BaseModel):
    name: str
    role: Role
    created_at: str
    disabled: bool


class Invited(BaseModel):
    link: str
    role: Role
    ends: float


class KeyShown(BaseModel):
    id: str
    account: str
    label: str
    scopes: list[Permission]
    created_at: str
    ends: float | None


class KeyMade(BaseModel):
    key: KeyShown
    secret: str


class AuditLine(BaseModel):
    seq: int
    at: str
    actor: str
    action: str
    target: str
    detail: dict[str, Any]


class Unbroken(BaseModel):
    """broken: the first line of the log that is not as it was written; None where all are."""

    broken: int | None


class Told(BaseModel):
    """One thing that was said of an item. stands: whether it still counts."""

    event: str
    seq: int
    at: str
    rater: str
    kind: str
    payload: dict[str, Any]
    comment: str | None
    stands: bool
    supersedes: str | None


class ItemShown(BaseModel):
    item: str
    prompt: list[dict[str, str]]
    completions: list[Shown]
    said: list[Told]


class Sampling(Body):
    """prompts: those of the project's items where none are given. n: completions a prompt."""

    model: Short
    adapter: Short | None = None
    prompts: Annotated[list[Text | Messages], Field(max_length=10_000)] = []
    n: Annotated[int, Field(ge=1, le=9)] = 2
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 128
    temperature: Annotated[float, Field(ge=0, le=5)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0


class Reading(Body):
    """Of a project's completions, by a model."""

    model: Short


class Scoring(Body):
    """reward: a reward model's directory, or another scorer that `plaudit score` takes."""

    reward: Short


class Chat(Body):
    """messages: the dialogue so far, the last of them the user's. models: two, whose sides are drawn."""

    messages: Messages
    models: Annotated[list[Short], Field(min_length=2, max_length=2)]
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 256


class Vote(Body):
    """choice: which side, as they stood."""

    choice: Literal[0, 1, "tie", "both_bad"]


class NewHook(Body):
    """url: http or https, of a public address. kinds: what is told: answers of raters, changes by owners."""

    url: Annotated[str, Field(min_length=8, max_length=2000, pattern=r"^https?://[\x21-\x7e]+$")]
    kinds: Annotated[list[Literal["answers", "changes"]], Field(min_length=1, max_length=2)] = ["answers"]


class JobShown(BaseModel):
    id: int
    kind: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    asked_by: str
    created_at: str
    attempts: int
    progress: float
    message: str
    result: Any


class ChatShown(BaseModel):
    """replies: by side, empty until both are there. models: who they were, once one has voted."""

    job: int
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    message: str
    replies: list[str]
    html: list[str]
    models: list[str] | None = None


class Point(BaseModel):
    n: int
    accuracy: float
    low: float
    high: float


class Forecast(BaseModel):
    more: int
    gain: float
    low: float
    high: float


class ValueShown(BaseModel):
    """reason: why there is no curve. longer: what "the longer one" gets right. slice: how right a reward is on the
    random slice that learned from all else."""

    judgements: int
    reason: str | None
    curve: list[Point]
    forecast: Forecast | None
    longer: float | None
    slice: Point | None


class Ordered(BaseModel):
    ordered: int


class Standing(BaseModel):
    item: str
    completion: int
    text: str
    score: float
    rank: int
    before: int


class StandingOf(BaseModel):
    prompt: str | list[dict[str, str]]
    answers: list[Standing]


class Standings(BaseModel):
    seq: int
    since: int
    prompts: list[StandingOf]


class Side(BaseModel):
    model: str
    item: str
    html: str


class SideBySide(BaseModel):
    prompt: list[dict[str, str]]
    answers: list[Side]


class TakenIn(BaseModel):
    records: int
    items: int
    events: int
    known: int
    left_out: int


class RunShown(BaseModel):
    """state: running, ended, or stopped. at: of the last step's row, seconds since 1970."""

    name: str
    recipe: str
    state: Literal["running", "ended", "stopped"]
    steps: int
    at: float | None


class Gain(BaseModel):
    """How often judges preferred a round's model, 0 to 1, with the 95 % interval. against: parent or anchor."""

    against: str
    rate: float
    low: float
    high: float


class LoopRound(BaseModel):
    """judgements: by source. accuracy: the reward's on held-out comparisons. why: the gate's reason."""

    round: int
    judgements: dict[str, int]
    accuracy: float | None
    gains: list[Gain]
    published: bool
    why: str
    seconds: float


class Champion(BaseModel):
    """round: 0 for the starting model."""

    round: int
    version: str


class Waited(BaseModel):
    """gate: whether for the judges at the gate."""

    round: int
    gate: bool
    have: int
    want: int


class LoopAt(BaseModel):
    """What a loop is at."""

    round: int
    step: str


class LoopShown(BaseModel):
    """ended: why, empty while it goes on. target: a win rate over the start."""

    run: str
    name: str
    champion: Champion
    target: float | None
    judgements: int
    seconds: float
    waiting: Waited | None
    at: LoopAt | None
    ended: str
    rounds: list[LoopRound]


class Metrics(BaseModel):
    """rows: one a step, numbers by name."""

    name: str
    state: Literal["running", "ended", "stopped"]
    rows: list[dict[str, float | None]]


class Counts(BaseModel):
    """Of a project: items by part, judgements that stand, and how many are still to come."""

    open: int
    gold: int
    training: int
    judgements: int
    to_come: int
    raters: int


class HookShown(BaseModel):
    """failures: in a row; fault: why the last one failed."""

    id: int
    url: str
    kinds: list[Literal["answers", "changes"]]
    created_at: str
    failures: int
    fault: str


class HookMade(BaseModel):
    """secret: signs what is sent; shown this once."""

    hook: HookShown
    secret: str


class RaterShown(BaseModel):
    """What is kept of a rater: all that they said, and the models that were trained on it."""

    rater: str
    state: Literal["active", "retracted", "forgotten"]
    identity: dict[str, str]
    models: list[str]
    events: list[dict[str, Any]]
    drafts: dict[str, dict[str, Any]]
    practice: list[dict[str, Any]]


class Forgotten(BaseModel):
    """models: trained on what is gone; train them again without it."""

    rater: str
    models: list[str]


class Own(BaseModel):
    """One's own work in a project. agreement: how often others who judged the same said the same; None below five."""

    done: int
    skipped: int
    today: int
    agreement: float | None
