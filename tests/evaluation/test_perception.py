"""What the starting model sees in a completion, beside transformers' own numbers, and the bands by hand."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from plaudit.evaluation.perception import Band, Views, look_at
from plaudit.models.load import load_model
from tiny_models import random_ids, transformers_model

PROMPTS = random_ids(31, 3, 2, 9)
COMPLETIONS = [random_ids(40 + p, 2 + p % 2, 1, 7) for p in range(3)]


@cache
def theirs() -> Any:
    return transformers_model(load_model("tiny", torch.float64).directory, torch.float64)


def mean_logprob(prompt: list[int], completion: list[int]) -> float:
    """By transformers, one text at a time."""
    with torch.no_grad():
        logits = theirs()(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    chosen = torch.log_softmax(logits, -1)[torch.arange(len(completion)), torch.tensor(completion)]
    return float(chosen.mean())


@pytest.mark.parametrize("budget", [1, 4096])
def test_surprise_and_gain_are_those_of_transformers(budget: int) -> None:
    trunk = load_model("tiny", torch.float64).trunk
    views = look_at(trunk, PROMPTS, COMPLETIONS, others=2, budget=budget)
    place = 0
    for p, group in enumerate(COMPLETIONS):
        for completion in group:
            own = mean_logprob(PROMPTS[p], completion)
            foreign = [mean_logprob(PROMPTS[q], completion) for q in range(3) if q != p]
            assert views.surprise[place] == pytest.approx(-own, abs=1e-9)
            assert views.gain[place] == pytest.approx(own - sum(foreign) / 2, abs=1e-9)
            assert views.tokens[place] == len(completion)
            place += 1
    assert len(views.gain) == place
    assert views.gain.std() > 1e-3, "a model that looks at its prompt"


@pytest.mark.parametrize("seed", range(6))
def test_a_foreign_prompt_is_never_the_own(seed: int) -> None:
    """With one other prompt the gain is over one of the two that are not its own."""
    trunk = load_model("tiny", torch.float64).trunk
    views = look_at(trunk, PROMPTS, [group[:1] for group in COMPLETIONS], others=1, seed=seed)
    for p, group in enumerate(COMPLETIONS):
        own = mean_logprob(PROMPTS[p], group[0])
        possible = [own - mean_logprob(PROMPTS[q], group[0]) for q in range(3) if q != p]
        assert min(abs(views.gain[p] - gain) for gain in possible) < 1e-9


def test_one_prompt_has_no_other() -> None:
    with pytest.raises(ValueError, match="at least two prompts"):
        look_at(load_model("tiny", torch.float64).trunk, PROMPTS[:1], COMPLETIONS[:1])


def test_the_band_by_hand() -> None:
    # surprise 1 to 5: quartiles 2 and 4; gain -1, 0, 1, 2, 3: median 1, deviation sqrt(2)
    surprise, gain = np.arange(1.0, 6.0), np.arange(-1.0, 4.0)
    band = Band.of(Views(surprise, gain, np.ones(5)))
    assert (band.low, band.high, band.width) == (2.0, 4.0, 2.0)
    assert [band.gain_centre, band.gain_width] == pytest.approx([1.0, math.sqrt(2)])
    seen = Views(np.array([0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0]), np.zeros(7), np.ones(7))
    half, one, two = math.exp(-0.125), math.exp(-0.5), math.exp(-2.0)
    assert seen.fluency(band).tolist() == pytest.approx([one, half, 1, 1, 1, one, two])
    # A deviation above the middle: 1 / (1 + e^-2).
    seen = Views(np.zeros(3), np.array([1.0, 1.0 + math.sqrt(2), 1.0 - math.sqrt(2)]), np.ones(3))
    assert seen.relevance(band).tolist() == pytest.approx([0.5, 0.8807970779778823, 0.11920292202211755])


def test_samples_that_are_all_alike_have_a_band() -> None:
    views = Views(np.full(4, 2.0), np.full(4, 0.3), np.ones(4))
    band = Band.of(views)
    assert views.fluency(band).tolist() == [1.0] * 4
    assert views.relevance(band).tolist() == [0.5] * 4
