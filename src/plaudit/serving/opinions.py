"""The routes that take feedback: /v1/feedback, by the token that came with an answer, which is all that it needs."""

from __future__ import annotations

import time
from typing import Annotated, Literal, Self

from fastapi import APIRouter, HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator

from plaudit.feedback.events import Event
from plaudit.feedback.served import STARS, Behaviour, Opinion, Part
from plaudit.serving.masking import Masker
from plaudit.serving.server import Server

router = APIRouter(prefix="/v1/feedback")
Token = Annotated[str, Field(min_length=1, max_length=200)]
Words = Annotated[str, Field(min_length=1, max_length=20_000)]
LONGEST_DWELL = 86_400.0


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class Feedback(Body):
    """What somebody makes of an answer; at least one of these beside the token.

    thumbs, or stars (1 to 5); text: in words; correction: what it should have said; chosen: the best of n choices;
    over: the token of another answer to the same prompt that this one is better than. index: which choice thumbs,
    stars and correction are of. scope: the answer, or the whole conversation up to it.
    """

    token: Token
    thumbs: Literal["up", "down"] | None = None
    stars: Annotated[int, Field(ge=1, le=STARS)] | None = None
    text: Words | None = None
    correction: Words | None = None
    chosen: Annotated[int, Field(ge=0, lt=16)] | None = None
    over: Token | None = None
    index: Annotated[int, Field(ge=0, lt=16)] = 0
    scope: Literal["response", "conversation"] = "response"

    @model_validator(mode="after")
    def _one_score(self) -> Self:
        if self.thumbs is not None and self.stars is not None:
            raise ValueError("thumbs and stars say the same; send one of them")
        said = (self.thumbs, self.stars, self.text, self.correction, self.chosen, self.over)
        if all(one is None for one in said):
            raise ValueError("says nothing: send thumbs, stars, text, correction, chosen or over")
        if self.scope == "conversation" and any(
            one is not None for one in (self.correction, self.chosen, self.over)
        ):
            raise ValueError("of a whole conversation there are thumbs, stars and text")
        return self

    def opinion(self, masker: Masker) -> Opinion:
        """Without personal data in its words."""
        score, how = None, ""
        if self.thumbs is not None:
            score, how = float(self.thumbs == "up"), "thumbs"
        elif self.stars is not None:
            score, how = (self.stars - 1) / (STARS - 1), "stars"
        return Opinion(
            score=score,
            chosen=self.chosen,
            over=self.over,
            correction=None if self.correction is None else masker.mask(self.correction)[0],
            comment=None if self.text is None else masker.mask(self.text)[0],
            index=self.index,
            scope=self.scope,
            how=how,
        )


class Signal(Body):
    """What somebody did with an answer. value: seconds of dwelling; 1 otherwise."""

    token: Token
    kind: Behaviour
    value: Annotated[float, Field(gt=0, le=LONGEST_DWELL)] = 1.0


class TakenBack(Body):
    """what: one part of what was said of the answer; left out: all of it."""

    token: Token
    what: Part | None = None


class Kept(Body):
    """events: ids in the log of what stands now for this answer."""

    events: tuple[str, ...]


class Retracted(Body):
    judgements: int


@router.post("")
async def feedback(request: Request, body: Feedback) -> Kept:
    """Takes an opinion, once: the same again changes nothing, another takes its place."""
    server = _admitted(request, body.token)

    def judge() -> list[Event]:
        return server.served.judge(body.token, body.opinion(server.masker))

    events = await server.store_do(judge)
    for event in events:
        server.figures.feedback.labels(event.kind).inc()
    return Kept(events=tuple(event.id for event in events))


@router.post("/signals", status_code=204)
async def signal(request: Request, body: Signal) -> None:
    """Notes what somebody did. It trains nothing before it is known what it says."""
    server = _admitted(request, body.token)
    await server.store_do(server.served.notice, body.token, body.kind, body.value, time.time())
    server.figures.feedback.labels(body.kind).inc()


@router.post("/retract")
async def retract(request: Request, body: TakenBack) -> Retracted:
    """Takes back what was said of an answer."""
    server = _admitted(request, body.token)
    return Retracted(judgements=await server.store_do(server.served.take_back, body.token, body.what))


def _admitted(request: Request, token: str) -> Server:
    """HTTPException 429 where feedback on one answer, or from one address, comes in too fast."""
    server: Server = request.app.state.server
    of_answers, of_addresses = request.app.state.opinions
    address = request.client.host if request.client else ""
    now = time.monotonic()
    for limit, key in ((of_answers, token.rpartition(".")[0]), (of_addresses, address)):
        if (wait := limit.take(key, now)) > 0:
            raise HTTPException(
                429, "too much feedback at once; wait a little", {"Retry-After": str(round(wait + 1))}
            )
    return server
