"""What a served model said, and what the people it said it to make of it.

A response is kept with whoever asked for it, under a pseudonym, and can be judged by them alone: by a token that their
own key signs, so that it opens nothing once they are forgotten. Judgements go into the log like any rater's; what
people merely did (read on, copied, asked again) is kept apart, and is no judgement.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from plaudit.feedback import privacy, queries, schema
from plaudit.feedback.events import (
    Event,
    Item,
    comparison_event,
    demonstration_event,
    event_id,
    prompt_from_json,
    rating_event,
    skip_event,
)
from plaudit.feedback.store import Store
from plaudit.types import Choice, Missing, Prompt, UserError, prompt_to_json

Behaviour = Literal["dwell", "copy", "regenerate", "abandon"]
Scope = Literal["response", "conversation"]
Part = Literal["score", "choice", "over", "correction", "comment"]
"""What an opinion may say, each of which can be taken back by itself."""
SERVED = "served"
"""In an item's meta: which response it is of."""
STARS = 5


@dataclass(frozen=True, slots=True)
class Said:
    """One completion of a response. logprobs: one a token, nats, None where they are not known; ids: its tokens, where
    they are, and nothing in its text was masked."""

    text: str
    finish: str
    logprobs: tuple[float, ...] | None = None
    ids: tuple[int, ...] | None = None
    calls: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Response:
    """One answer as it was given. created_at: seconds since 1970. requester: a pseudonym. name: what was asked;
    version: the one that answered, drawn with this propensity. sampling: how the completions were drawn;
    usage: tokens and seconds; masked: how many of each kind of personal data. prompt and completions are None once they
    are forgotten, or were kept as long as they may be."""

    id: str
    created_at: float
    requester: str
    conversation: str
    name: str
    version: str
    propensity: float
    prompt: Prompt | None
    completions: tuple[Said, ...] | None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    usage: Mapping[str, Any] = field(default_factory=dict)
    masked: Mapping[str, int] = field(default_factory=dict)
    regenerates: str | None = None


@dataclass(frozen=True, slots=True)
class Opinion:
    """What somebody says of a response; at least one of these. score: 0 to 1; chosen: the index of the best completion
    of several; over: another response to the same prompt that this one is better than; correction: what it should have
    said; comment: in words. index: of the completion that score and correction are of. how: what they did to say it."""

    score: float | None = None
    chosen: int | None = None
    over: str | None = None
    correction: str | None = None
    comment: str | None = None
    index: int = 0
    scope: Scope = "response"
    how: str = ""


class Served:
    """All responses of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    # Who asks

    def requester(self, account: str, user: str | None) -> str:
        """The pseudonym of whoever asks through an account: its own, or one that only its key links to `user`."""
        with schema.writing(self.store.engine) as connection:
            privacy.ensure(connection, account)
            key = privacy.key_of(connection, account)
            if user is None:
                return account
            name = "user-" + hmac.new(key, user.encode(), hashlib.sha256).hexdigest()[:20]
            privacy.ensure(connection, name)
            privacy.key_of(connection, name)
            return name

    # What was said

    def keep(self, response: Response) -> str:
        """Stores the response, and returns the token that its requester judges it with. UserError for a requester who
        was forgotten."""
        with schema.writing(self.store.engine) as connection:
            token = _token(privacy.key_of(connection, response.requester), response.id)
            connection.execute(schema.responses.insert(), _row(response))
        return token

    def get(self, id: str) -> Response:
        """Missing where there is none."""
        with schema.reading(self.store.engine) as connection:
            return _get(connection, id)

    def some(self, ids: Iterable[str]) -> list[Response]:
        """Those of these responses whose words are still kept."""
        found = []
        with schema.reading(self.store.engine) as connection:
            for id in sorted(ids):
                with contextlib.suppress(Missing):
                    found.append(_get(connection, id))
        return [response for response in found if response.completions]

    def names(self) -> dict[str, str]:
        """What each response was asked for by, by its id."""
        table = schema.responses.c
        with schema.reading(self.store.engine) as connection:
            return {row.id: row.name for row in connection.execute(sa.select(table.id, table.name))}

    def of_token(self, token: str) -> Response:
        """The response that a token is for. Missing for a token that is none, or of somebody who was forgotten."""
        with schema.reading(self.store.engine) as connection:
            return _of_token(connection, token)

    def purge(self, before: float) -> int:
        """Takes away what was said before that time (seconds since 1970); its figures stay, and what was judged stands
        as the judged item. How many."""
        old = (schema.responses.c.created_at < before, schema.responses.c.prompt.is_not(None))
        with schema.writing(self.store.engine) as connection:
            gone = {"prompt": sa.null(), "completions": sa.null(), "conversation": "", "regenerates": None}
            done = connection.execute(schema.responses.update().where(*old).values(gone))
            return done.rowcount

    # What people make of it

    def judge(self, token: str, opinion: Opinion) -> list[Event]:
        """Writes what the requester says as events of the log, each on an item of its own kind, and returns those that
        stand for it. The same again changes nothing; another opinion takes the place of the one before.

        UserError for what does not fit the response, Missing for a token that is none, or a text that is gone.
        """
        with schema.writing(self.store.engine) as connection:
            response = _of_token(connection, token)
            other = None if opinion.over is None else _of_token(connection, opinion.over)
            parts = _judgements(response, opinion, other)
            if not parts:
                raise UserError("says nothing", where="feedback", fix="give a score, a choice, a text, ...")
            about = [response.id] + ([] if other is None else [other.id])
            return [
                event for part, pairs in parts.items() for event in self._say(connection, part, pairs, about)
            ]

    def _say(
        self, connection: Connection, part: str, pairs: list[tuple[Item, Event]], about: list[str]
    ) -> list[Event]:
        """One part of an opinion, in the place of what stands of it. about: the responses that it is of, the one that
        is judged first."""
        number, before = _said(connection, about[0], part)
        stood = {event.item: event for event in before}
        found = list[Event]()
        for item, event in pairs:
            old = stood.pop(item.id, None)
            comment = event.comment if event.comment is not None or old is None else old.comment
            if old is not None and (old.payload, old.comment) == (event.payload, comment):
                found.append(old)
                continue
            number += 1
            id = event_id("served", about[0], part, number)
            made = replace(event, id=id, comment=comment, supersedes=None if old is None else old.id)
            self.store.enter([item], [made])
            rows = [{"response": response, "event": id, "part": part} for response in about]
            connection.execute(schema.opinions.insert(), rows)
            found.append(made)
        for event in stood.values():  # what the opinion says no more
            self.store.retract(event.id)
        return found

    def take_back(self, token: str, part: Part | None = None) -> int:
        """Retracts what the requester has said of the response, all of it or one part; how many judgements."""
        with schema.writing(self.store.engine) as connection:
            response = _of_token(connection, token)
            links = schema.opinions.c
            named = sa.select(links.part).where(links.response == response.id).distinct()
            count = 0
            for one in connection.scalars(named).all():
                if part is None or one.split()[0] == part:
                    for event in _said(connection, response.id, one)[1]:
                        self.store.retract(event.id)
                        count += 1
            return count

    def notice(self, token: str, kind: Behaviour, value: float, now: float) -> None:
        """Keeps what the requester did with the response: seconds of dwelling, or that they copied it, asked again or
        went away (1). The same kind again replaces it where it is more."""
        with schema.writing(self.store.engine) as connection:
            response = _of_token(connection, token)
            id = event_id("signal", response.id, kind)
            old = connection.scalar(sa.select(schema.signals.c.value).where(schema.signals.c.id == id))
            row = {"id": id, "response": response.id, "kind": kind, "value": value, "created_at": now}
            if old is None:
                connection.execute(schema.signals.insert(), row)
            elif value > old:
                connection.execute(
                    schema.signals.update().where(schema.signals.c.id == id).values(value=value)
                )

    def signals(self) -> dict[str, dict[str, float]]:
        """By response, what was noticed of each kind."""
        found: dict[str, dict[str, float]] = {}
        with schema.reading(self.store.engine) as connection:
            for row in connection.execute(sa.select(schema.signals)):
                found.setdefault(row.response, {})[row.kind] = row.value
        return found


def _said(connection: Connection, response: str, part: str) -> tuple[int, list[Event]]:
    """How often anything was said of this part of a response, and what of it stands."""
    links = schema.opinions.c
    ids = connection.scalars(
        sa.select(links.event).where(links.response == response, links.part == part)
    ).all()
    rows = connection.execute(queries.standing(None).where(schema.events.c.id.in_(ids)))
    return len(ids), [queries.event(row) for row in rows]


def _judgements(
    response: Response, opinion: Opinion, other: Response | None
) -> dict[str, list[tuple[Item, Event]]]:
    """What an opinion says by its parts: items and judgements, without the ids that the log gives them. Words go with
    the first of them."""
    said, prompt = response.completions, response.prompt
    if said is None or prompt is None:
        raise Missing("response", response.id)
    if not 0 <= opinion.index < len(said):
        raise UserError(f"is {opinion.index}, of {len(said)} completions", where="index")
    rater, meta = response.requester, {SERVED: response.id}
    whole = opinion.scope == "conversation"
    fields: dict[str, Any] = {"policy_version": response.version, "id": "-"}

    def item(*completions: str, **more: Any) -> Item:
        return Item(prompt, completions, response.version, meta | more, author=rater)

    one = item(said[opinion.index].text, **({"scope": opinion.scope} if whole else {}))
    where = f" {opinion.scope} {opinion.index}"
    found: dict[str, list[tuple[Item, Event]]] = {}
    if opinion.score is not None:
        criterion = "conversation" if whole else "overall"
        event = rating_event(one.id, rater, {criterion: opinion.score}, **fields)
        found["score" + where] = [(one, event)]
    if opinion.chosen is not None:
        if len(said) < 2 or not 0 <= opinion.chosen < len(said):
            raise UserError(f"is {opinion.chosen}, of {len(said)} completions", where="chosen")
        pairs = list[tuple[Item, Event]]()
        for place, against in enumerate(said):
            if against.text != (best := said[opinion.chosen].text):
                first = opinion.chosen < place
                pair = item(best, against.text) if first else item(against.text, best)
                pairs.append((pair, comparison_event(pair.id, rater, 0 if first else 1, **fields)))
        if not pairs:
            raise UserError("all say the same", where="chosen")
        found["choice"] = pairs
    if other is not None:
        found[f"over {' '.join(sorted((response.id, other.id)))}"] = [_preferred(response, other, opinion)]
    if opinion.correction is not None:
        event = demonstration_event(one.id, rater, opinion.correction, **fields)
        found["correction" + where] = [(one, _told(event, opinion, chosen=0))]
    if opinion.comment is not None and not found:
        found["comment" + where] = [(one, skip_event(one.id, rater, **fields))]
    told = {part: [(i, _told(event, opinion)) for i, event in pairs] for part, pairs in found.items()}
    if opinion.comment is not None:
        pairs = next(iter(told.values()))
        pairs[0] = (pairs[0][0], replace(pairs[0][1], comment=opinion.comment))
    return told


def _preferred(response: Response, other: Response, opinion: Opinion) -> tuple[Item, Event]:
    """That this response is better than another to the same prompt; the pair is the same whichever is."""
    if response.completions is None or other.completions is None or response.prompt is None:
        raise Missing("response", other.id)
    if other.id == response.id or other.prompt != response.prompt:
        raise UserError("is no other answer to the same prompt", where="over")
    if other.requester != response.requester:
        raise UserError("was given to somebody else", where="over")
    ours, theirs = response.completions[opinion.index].text, other.completions[0].text
    if ours == theirs:
        raise UserError("says the same", where="over")
    both = sorted([(response.id, response.version, ours), (other.id, other.version, theirs)])
    meta = {SERVED: [one[0] for one in both], "models": [one[1] for one in both]}
    pair = Item(response.prompt, tuple(one[2] for one in both), None, meta, author=response.requester)
    choice: Choice = 0 if both[0][0] == response.id else 1
    return pair, comparison_event(pair.id, response.requester, choice, id="-")


def _told(event: Event, opinion: Opinion, **more: Any) -> Event:
    """With how it was said in its payload."""
    return replace(event, payload=dict(event.payload) | more | ({"how": opinion.how} if opinion.how else {}))


def _token(key: bytes, id: str) -> str:
    return f"{id}.{hmac.new(key, f'feedback {id}'.encode(), hashlib.sha256).hexdigest()[:40]}"


def _of_token(connection: Connection, token: str) -> Response:
    id = token.rpartition(".")[0]
    response = _get(connection, id, fix="use the token that came with the answer")
    key = privacy.known_key(connection, response.requester)
    if key is None or not hmac.compare_digest(_token(key, id).encode(), token.encode()):
        raise Missing("response", id, fix="use the token that came with the answer")
    return response


def _get(connection: Connection, id: str, fix: str = "") -> Response:
    row = connection.execute(sa.select(schema.responses).where(schema.responses.c.id == id)).first()
    if row is None:
        raise Missing("response", id, fix=fix)
    said = None
    if row.completions is not None:
        said = tuple(
            Said(
                one["text"],
                one["finish"],
                None if one["logprobs"] is None else tuple(one["logprobs"]),
                None if one["ids"] is None else tuple(one["ids"]),
                tuple(one["calls"]),
            )
            for one in row.completions
        )
    return Response(
        id=row.id,
        created_at=row.created_at,
        requester=row.requester,
        conversation=row.conversation,
        name=row.name,
        version=row.version,
        propensity=row.propensity,
        prompt=None if row.prompt is None else prompt_from_json(row.prompt),
        completions=said,
        sampling=row.sampling,
        usage=row.usage,
        masked=row.masked,
        regenerates=row.regenerates,
    )


def _row(response: Response) -> dict[str, Any]:
    row: dict[str, Any] = {
        name: getattr(response, name)
        for name in (
            "id", "created_at", "requester", "conversation", "name", "version", "propensity", "regenerates",
        )
    }  # fmt: skip
    row |= {name: dict(getattr(response, name)) for name in ("sampling", "usage", "masked")}
    row["prompt"] = None if response.prompt is None else prompt_to_json(response.prompt)
    row["completions"] = [
        {
            "text": one.text,
            "finish": one.finish,
            "logprobs": one.logprobs,
            "ids": one.ids,
            "calls": [dict(call) for call in one.calls],
        }
        for one in response.completions or ()
    ]
    return row
