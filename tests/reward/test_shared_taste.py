"""Raters of a taste that some share, in ratings: told from the careless, kept in the reward, and shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from plaudit.algorithms.rater_loss import rating_logprobs
from plaudit.data.judged import Judged, Pair, Rated
from plaudit.randomness import rng
from plaudit.reward.judgements import Judgements, Reading, begin, starts_of
from plaudit.reward.measure_raters import (
    Hidden,
    Measured,
    expected_levels,
    measure_raters,
    settle,
    settle_with_tastes,
    shared_tastes,
    unit_logprobs,
)
from plaudit.reward.rater_figures import TASTE_NATS, rater_figures
from plaudit.reward.rater_tables import Table, tables
from plaudit.reward.raters import RaterEffects

ORDINAL = Reading(rating="ordinal", aware=True)
CROWD = ("usual 0", "usual 1", "usual 2")
MINORITY = ("other 0", "other 1")


@cache
def world(
    names: Sequence[str], prompts: int = 120, answers: int = 1, seed: int = 0
) -> tuple[list[Judged], torch.Tensor]:
    """Five levels of every answer by each rater: of the crowd's quality, or of another, independent ("other"); any
    level ("careless"), or any half of the time ("half"). The left-out scores see some of the crowd's."""
    draw = rng("shared taste", *names, prompts, answers, seed)
    groups, scores = [], []
    for prompt in range(prompts):
        ratings = []
        for answer in range(answers):
            crowd, other = draw.normal(0, 1.5, 2)
            for name in names:
                felt = (other if name.startswith("other") else crowd) + draw.logistic()
                level = sum(felt > cut for cut in (-2.0, -0.7, 0.7, 2.0))
                if draw.random() < {"careless": 1.0, "half": 0.5}.get(name, 0.0):
                    level = draw.integers(5)
                ratings.append(Rated(answer, level / 4, {}, name))
            scores.append(0.4 * crowd + draw.normal(0, 0.4))
        texts = [f"a{i}" for i in range(answers)]
        groups.append(Judged(f"p{prompt}", [prompt], [[0]] * answers, texts, ratings=ratings))
    return groups, torch.tensor(scores, dtype=torch.float64)


def begun(groups: list[Judged], left: torch.Tensor) -> tuple[Reading, RaterEffects, dict[str, Table]]:
    reading, effects = begin(groups, ORDINAL)
    return reading, effects, tables(groups, left, left[:, None], reading, effects, {})


def careless(effects: RaterEffects) -> dict[str, float]:
    """In ratings."""
    found = effects.of(torch.arange(len(effects.names)), rating=True).careless
    return dict(zip(effects.names, found.tolist(), strict=True))


def sharing(effects: RaterEffects) -> list[tuple[str, str]]:
    where = torch.nonzero(effects.shared.triu()).tolist()
    return [(effects.names[r], effects.names[s]) for r, s in where]


def test_two_of_another_taste_are_not_careless_and_keep_their_weight_and_the_careless_is_found() -> None:
    groups, left = world((*CROWD, *MINORITY, "careless"))
    reading, effects, found = begun(groups, left)
    settle(found, reading, effects)
    assert min(careless(effects)[name] for name in MINORITY) > 0.5  # else there is nothing to tell apart
    hidden = settle_with_tastes(found, reading, effects)
    assert sharing(effects) == [MINORITY]
    told = careless(effects)
    assert [told[name] for name in MINORITY] == [0.0, 0.0]
    assert told["careless"] > 0.7
    assert max(told[name] for name in CROWD) < 0.2
    nobody = torch.zeros(6, 6, dtype=torch.bool)
    figures = rater_figures(groups, Measured(found, hidden, nobody), reading, effects)
    for name, fellow in zip(MINORITY, MINORITY[::-1], strict=True):
        assert figures[name]["label"] == "shared taste"
        assert figures[name]["shares_taste"] == [fellow]
        assert (figures[name]["careless"], figures[name]["careless_90"]) == (0.0, [0.0, 0.0])
        assert figures[name]["scale"] == 1.0
        assert figures[name]["own_taste"] > TASTE_NATS
    assert figures["careless"]["label"] == "careless"
    assert figures["careless"]["shares_taste"] == []
    assert {figures[name]["label"] for name in CROWD} == {"like the crowd"}


def test_who_is_careless_half_of_the_time_agrees_with_all_alike_and_is_found() -> None:
    names = (*CROWD, "usual 3", "usual 4", "half")
    reading, effects, found = begun(*world(names))
    settle_with_tastes(found, reading, effects)
    assert sharing(effects) == []
    assert 0.3 < careless(effects)["half"] < 0.75
    assert max(value for name, value in careless(effects).items() if name != "half") < 0.25


def test_beside_a_shared_taste_too_who_is_careless_half_of_the_time_is_found() -> None:
    reading, effects, found = begun(*world((*CROWD, "usual 3", *MINORITY, "half")))
    settle_with_tastes(found, reading, effects)
    assert sharing(effects) == [MINORITY]
    told = careless(effects)
    assert told["half"] > 0.2 > 2 * max(told[name] for name in (*CROWD, "usual 3"))


def test_of_one_crowd_nobody_shares_a_taste_apart() -> None:
    """One false alarm in a hundred data sets is allowed; in eight there is none. Three raters are the harder case: one
    rating tells little of an item, so that the other two go together beyond it."""
    for seed in range(8):
        names = CROWD if seed % 2 else (*CROWD, "usual 3", "usual 4")
        reading, effects, found = begun(*world(names, seed=seed))
        hidden = settle(found, reading, effects)
        assert not bool(shared_tastes(found["rating"], hidden, reading, effects).any()), seed


def test_a_taste_is_shared_from_thirty_prompts_on_however_many_answers_they_have() -> None:
    """Of two who rate the same, who are copies or of one taste: not to be told apart, and careless neither way."""
    for prompts, answers in ((29, 4), (30, 1)):
        groups, left = world((*CROWD, "other 0"), prompts, answers, seed=3)
        copied = [
            replace(
                g, ratings=g.ratings + [r._replace(rater="copy") for r in g.ratings if r.rater == "other 0"]
            )
            for g in groups
        ]
        reading, effects, found = begun(copied, left)
        settle_with_tastes(found, reading, effects)
        assert sharing(effects) == ([("copy", "other 0")] if prompts == 30 else [])


def test_regression_takes_no_rating_for_evidence_and_looks_for_no_taste() -> None:
    groups, left = world((*CROWD, *MINORITY))
    reading, effects = begin(groups, Reading(aware=True))
    found = tables(groups, left, left[:, None], reading, effects, {})
    settle_with_tastes(found, reading, effects)
    assert sharing(effects) == []


def test_the_reward_hears_a_shared_taste_in_full_in_ratings_and_in_comparisons_as_before() -> None:
    group = Judged("p", [1], [[0], [1]], ["x", "y"], [Pair(0, 1, 1.0, None, "b")], ratings=[])
    group.ratings.extend([Rated(0, 1.0, {}, "b"), Rated(1, 0.0, {}, "b"), Rated(1, 0.5, {}, "a")])
    reading, effects = begin([group], ORDINAL)
    with torch.no_grad():
        effects.reliability.copy_(torch.tensor([0.0, -2.9]))
        effects.log_scale.copy_(torch.tensor([0.0, -0.5]))
    plain = Reading(rating="ordinal", levels=reading.levels)
    rated = Judged("p", [1], [[0], [1]], ["x", "y"], ratings=group.ratings[:2])
    compared = Judged("p", [1], [[0], [1]], ["x", "y"], group.pairs)
    scores = torch.tensor([0.7, -0.4], dtype=torch.float64)

    def loss(of: Judged, how: Reading) -> float:
        judgements = Judgements.of([of], starts_of([of]), how, effects)
        with torch.no_grad():
            return float(judgements.loss(scores, None, how, effects, judgements.totals()).loss)

    before = loss(compared, reading)
    assert loss(rated, reading) > loss(rated, plain) + 0.1
    effects.shared[0, 1] = effects.shared[1, 0] = True
    assert loss(rated, reading) == pytest.approx(loss(rated, plain), rel=1e-12)
    assert loss(compared, reading) == before


def test_the_scales_of_those_who_share_no_taste_sum_to_zero() -> None:
    effects = RaterEffects(["a", "b", "c", "d"])
    with torch.no_grad():
        effects.log_scale.copy_(torch.tensor([1.0, 0.4, -3.0, -2.0]))
    effects.shared[2, 3] = effects.shared[3, 2] = True
    scales = effects.of(torch.arange(4), rating=True).scale.detach()
    assert scales.log().tolist() == pytest.approx([0.3, -0.3, 0.0, 0.0])


def one_rating(shared: bool) -> tuple[Table, RaterEffects]:
    """Of the middle of three levels; by "a", who shares a taste with "b" or does not."""
    group = Judged("p", [1], [[0]], ["x"], ratings=[Rated(0, 0.5, {}, "a")])
    effects = RaterEffects(["a", "b"], ["a", "b"], levels=3)
    effects.shared[0, 1] = effects.shared[1, 0] = shared
    reading = Reading(rating="ordinal", aware=True, levels=(0.0, 0.5, 1.0))
    left = torch.zeros(1, dtype=torch.float64)
    return tables([group], left, left[:, None], reading, effects, {})["rating"], effects


def test_a_shared_taste_is_integrated_out() -> None:
    """Beside plain summation over z: MacKay's approximation is good to 0.02 of a probability."""
    table, effects = one_rating(shared=True)
    hidden = Hidden(["rating"], 2)
    nodes = torch.from_numpy(np.polynomial.hermite_e.hermegauss(15)[0])
    z = torch.linspace(-8, 8, 2001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / torch.exp(-z.square() / 2).sum()
    with torch.no_grad():
        hidden.taste.fill_(float(np.log(2.0)))
        reading = Reading(rating="ordinal", aware=True)
        found = unit_logprobs("rating", table, hidden, reading, effects)[0].exp()
        none = torch.zeros(15, 2001, dtype=torch.float64)
        scores = nodes[:, None] + 2.0 * z
        exact = rating_logprobs(scores, none + 1, effects.cuts(), none, effects.guess).exp() @ density
    assert float((found - exact).abs().max()) < 0.02
    assert float(exact[7]) < 0.4  # without a taste it is 0.46


def test_the_level_that_is_expected_is_the_mean_of_all_levels() -> None:
    table, effects = one_rating(shared=False)
    hidden = Hidden(["rating"], 2)
    with torch.no_grad():
        effects.reliability.fill_(-2.0)
        effects.severity.copy_(torch.tensor([0.8, -0.8]))
        effects.guess.copy_(torch.tensor([0.7, 0.2, 0.1]))
        wanted = torch.zeros(15, dtype=torch.float64)
        for level in range(3):
            table.value.fill_(level)
            wanted += level * unit_logprobs("rating", table, hidden, ORDINAL, effects)[0].exp()
        assert torch.allclose(expected_levels(table, hidden, effects)[0], wanted, rtol=0, atol=1e-12)


def test_the_whole_measurement_from_states_finds_a_shared_taste() -> None:
    """And what was found in a turn before is looked for anew."""
    groups, left = world((*CROWD, *MINORITY), 60)
    draw = rng("states")
    states = [torch.from_numpy(np.array([[float(x), *draw.normal(size=2)]])) for x in left]
    reading, effects = begin(groups, ORDINAL)
    effects.shared[:] = True
    seen = measure_raters(groups, states, reading=reading, effects=effects, seed=0)
    assert sharing(effects) == [MINORITY]
    assert max(careless(effects).values()) < 0.3
    assert seen.tables["rating"].prompt.tolist() == list(range(60))
