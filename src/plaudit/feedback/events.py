"""What is kept of feedback: items (what is judged) and events (what was said), with their checks and makers."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast, get_args

from plaudit.feedback.schema import to_json
from plaudit.types import Choice, Message, Prompt, UserError, prompt_to_json

Judgement = Literal["rating", "category", "comparison", "ranking", "demonstration", "skip"]
Rule = Literal["retract", "retract_rater", "restore_rater", "forget_rater"]
Kind = Judgement | Rule
JUDGEMENTS: tuple[Judgement, ...] = get_args(Judgement)
KINDS: tuple[Kind, ...] = (*JUDGEMENTS, *get_args(Rule))
_NAMESPACE = uuid.UUID("6f0b0c57-7a0e-5d0b-9b58-3f6f7a1f4a0e")


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt and the completions to judge: one to rate, two to compare, more to rank, none to demonstrate.

    id: given by the client, or made from the content, so that the same item is stored once.
    policy_version: the model that wrote the completions. meta: anything JSON that the client wants back.
    author: the rater whose own words the prompt holds (a served conversation); they go when that rater is
    forgotten. None where the words are nobody's whom the store knows.
    """

    prompt: Prompt
    completions: tuple[str, ...]
    policy_version: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    author: str | None = None
    id: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "completions", tuple(self.completions))
        if not self.prompt:
            raise UserError("prompt is empty", where=f"item {self.id}".strip())
        if not all(isinstance(completion, str) for completion in self.completions):
            raise UserError("completions are not all texts", where=f"item {self.id}".strip())
        if not self.id:
            content = [
                prompt_to_json(self.prompt),
                self.completions,
                self.policy_version,
                self.meta,
                self.author,
            ]
            object.__setattr__(
                self, "id", hashlib.sha256(to_json(as_stored(content)).encode()).hexdigest()[:32]
            )


def salted(item: Item, salt: str | None) -> Item:
    """The same under an id from which only who knows the salt can tell what it holds; None: as it is."""
    if salt is None:
        return item
    return replace(item, id=hmac.new(salt.encode(), item.id.encode(), hashlib.sha256).hexdigest()[:32])


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the log.

    id: made by the client; sending the event again is harmless. rater: a pseudonym.
    payload: JSON; what it holds depends on the kind, see the makers below and `check`.
    presented: the order on the rater's screen: presented[0] is the index of the completion that stood first.
    policy_version, guideline_version: what was judged, and by which instructions.
    supersedes: id of the rater's earlier event on the item that this one replaces.
    assignment: id of the assignment that this one answers. comment: free text, sealed under the rater's key.
    seq, created_at (UTC, ISO 8601): given by the store; no decision reads the time.
    """

    id: str
    kind: Kind
    rater: str
    item: str | None = None
    payload: Mapping[str, Any] = field(default_factory=dict)
    presented: tuple[int, ...] | None = None
    policy_version: str | None = None
    guideline_version: str | None = None
    supersedes: str | None = None
    assignment: int | None = None
    comment: str | None = None
    seq: int = 0
    created_at: str = ""

    def __post_init__(self) -> None:
        for name, value in (("id", self.id), ("rater", self.rater)):
            if not isinstance(value, str) or not value:
                raise UserError(f"{name} is {value!r}, not a name", where="event")
        if self.kind not in KINDS:
            raise UserError(f"kind is {self.kind!r}, not one of {', '.join(KINDS)}", where=f"event {self.id}")
        if self.presented is not None:
            object.__setattr__(self, "presented", tuple(self.presented))


def event_id(*key: int | str) -> str:
    """The id that belongs to the key (a version 5 UUID): the same key, the same event."""
    words = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return str(uuid.uuid5(_NAMESPACE, words))


def drawn_order(n: int, *key: int | str) -> tuple[int, ...]:
    """The order in which to show n completions, drawn from the key alone."""
    from plaudit.randomness import rng  # numpy is slow to import, and the store does without

    return tuple(int(i) for i in rng("presented", *key).permutation(n))


def rating_event(
    item: str, rater: str, scores: Mapping[str, float], *, completion: int = 0, **fields: Any
) -> Event:
    """Scores from 0 (worst) to 1 (best) by criterion for one completion of the item.

    The makers take any further field of `Event` by name (id, presented, policy_version, guideline_version,
    assignment, comment, supersedes); without an id a random one is made. UserError for what `check` refuses.
    """
    return _event("rating", item, rater, {"scores": dict(scores), "completion": completion}, fields)


def comparison_event(
    item: str,
    rater: str,
    choice: Choice,
    *,
    strength: int | None = None,
    presented: Sequence[int] | None = None,
    **fields: Any,
) -> Event:
    """Which of an item's two completions is better, and by how much (1 slightly to 4 very much)."""
    fields["presented"] = None if presented is None else tuple(presented)
    return _event("comparison", item, rater, {"choice": choice, "strength": strength}, fields)


def ranking_event(item: str, rater: str, ranking: Sequence[int], **fields: Any) -> Event:
    """An item's completions, best first."""
    return _event("ranking", item, rater, {"ranking": list(ranking)}, fields)


def category_event(item: str, rater: str, label: str, **fields: Any) -> Event:
    """Which of the labels an item's text has."""
    return _event("category", item, rater, {"label": label}, fields)


def demonstration_event(item: str, rater: str, completion: str, **fields: Any) -> Event:
    """What the rater would have had the model say: an answer written or mended by a person."""
    return _event("demonstration", item, rater, {"completion": completion}, fields)


def skip_event(item: str, rater: str, **fields: Any) -> Event:
    """The rater saw the item and would not judge it; say why in `comment`."""
    return _event("skip", item, rater, {}, fields)


def _event(kind: Kind, item: str, rater: str, payload: dict[str, Any], fields: dict[str, Any]) -> Event:
    event = Event(fields.pop("id", None) or str(uuid.uuid4()), kind, rater, item, payload, **fields)
    check(event)
    return event


def check(event: Event, completions: int | None = None) -> None:
    """UserError when a judgement does not say what its kind must, or not of an item with so many completions.

    rating: {"scores": {criterion: 0..1}, "completion": index}; comparison: {"choice": 0 | 1 | "tie" |
    "both_bad", "strength": 1..4 or null}; category: {"label": text}; ranking: {"ranking": [index, ...]};
    demonstration: {"completion": text}; skip: {}. Keys beside these are kept as they are.
    """
    fault = _fault(event.kind, event.payload, completions)
    if fault is None and event.presented is not None:
        shown = range(len(event.presented) if completions is None else completions)
        if event.kind == "comparison" and completions is None:
            shown = range(2)
        if any(type(i) is not int for i in event.presented) or sorted(event.presented) != list(shown):
            fault = f"presented {list(event.presented)} is not an order of {len(shown)} completions"
    if fault is not None:
        raise UserError(fault, where=f"{event.kind} of item {event.item}")


def _fault(kind: Kind, payload: Mapping[str, Any], completions: int | None) -> str | None:
    match kind:
        case "rating":
            return _rating_fault(payload, completions)
        case "comparison":
            if completions not in (None, 2):
                return f"compares two completions, the item has {completions}"
            choice, strength = payload.get("choice"), payload.get("strength")
            if type(choice) not in (int, str) or choice not in (0, 1, "tie", "both_bad"):
                return f'choice is {choice!r}, not 0, 1, "tie" or "both_bad"'
            if strength is not None and (type(strength) is not int or not 1 <= strength <= 4):
                return f"strength is {strength!r}, not 1 to 4"
        case "category":
            if not isinstance(payload.get("label"), str) or not payload["label"]:
                return "the label is empty or not text"
        case "ranking":
            ranking = payload.get("ranking")
            if not isinstance(ranking, list) or len(ranking) < 2:
                return f"ranking is {ranking!r}, not the indices of two completions or more"
            count = len(ranking) if completions is None else completions
            if any(type(i) is not int for i in ranking) or sorted(ranking) != list(range(count)):
                return f"ranking {ranking} does not name each of {count} completions once"
        case "demonstration":
            if not isinstance(payload.get("completion"), str) or not payload["completion"]:
                return "the demonstrated completion is empty or not text"
        case _:
            pass
    return None


def _rating_fault(payload: Mapping[str, Any], completions: int | None) -> str | None:
    scores, index = payload.get("scores"), payload.get("completion", 0)
    if not isinstance(scores, dict) or not scores:
        return "there are no scores"
    for criterion, score in scores.items():
        if not criterion:
            return "there is a criterion without a name"
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            return f"score of {criterion!r} is {score!r}, not a number"
        if not 0 <= score <= 1:
            return f"score of {criterion!r} is {score}, not within 0 to 1"
    if type(index) is not int or index < 0 or (completions is not None and index >= completions):
        return f"completion {index!r} is none of the item's"
    return None


def same_content(one: Event, other: Event) -> bool:
    """Whether two events say the same, wherever and whenever they were stored."""
    plain = [replace(event, seq=0, created_at="", payload={}) for event in (one, other)]
    return plain[0] == plain[1] and as_stored(one.payload) == as_stored(other.payload)


def as_stored(value: Any) -> Any:
    """The value as JSON gives it back. UserError for what JSON cannot say."""
    try:
        return json.loads(to_json(dict(value) if isinstance(value, Mapping) else value))
    except (TypeError, ValueError) as error:
        raise UserError(f"cannot be kept as JSON ({error})", where="payload or meta") from None


def prompt_from_json(value: Any) -> Prompt:
    """The other way round."""
    if isinstance(value, str):
        return value
    return tuple(Message(cast(Any, turn["role"]), turn["content"]) for turn in value)
