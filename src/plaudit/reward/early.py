"""Scoring as samples finish: a judge behind an API is asked about those that are there while others are still drawn."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

from plaudit.reward.combine import Ensemble, Transformed, WeightedSum
from plaudit.reward.endpoint import Endpoint
from plaudit.reward.judge import Judge, Shares
from plaudit.tensors import Sample, Scorer


def remote_judges(scorer: Scorer | None) -> list[Judge]:
    """The judges behind an API that a scorer is made of."""
    if isinstance(scorer, Judge):
        return [scorer] if isinstance(scorer.asked, Endpoint) else []
    parts: tuple[Scorer, ...] = ()
    if isinstance(scorer, Ensemble):
        parts = scorer.members
    elif isinstance(scorer, WeightedSum):
        parts = tuple(term for _, term in scorer.terms)
    elif isinstance(scorer, Transformed):
        parts = (scorer.scorer,)
    return [judge for part in parts for judge in remote_judges(part)]


@contextlib.contextmanager
def early(scorer: Scorer | None) -> Iterator[Callable[[Sample], Sample]]:
    """Gives a function that hears of each sample as it finishes, and gives it back.

    A judge behind an API is asked at once, and its replies are kept (see `Endpoint`): whoever scores the whole batch
    afterwards finds them there, and gets what it would have got without. Other scorers are not asked: they work on
    this machine, which is busy drawing. Leaving waits for the replies; UserError as soon as a question
    has one.
    """
    judges = remote_judges(scorer)
    if not judges:
        yield lambda sample: sample
        return
    pool = ThreadPoolExecutor(sum(judge.config.concurrency for judge in judges))
    asked: list[Future[Shares]] = []
    coming = [judge.as_they_come() for judge in judges]

    def hear(sample: Sample) -> Sample:
        asked.extend(pool.submit(question) for take in coming for question in take(sample))
        return sample

    try:
        yield hear
        done, _ = wait(asked, return_when=FIRST_EXCEPTION)
        for question in done:
            question.result()
    except BaseException:
        for judge in judges:
            assert isinstance(judge.asked, Endpoint)
            judge.asked.stopped.set()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for judge in judges:
            assert isinstance(judge.asked, Endpoint)
            judge.asked.stopped.clear()
