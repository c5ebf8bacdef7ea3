"""Raters of known habits, measured: who is careless, inverted, severe, of a taste of their own, or a copy."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from plaudit.data.judged import Judged, Pair, Ranked, Rated
from plaudit.randomness import rng
from plaudit.reward.judgements import Reading, begin
from plaudit.reward.measure_raters import (
    Hidden,
    Measured,
    copied_shares,
    first_chances,
    item_logprobs,
    measure_raters,
    settle,
    unit_logprobs,
)
from plaudit.reward.rater_figures import rater_figures
from plaudit.reward.rater_tables import Table, beside, tables
from plaudit.reward.raters import CROWD_CARELESS, GOLD_RATER, RaterEffects

NAMES = ["careless", "inverted", "left", "sharp", *(f"usual {i}" for i in range(6))]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def answered(name: str, gap: float, first: bool, draw: np.random.Generator) -> float:
    """1 where the rater prefers the first completion; first: it stands first on the screen."""
    odds = {"inverted": -gap, "sharp": 2 * gap, "left": gap + (2.0 if first else -2.0)}.get(name, gap)
    return float(draw.random() < (0.5 if name == "careless" else sigmoid(odds)))


@cache
def world(items: int = 150, names: tuple[str, ...] = tuple(NAMES)) -> tuple[list[Judged], torch.Tensor]:
    """Every rater judges 60 % of the items; the left-out scores see three quarters of the gaps' deviation."""
    draw = rng("measure", items, *names)
    groups, scores = [], []
    for item in range(items):
        seen, unseen = draw.normal(0, 1.8), draw.normal(0, 0.8)
        pairs = []
        for name in names:
            if draw.random() < 0.6:
                first = bool(draw.random() < 0.5)
                answer = answered(name, seen + unseen, first, draw)
                pairs.append(Pair(0, 1, answer, None, name, 0 if first else 1))
        groups.append(Judged(f"p{item}", [item], [[0], [1]], ["a", "b"], pairs))
        scores += [0.3 * seen, 0.0]
    return groups, torch.tensor(scores, dtype=torch.float64)


def measured(
    groups: list[Judged], scores: torch.Tensor, names: list[str], reading: Reading | None = None
) -> tuple[RaterEffects, Measured]:
    reading, effects = reading or Reading(aware=True), RaterEffects(names)
    found = tables(groups, scores, scores[:, None], reading, effects, {})
    hidden = settle(found, reading, effects)
    nobody = torch.zeros(len(names), len(names), dtype=torch.bool)
    return effects, Measured(found, hidden, nobody)


def habits(effects: RaterEffects, name: str) -> tuple[float, float, float, float]:
    with torch.no_grad():
        found = effects.of(torch.tensor([effects.index(name)]))
    return tuple(float(x) for x in found)  # type: ignore[return-value]


def test_known_habits_are_recovered() -> None:
    groups, scores = world()
    effects, seen = measured(groups, scores, NAMES)
    assert habits(effects, "careless")[0] > 0.7
    assert habits(effects, "inverted")[1] < -0.6
    assert habits(effects, "inverted")[0] < 0.4
    assert habits(effects, "left")[2] == pytest.approx(2.0, abs=0.8)
    assert habits(effects, "sharp")[1] == max(habits(effects, name)[1] for name in NAMES)
    for name in NAMES[4:]:
        careless, scale, side, _ = habits(effects, name)
        assert careless < 0.3
        assert 0.6 < scale < 1.5
        assert abs(side) < 0.8
    told = rater_figures(groups, seen, Reading(aware=True), effects)
    assert [told[name]["label"] for name in NAMES] == ["careless", "inverted", *["like the crowd"] * 8]
    low, high = told["careless"]["careless_90"]
    assert low < told["careless"]["careless"] < high
    assert told["careless"]["judgements"] == sum(p.rater == "careless" for g in groups for p in g.pairs)
    assert told["inverted"]["agreement"] < 0.4 < 0.6 < told["usual 1"]["agreement"]
    # The features' gaps deviate by 1.8 log-odds; the crowd's 0.1 of carelessness, where there is none, makes it more.
    assert 1.4 < float(seen.hidden.sharpness["comparison"].detach().exp()) < 3.2


def test_effects_sum_to_zero_over_raters() -> None:
    groups, scores = world()
    effects, _ = measured(groups, scores, NAMES)
    log_scale, severity = (x.detach() for x in effects.centred())
    assert abs(float(log_scale.sum())) < 1e-12
    assert float(severity.abs().sum()) == 0  # nobody rated
    rated = RaterEffects(["a", "b", "c"], ["a", "c"])
    with torch.no_grad():
        rated.severity.copy_(torch.tensor([1.0, 5.0, 4.0]))
    assert rated.centred()[1].tolist() == [-1.5, 0.0, 1.5]


def test_names_and_order_change_nothing() -> None:
    groups, scores = world(60)
    effects, _ = measured(groups, scores, NAMES)
    renamed = [
        Judged(
            g.key,
            g.prompt,
            g.completions,
            g.texts,
            [p._replace(rater=f"x{NAMES.index(p.rater or '')}") for p in g.pairs],
        )
        for g in groups
    ]
    order = [3, 9, 1, 0, 2, 8, 4, 7, 6, 5]
    other, _ = measured(renamed, scores, [f"x{i}" for i in order])
    for name in NAMES:
        assert habits(other, f"x{NAMES.index(name)}") == pytest.approx(habits(effects, name), abs=2e-3)


def test_few_judgements_are_the_crowds_and_a_stranger_is_the_crowd() -> None:
    """Three answers against everybody move a rater less than thirty do; one, on an open question, hardly."""
    groups, scores = world()
    few = [Judged(g.key, g.prompt, g.completions, g.texts, list(g.pairs)) for g in groups]
    open_question = int(scores[:120:2].abs().argmin())
    for number, group in enumerate(few[:60]):
        wrong = 0.0 if scores[2 * number] > 0 else 1.0
        who = (
            "one"
            if number == open_question
            else "three"
            if number % 20 == 0
            else "thirty"
            if number % 2
            else None
        )
        if who:
            group.pairs.append(Pair(0, 1, wrong, None, who))
    effects, seen = measured(few, scores, [*NAMES, "one", "three", "thirty"])
    assert habits(effects, "never seen") == pytest.approx((CROWD_CARELESS, 1.0, 0.0, 0.0))
    trust = {
        name: math.copysign(1 - habits(effects, name)[0], habits(effects, name)[1]) for name in effects.names
    }
    assert trust["thirty"] < -0.6 < trust["three"] < 0.5 < 0.75 < trust["one"] < 1 - CROWD_CARELESS
    told = rater_figures(few, seen, Reading(aware=True), effects)
    wide = {
        name: told[name]["careless_90"][1] - told[name]["careless_90"][0] for name in ("three", "usual 0")
    }
    assert wide["three"] > 2 * wide["usual 0"]
    assert told["three"]["label"] == "unsure"


def test_nothing_known_is_the_prior() -> None:
    """Without a judgement every habit is exactly the crowd's."""
    effects, _ = measured(
        [Judged("p", [1], [[0], [1]], ["a", "b"], [Pair(0, 1, 1.0)])], torch.zeros(2).double(), ["a"]
    )
    assert habits(effects, "a") == pytest.approx((CROWD_CARELESS, 1.0, 0.0, 0.0), abs=1e-6)


def asked_twice(kind: str) -> list[Judged]:
    """Eight usual raters, and one who differs: on half of the items, asked twice."""
    draw = rng("twice", kind)
    groups = []
    for item in range(80):
        gap, own = draw.normal(0, 2.0, 2)
        pairs = [
            Pair(0, 1, float(draw.random() < sigmoid(gap)), None, f"usual {i}")
            for i in range(8)
            if i % 2 == item % 2
        ]
        mine = own if kind == "taste" else 0.0
        for _ in range(2 if item % 2 else 1):
            pairs.append(Pair(0, 1, float(draw.random() < sigmoid(3 * mine)), None, "other"))
        groups.append(Judged(f"p{item}", [item], [[0], [1]], ["a", "b"], pairs))
    return groups


def test_who_repeats_themselves_has_a_taste_and_who_does_not_is_careless() -> None:
    """Both differ from the crowd as much; only the second's judgements lose weight."""
    names = ["other", *(f"usual {i}" for i in range(8))]
    found = {}
    for kind in ("taste", "careless"):
        groups = asked_twice(kind)
        effects, seen = measured(groups, torch.zeros(160).double(), names)
        told = rater_figures(groups, seen, Reading(aware=True), effects)["other"]
        assert told["repeats"] == 40
        found[kind] = told
    assert found["taste"]["label"] == "own taste"
    assert found["taste"]["repeats_alike"] > 32
    assert found["careless"]["label"] == "careless"
    assert found["careless"]["repeats_alike"] < 28
    assert found["taste"]["careless"] < 0.4 < 0.6 < found["careless"]["careless"]


def test_gold_items_leave_no_room_for_taste() -> None:
    """The rater of a taste of their own, asked 20 items whose answer is known, fails as often as not."""
    names = ["other", *(f"usual {i}" for i in range(8))]
    groups = asked_twice("taste")
    before, _ = measured(groups, torch.zeros(160).double(), names)
    draw = rng("gold")
    for item in range(20):
        pairs = [Pair(0, 1, 1.0, None, GOLD_RATER), Pair(1, 0, float(draw.random() < 0.5), None, "other")]
        pairs += [Pair(0, 1, 1.0, None, f"usual {i}") for i in range(8) if draw.random() < 0.3]
        groups.append(Judged(f"gold{item}", [item], [[0], [1]], ["a", "b"], pairs))
    effects, seen = measured(groups, torch.zeros(200).double(), names)
    told = rater_figures(groups, seen, Reading(aware=True), effects)
    assert told["other"]["gold"] == 20
    assert told["other"]["gold_right"] < 15
    assert told["usual 1"]["gold_right"] == told["usual 1"]["gold"] > 0
    assert habits(effects, "other")[0] > habits(before, "other")[0] + 0.2


def test_contradictory_duplicates_are_kept_as_two_answers() -> None:
    effects = RaterEffects(["a", "b"])
    group = Judged("p", [1], [[0], [1]], ["x", "y"], [Pair(0, 1, 1.0, None, "a"), Pair(1, 0, 1.0, None, "a")])
    table = tables([group], torch.zeros(2).double(), torch.zeros(2, 1), Reading(), effects, {})["comparison"]
    assert table.value.tolist() == [1.0, -1.0]
    assert table.unit.tolist() == [0, 0]
    assert table.repeated(2).tolist() == [1, 0]
    hidden = Hidden(["comparison"], 2)
    units = unit_logprobs("comparison", table, hidden, Reading(), effects)
    alone = RaterEffects(["a", "b"])
    one = Judged("p", [1], [[0], [1]], ["x", "y"], [Pair(0, 1, 1.0, None, "a")])
    single = tables([one], torch.zeros(2).double(), torch.zeros(2, 1), Reading(), alone, {})["comparison"]
    sure = unit_logprobs("comparison", single, hidden, Reading(), alone)
    assert bool((units < sure).all())


def test_a_ranking_of_k_is_k_minus_one_comparisons() -> None:
    pairs = [Pair(a, b, 1.0, None, "a", ranking=0) for a, b in ((0, 1), (0, 2), (1, 2))]
    group = Judged("p", [1], [[0]] * 3, list("xyz"), pairs, rankings=[Ranked((0, 1, 2), "a")])
    table = tables([group], torch.zeros(3).double(), torch.zeros(3, 1), Reading(), RaterEffects(["a"]), {})[
        "comparison"
    ]
    assert float(table.weight.sum()) == pytest.approx(2.0)


def test_severity_and_scale_of_those_who_rate() -> None:
    """Known shifts and spreads of five raters of 200 answers, three raters an answer, on five levels."""
    draw = rng("severity")
    names = ["severe", "lenient", "flat", "usual 0", "usual 1"]
    severity = {"severe": 1.2, "lenient": -1.2}
    groups, scores = [], []
    for item in range(200):
        quality = draw.normal(0, 1.5)
        ratings = []
        for name in draw.permutation(names)[:3]:
            felt = (0.4 if name == "flat" else 1.0) * (quality - severity.get(str(name), 0.0))
            level = sum(felt + draw.logistic() > cut for cut in (-2.0, -0.7, 0.7, 2.0))
            ratings.append(Rated(0, level / 4, {}, str(name)))
        groups.append(Judged(f"p{item}", [item], [[0]], ["a"], ratings=ratings))
        scores.append(0.5 * quality + draw.normal(0, 0.3))
    reading, effects = begin(groups, Reading(rating="ordinal", aware=True))
    left = torch.tensor(scores, dtype=torch.float64)
    settle(tables(groups, left, left[:, None], reading, effects, {}), reading, effects)
    found = {name: habits(effects, name) for name in names}
    assert found["severe"][3] == pytest.approx(1.2, abs=0.45)
    assert found["lenient"][3] == pytest.approx(-1.2, abs=0.45)
    assert abs(found["usual 0"][3]) < 0.45
    assert sum(one[3] for one in found.values()) == pytest.approx(0, abs=1e-9)
    assert found["flat"][1] == min(one[1] for one in found.values()) < 0.85
    cuts = effects.cuts().detach()
    assert cuts.diff().min() > 0.4
    assert float(cuts.mean()) == pytest.approx(0, abs=1e-12)


def copying(share: float) -> tuple[list[Judged], torch.Tensor]:
    """Two of six raters, the second of whom says what the first did on this share of items."""
    draw = rng("copying", int(10 * share))
    groups, scores = [], []
    for item in range(120):
        gap = draw.normal(0, 1.5)
        answers = [float(draw.random() < sigmoid(gap)) for _ in range(6)]
        if draw.random() < share:
            answers[1] = answers[0]
        pairs = [Pair(0, 1, answer, None, f"r{i}") for i, answer in enumerate(answers)]
        groups.append(Judged(f"p{item}", [item], [[0], [1]], ["a", "b"], pairs))
        scores += [gap, 0.0]
    return groups, torch.tensor(scores, dtype=torch.float64)


def test_copies_are_found_out_and_the_independent_are_not() -> None:
    names = [f"r{i}" for i in range(6)]
    for share in (1.0, 0.0):
        effects, seen = measured(*copying(share), names)
        found = copied_shares(seen.tables["comparison"], seen.hidden, Reading(aware=True), effects)
        sure = [(i, j) for i in range(6) for j in range(i) if bool(found.sure[i, j])]
        if share:
            assert sure == [(1, 0)]
            assert float(found.share[0, 1]) > 0.5
            assert float(found.share[0, 1]) == float(found.share[1, 0])
            assert float(found.share[2:, 2:].max()) < 0.4
        else:
            assert sure == []


def test_what_is_the_crowds_is_no_own_taste() -> None:
    crowd = np.array([1.0, -2.0, 0.5, 3.0])
    assert beside(-3 * crowd, crowd) == pytest.approx(np.zeros(4))
    rest = beside(np.array([2.0, 1.0, 0.0, 0.0]) + 5 * crowd, crowd)
    assert rest @ crowd == pytest.approx(0)
    assert np.mean(rest**2) == pytest.approx(1)


def test_the_quadrature_is_the_integral() -> None:
    """Of one answer at K m = 0 and tau = 1, by symmetry a half; of two alike, more than a quarter, by numpy's sum."""
    effects = RaterEffects(["a", "b"])
    both = Judged("p", [1], [[0], [1]], ["x", "y"], [Pair(0, 1, 1.0, None, "a"), Pair(0, 1, 1.0, None, "b")])
    table = tables([both], torch.zeros(2).double(), torch.zeros(2, 1), Reading(), effects, {})["comparison"]
    hidden = Hidden(["comparison"], 2)
    units, first = (
        unit_logprobs("comparison", table, hidden, Reading(), effects),
        first_chances(table, hidden, effects),
    )
    d = np.linspace(-12, 12, 200_001)
    density = np.exp(-d * d / 2) / np.sqrt(2 * np.pi)
    chance = CROWD_CARELESS / 2 + (1 - CROWD_CARELESS) / (1 + np.exp(-d))
    wanted = float(np.sum(density * chance**2) * (d[1] - d[0]))
    assert float(torch.logsumexp(item_logprobs(table, units), -1).detach().exp()) == pytest.approx(
        wanted, rel=1e-6
    )
    assert torch.allclose(units.exp(), first)


def test_the_whole_measurement_from_states() -> None:
    """Cross-fitted on features: the careless one is told from those whose judgements follow them."""
    draw = rng("whole")
    taste = np.array([2.0, -1.0, 0.5, 0.0])
    groups, states = [], []
    for item in range(70):
        x = draw.normal(size=(2, 4))
        gap = float((x[0] - x[1]) @ taste)
        pairs = [
            Pair(0, 1, float(draw.random() < (0.5 if name == "careless" else sigmoid(gap))), None, name)
            for name in draw.permutation(["careless", "a", "b", "c"])[:2]
        ]
        groups.append(Judged(f"p{item}", [item], [[0], [1]], ["a", "b"], pairs))
        states.append(torch.from_numpy(x))
    names = ["a", "b", "c", "careless"]
    effects = RaterEffects(names)
    reading = Reading(aware=True)
    seen = measure_raters(groups, states, reading=reading, effects=effects, seed=0)
    assert habits(effects, "careless")[0] > 0.5 > max(habits(effects, name)[0] for name in "abc")
    again = RaterEffects(names)
    measure_raters(groups, states, reading=reading, effects=again, seed=0)
    assert all(
        torch.equal(a, b)
        for a, b in zip(effects.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert isinstance(seen.tables["comparison"], Table)


def test_no_taste_is_read_in_a_gold_item() -> None:
    """What one says of an item whose answer is known is as likely whatever taste they have; of others it is not."""
    names = ["other", *(f"usual {i}" for i in range(8))]
    groups = asked_twice("taste")
    answers = [
        Pair(0, 1, 1.0, None, GOLD_RATER),
        Pair(0, 1, 0.0, None, "other"),
        Pair(0, 1, 0.0, None, "other"),
    ]
    groups.append(Judged("gold", [80], [[0], [1]], ["a", "b"], answers))
    reading, effects = Reading(aware=True), RaterEffects(names)
    scores = torch.zeros(2 * len(groups), dtype=torch.float64)
    table = tables(groups, scores, scores[:, None], reading, effects, {})["comparison"]
    found = []
    for taste in (-3.0, 2.0):
        hidden = Hidden(["comparison"], len(names))
        with torch.no_grad():
            hidden.taste.fill_(taste)
            found.append(unit_logprobs("comparison", table, hidden, reading, effects))
    known = table.gold[table.unit_item] != 0
    assert bool(known.any())
    assert torch.equal(found[0][known], found[1][known])
    assert not torch.allclose(found[0][~known], found[1][~known])


def test_two_raters_are_no_witnesses_of_each_other() -> None:
    """Two who say the same of items that nobody else judged, nothing being known of these: by chance they would agree
    as two independent raters of an unknown gap do, which is the prior's figure and not one sharpened by themselves."""
    draw = rng("two alone")
    groups = []
    for item in range(60):
        answer = float(draw.random() < 0.5)
        pairs = [Pair(0, 1, answer, None, "r0"), Pair(0, 1, answer, None, "r1")]
        groups.append(Judged(f"p{item}", [item], [[0], [1]], ["a", "b"], pairs))
    reading, effects = Reading(aware=True), RaterEffects(["r0", "r1"])
    scores = torch.zeros(120, dtype=torch.float64)
    found = tables(groups, scores, scores[:, None], reading, effects, {})
    hidden = Hidden(["comparison"], 2)
    with torch.no_grad():
        copied = copied_shares(found["comparison"], hidden, reading, effects)
        careless = habits(effects, "r0")[0]
    # d is normal with deviation e^0; each answers by sigmoid(d), or blindly: the chance to agree, by plain summation.
    d = np.linspace(-8, 8, 4001)
    weight = np.exp(-d * d / 2) / np.exp(-d * d / 2).sum()
    first = careless / 2 + (1 - careless) / (1 + np.exp(-d))
    alike = float((weight * (first**2 + (1 - first) ** 2)).sum())
    error = math.sqrt(60 * alike * (1 - alike))
    assert float(copied.share[0, 1]) == pytest.approx(
        (60 * (1 - alike) - error) / (60 * (1 - alike)), abs=2e-3
    )


def test_which_answer_is_called_the_first_changes_nothing() -> None:
    """A world in which the first answer is nearly always the better one, and the same with every other pair exchanged:
    the gaps' mean is 30 of their deviations in the one, and near 0 in the other."""
    draw, names = rng("places"), ["a", "b", "c", "d"]
    one: list[Judged] = []
    other: list[Judged] = []
    scores, turned = [], []
    for item in range(60):
        gap = 3.0 + 0.1 * draw.normal()
        answers = [float(draw.random() < sigmoid(gap - 2)) for _ in names]
        exchanged = item % 2 == 1
        for groups, flip in ((one, False), (other, exchanged)):
            pairs = [
                Pair(0, 1, 1 - x if flip else x, None, who) for x, who in zip(answers, names, strict=True)
            ]
            groups.append(Judged(f"p{item}", [item], [[0], [1]], ["a", "b"], pairs))
        scores += [gap, 0.0]
        turned += [0.0, gap] if exchanged else [gap, 0.0]
    found = []
    for groups, left in ((one, scores), (other, turned)):
        effects, seen = measured(groups, torch.tensor(left, dtype=torch.float64), names)
        kinds = (seen.hidden.sharpness["comparison"], seen.hidden.unseen["comparison"])
        found.append(
            [x for name in names for x in habits(effects, name)] + [float(x.detach()) for x in kinds]
        )
    assert found[0] == pytest.approx(found[1], abs=2e-3)


def test_habits_beyond_all_bounds_are_no_better_than_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line search may try any: where the likelihood overflows, it must be told that it went too far."""
    groups, scores = world()
    losses = []

    class Searching(torch.optim.LBFGS):
        def step(self, closure: Any) -> Any:  # type: ignore[override]
            learned = self.param_groups[0]["params"]
            for far in (0.0, 31.0, 1e3, 1e91):
                with torch.no_grad():
                    for parameter in learned:
                        parameter.fill_(far)
                losses.append(float(closure().detach()))
                assert all(bool(p.grad.isfinite().all()) for p in learned if p.numel())

    monkeypatch.setattr(torch.optim, "LBFGS", Searching)
    measured(groups, scores, NAMES)
    assert losses == sorted(losses)
    assert math.isfinite(losses[-1])
