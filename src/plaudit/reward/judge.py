"""Rewards from a judge model: ratings of single answers, or comparisons asked in both orders."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field

from plaudit.config import Config
from plaudit.data.tokenizer import Tokenizer
from plaudit.models.load import Model, cache_directory, find_model, load_model
from plaudit.reward.endpoint import Endpoint, checked_url, fresh_client, secret
from plaudit.reward.local_judge import LocalJudge
from plaudit.reward.rubric import Language, Protocol, Question, as_text, pair_question, rating_question
from plaudit.reward.scores import Scores
from plaudit.reward.verdict import read_verdict
from plaudit.tensors import Sample
from plaudit.types import Choice, UserError


class JudgeConfig(Config):
    """Settings of a judge; each is described in docs/configs.md."""

    model: str
    base_url: str | None = None
    api_key_env: str | None = None
    name: str | None = None
    protocol: Protocol = "rating"
    language: Language = "en"
    rubric: str | None = None
    seed: int = 0
    temperature: float | None = Field(default=0.0, ge=0)
    max_tokens: int | None = Field(default=512, ge=1)
    request: dict[str, bool | int | float | str] = Field(default={})
    timeout: float = Field(default=60.0, gt=0)
    retries: int = Field(default=5, ge=0)
    concurrency: int = Field(default=4, ge=1, le=256)
    attempts: int = Field(default=3, ge=1)
    no_verdict: Literal["stop", "count"] = "stop"
    no_verdict_score: float = Field(default=0.0, ge=0, le=1)
    cache: str | None = None


class Shares(NamedTuple):
    """A verdict's shares among those allowed (one of them 1 where the judge wrote its verdict), and what it cost:
    questions sent, replies that stood in the cache, replies that held no verdict."""

    shares: dict[str, float] | None
    sent: int = 0
    kept: int = 0
    refused: int = 0


class Rated(NamedTuple):
    """rating: 0 to 1, None without a verdict."""

    rating: float | None
    cost: tuple[Shares, ...]


class Compared(NamedTuple):
    """choice: 0, 1 or "tie", None without a verdict in one of the orders.

    places: the better by place in each order, 0 (stood first), 1 or "tie". Two orders that disagree are a tie.
    """

    choice: Choice | None
    places: tuple[Choice | None, Choice | None]
    cost: tuple[Shares, ...]

    @property
    def disagreed(self) -> bool:
        return self.choice == "tie" and self.places != ("tie", "tie")


@dataclass(frozen=True)
class Judge:
    """A Scorer and a rater. Pairwise, a sample's score is the share of the other samples of its prompt that it beats,
    ties half."""

    config: JudgeConfig
    asked: Endpoint | LocalJudge
    tokenizer: Tokenizer | None = None
    where: str = "judge"

    @property
    def name(self) -> str:
        """What its records call it as a rater."""
        return f"judge:{self.config.name or self.config.model}"

    def score(self, samples: Sequence[Sample]) -> list[float]:
        return self.detail(samples).scores

    def detail(self, samples: Sequence[Sample]) -> Scores:
        """Scores 0 to 1, and how many questions had no verdict or two orders that disagreed. Equal texts are asked
        about once. UserError where a verdict is missing and `no_verdict` is "stop"."""
        items = [(self.request_of(sample), sample.text) for sample in samples]
        if self.config.protocol == "rating":
            distinct = list(dict.fromkeys(items))
            rated = dict(zip(distinct, self.rate(distinct), strict=True))
            missing = sum(found.rating is None for found in rated.values())
            fallback = self.config.no_verdict_score
            scores = [fallback if (r := rated[item].rating) is None else r for item in items]
            return Scores(scores, figures={"no_verdict": float(missing)})
        return self._win_rates(items)

    def as_they_come(self) -> Callable[[Sample], list[Callable[[], Shares]]]:
        """A function that hears of one sample after another and gives the questions that `detail` will ask of it, alone
        or beside those heard of before: each a call that asks, and leaves the reply where it is kept."""
        heard: dict[str, list[str]] = {}

        def hear(sample: Sample) -> list[Callable[[], Shares]]:
            request, text = self.request_of(sample), sample.text
            known = heard.setdefault(request, [])
            if text in known:
                return []
            others = list(known)
            known.append(text)
            if self.config.protocol == "rating":
                asks = [functools.partial(self._rating, request, text)]
            else:
                both = ((text, other) for other in others), ((other, text) for other in others)
                asks = [functools.partial(self._pair, request, *pair) for pair in chain(*both)]
            return [functools.partial(self._shares, ask) for ask in asks]

        return hear

    def _win_rates(self, items: Sequence[tuple[str, str]]) -> Scores:
        of_prompt: dict[str, list[str]] = {}
        for request, text in items:
            of_prompt.setdefault(request, []).append(text)
        if any(len(texts) < 2 for texts in of_prompt.values()):
            raise UserError(
                "compares the samples of a prompt, and one has a single sample",
                where=self.where,
                fix="set samples_per_prompt (or n) to 2 or more, or protocol: rating",
            )
        pairs = list(
            dict.fromkeys(
                (request, min(a, b), max(a, b))
                for request, texts in of_prompt.items()
                for i, a in enumerate(texts)
                for b in texts[i + 1 :]
                if a != b
            )
        )
        found = dict(zip(pairs, self.compare(pairs), strict=True))

        def won(request: str, a: str, b: str) -> float:
            if a == b:
                return 0.5
            choice = found[request, min(a, b), max(a, b)].choice
            return 0.5 if choice in ("tie", None) else float((choice == 0) == (a < b))

        scores = []
        for request, text in items:
            # Itself is among the texts, and a tie with itself is taken off again.
            wins = sum(won(request, text, other) for other in of_prompt[request]) - 0.5
            scores.append(wins / (len(of_prompt[request]) - 1))
        missing = sum(one.choice is None for one in found.values())
        apart = sum(one.disagreed for one in found.values())
        return Scores(scores, figures={"no_verdict": float(missing), "disagreed": float(apart)})

    def request_of(self, sample: Sample) -> str:
        """The prompt as text: as it was asked where that is known, else read back from its ids."""
        if sample.asked is not None:
            return as_text(sample.asked)
        if self.tokenizer is None or sample.tokenizer != self.tokenizer.fingerprint:
            raise UserError("cannot read the prompts of these samples", where=self.where)
        return self.tokenizer.decode(sample.prompt_ids)

    def rate(self, items: Sequence[tuple[str, str]]) -> Iterator[Rated]:
        """The rating of each (request, answer), in order."""

        def one(item: tuple[str, str]) -> Rated:
            found = self._shares(lambda attempt: self._rating(*item, attempt))
            if found.shares is None:
                return Rated(None, (found,))
            return Rated(sum(int(v) * share for v, share in found.shares.items()) / 10, (found,))

        return self._each(one, items)

    def compare(self, pairs: Sequence[tuple[str, str, str]]) -> Iterator[Compared]:
        """The verdict on each (request, a, b), in order, asked as (a, b) and as (b, a)."""

        def one(pair: tuple[str, str, str]) -> Compared:
            request, a, b = pair
            if a == b:
                return Compared("tie", ("tie", "tie"), ())
            here = self._shares(lambda attempt: self._pair(request, a, b, attempt))
            there = self._shares(lambda attempt: self._pair(request, b, a, attempt))
            return settled(_place(here), _place(there), (here, there))

        return self._each(one, pairs)

    def _each(self, one: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        """Results in the items' order, several asked for at a time from a service; the first fault in
        that order, or whoever listens no more, ends it, and what is on its way is asked for no second time."""
        if isinstance(self.asked, LocalJudge):
            yield from map(one, items)
            return
        pool = ThreadPoolExecutor(self.config.concurrency)
        try:
            yield from pool.map(one, items)
        except BaseException:
            self.asked.stopped.set()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            self.asked.stopped.clear()

    def _shares(self, question: Callable[[int], Question]) -> Shares:
        """The verdict on a question, asked again with another key where a reply holds none."""
        if isinstance(self.asked, LocalJudge):
            return Shares(self.asked.shares(question(0)), sent=1)
        kept = 0
        for attempt in range(self.config.attempts):
            put = question(attempt)
            reply = self.asked.reply(put)
            kept += reply.kept
            verdict = read_verdict(reply.text, put.key, put.allowed, whole=reply.whole)
            if verdict is not None:
                return Shares({verdict: 1.0}, attempt + 1 - kept, kept, attempt)
        tries = self.config.attempts
        if self.config.no_verdict == "stop":
            raise UserError(
                f"gave no verdict in the form asked for, {tries} times; its last words: {reply.text[-80:]!r}",
                where=self.where,
                fix="take a stronger judge, raise attempts or max_tokens, or set no_verdict: count",
            )
        return Shares(None, tries - kept, kept, tries)

    def _rating(self, request: str, answer: str, attempt: int) -> Question:
        c = self.config
        return rating_question(
            request, answer, rubric=c.rubric or "", language=c.language, seed=c.seed, attempt=attempt
        )

    def _pair(self, request: str, first: str, second: str, attempt: int) -> Question:
        c = self.config
        return pair_question(
            request, first, second, rubric=c.rubric or "", language=c.language, seed=c.seed, attempt=attempt
        )


def settled(here: Choice | None, there: Choice | None, cost: tuple[Shares, ...] = ()) -> Compared:
    """One verdict of two: by place as (a, b) and as (b, a). Only an answer that wins in both places has won."""
    places = (here, there)
    if here is None or there is None:
        return Compared(None, places, cost)
    answer: Choice = 1 - there if isinstance(there, int) else there  # type: ignore[assignment]
    return Compared(here if here == answer else "tie", places, cost)


def _place(found: Shares) -> Choice | None:
    """The likeliest verdict as a place; where two are likeliest, neither."""
    if found.shares is None:
        return None
    best = max(found.shares.values())
    likeliest = [verdict for verdict, share in found.shares.items() if share == best]
    places: dict[str, Choice] = {"A": 0, "B": 1, "C": "tie"}
    return places[likeliest[0]] if len(likeliest) == 1 else "tie"


def open_judge(
    config: JudgeConfig,
    where: str,
    model: Model | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Judge:
    """The judge, ready to be asked. model: one in memory, whose trunk a local judge of the same directory shares, and
    whose tokenizer reads prompts back. UserError for an address or a key that cannot be used."""
    tokenizer = None if model is None else model.tokenizer
    if config.base_url is None:
        if model is not None and find_model(config.model) == model.directory:
            return Judge(config, LocalJudge(model), tokenizer, where)
        dtype, device = (dtype, device) if model is None else (model.trunk.dtype, model.trunk.device)
        return Judge(config, LocalJudge(load_model(config.model, dtype, device)), tokenizer, where)
    try:
        base_url = checked_url(config.base_url)
        secret(config.api_key_env)
    except UserError as error:
        raise UserError(error.what, where=where, fix=error.fix) from None
    given = {"temperature": config.temperature, "max_tokens": config.max_tokens}
    body = {key: value for key, value in given.items() if value is not None} | dict(config.request)
    cache = cache_directory() / "replies" if config.cache is None else Path(config.cache)
    endpoint = Endpoint(
        base_url=base_url,
        model=config.model,
        api_key_env=config.api_key_env,
        body=body,
        timeout=config.timeout,
        retries=config.retries,
        cache=cache,
        client=fresh_client(base_url),
    )
    return Judge(config, endpoint, tokenizer, where)
