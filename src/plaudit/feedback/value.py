"""What judgements are worth: a light Bradley-Terry head on stored vectors, how much righter it gets with more of them,
and which items would teach it most.

The head is small on purpose: it is fitted again after every vote, on a machine without a model. It stands in for the
reward model that is trained later.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from plaudit.feedback import agreement, queries, schema, vectors
from plaudit.feedback.assignments import RANDOM
from plaudit.feedback.events import Event, Item
from plaudit.feedback.judgements import REPEATS
from plaudit.feedback.projects import Projects
from plaudit.feedback.vectors import Place
from plaudit.randomness import rng
from plaudit.types import prompt_to_json

Floats = NDArray[np.float64]
COMPONENTS = 32
"""Principal components of the vectors that the head reads, beside the logarithm of the text's length."""
PRIOR = 1.0
"""Precision of the normal prior on the weights of standardised features."""
HELD_OUT, SPLITS = 0.25, 20
"""The share of prompts that a split holds out, and how many splits the curve is made of."""
FEWEST = 24
"""Judgements without which nothing is said."""
NEXT = 100
"""Judgements of the forecast."""
LEVEL = 0.9
"""Of intervals."""
NORMAL = 1.6448536269514722
"""Standard deviations of LEVEL."""
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(15)


@dataclass(frozen=True, slots=True)
class Pairs:
    """n judgements of two completions each. first, second: rows of the features [n]; better: 1 where the first was, 0
    where the second, 0.5 where neither; prompt: which prompt, numbered; at: the event's seq."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    better: Floats
    prompt: NDArray[np.int64]
    at: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.better)

    def of(self, rows: NDArray[Any]) -> Pairs:
        return Pairs(self.first[rows], self.second[rows], self.better[rows], self.prompt[rows], self.at[rows])


@dataclass(frozen=True, slots=True)
class Read:
    """A project as the head sees it. features: [completions, k], standardised; places: whose they are; slice: the items
    that were drawn to be given out in no order of worth."""

    pairs: Pairs
    features: Floats
    places: list[Place]
    items: dict[str, Item]
    slice: frozenset[str]


@dataclass(frozen=True, slots=True)
class Curve:
    """How right a head is on held-out prompts that learned from so many judgements. sizes [s]: how many; accuracy
    [splits, s]; error [splits, s - 1]: the variance that a step from one size to the next has from there being no more
    prompts to be measured by. Without sizes where there are too few judgements."""

    sizes: NDArray[np.int64]
    accuracy: Floats
    error: Floats


@dataclass(frozen=True, slots=True)
class Head:
    """weights [k] and their covariance [k, k] (Laplace's approximation)."""

    weights: Floats
    covariance: Floats

    def scores(self, features: Floats) -> Floats:
        """[n]."""
        out: Floats = features @ self.weights
        return out


def fit(differences: Floats, better: Floats, prior: float = PRIOR) -> Head:
    """The most probable weights of Bradley and Terry's model (1952), P(first better) = sigmoid(w . difference), with a
    normal prior, by Newton's method; half a win each where neither was better."""
    k = differences.shape[1]
    weights = np.zeros(k)
    for _ in range(50):
        p = _sigmoid(differences @ weights)
        gradient = differences.T @ (better - p) - prior * weights
        hessian = (differences * (p * (1 - p))[:, None]).T @ differences + prior * np.eye(k)
        step = np.linalg.solve(hessian, gradient)
        weights = weights + step
        if np.abs(step).max(initial=0.0) < 1e-9:
            break
    p = _sigmoid(differences @ weights)
    hessian = (differences * (p * (1 - p))[:, None]).T @ differences + prior * np.eye(k)
    return Head(weights, np.linalg.inv(hessian).astype(np.float64))


def read(projects: Projects, id: str, up_to: int | None = None) -> Read:
    """Comparisons and rankings (all pairs of one) of a project that stand, on items whose completions all have a
    vector. UserError where there is no such project."""
    projects.get(id)
    found = vectors.of_project(projects.store.engine, id)
    events, items, drawn = _standing(projects, id, up_to)
    places = sorted(found)
    row = {place: number for number, place in enumerate(places)}
    texts = [items[item].completions[place] if item in items else "" for item, place in places]
    features = _features([found[place] for place in places], texts)
    prompts: dict[str, int] = {}
    columns: list[tuple[int, int, float, int, int]] = []
    for event in events:
        item = items[str(event.item)]
        name = schema.to_json(prompt_to_json(item.prompt))
        for first, second, better in _said(event):
            a, b = row.get((item.id, first)), row.get((item.id, second))
            if a is not None and b is not None:
                columns.append((a, b, better, prompts.setdefault(name, len(prompts)), event.seq))
    table = list(zip(*columns, strict=True)) or [()] * 5
    pairs = Pairs(
        *(np.array(table[i], dtype=t) for i, t in enumerate((np.int64, np.int64, float, np.int64, np.int64)))
    )
    return Read(pairs, features, places, items, drawn)


def of_project(projects: Projects, id: str, seed: int = 0) -> dict[str, Any]:
    """How right the head is on prompts that it has not seen, by how many judgements it learned from, and what the next
    hundred bring; ready for JSON.

    {"judgements", "reason", "curve": [{"n", "accuracy", "low", "high"}], "forecast": {"more", "gain", "low", "high"} or
    None, "longer": the share that "the longer one" gets right, "slice": as `on_slice`}. reason: why there is no curve,
    None where there is one.
    """
    found = read(projects, id)
    said: dict[str, Any] = {
        "judgements": len(np.unique(found.pairs.at)),
        "reason": None,
        "curve": [],
        "forecast": None,
        "longer": None,
        "slice": None,
    }
    if not len(found.features):
        return said | {"reason": "no completion has a vector yet; a worker makes them"}
    curve = learning_curve(found.pairs, found.features, seed)
    if not len(curve.sizes):
        return said | {"reason": f"fewer than {FEWEST} judgements that prefer one, or all of one prompt"}
    low, high = np.quantile(curve.accuracy, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    said["curve"] = [
        {"n": int(n), "accuracy": float(mean), "low": float(a), "high": float(b)}
        for n, mean, a, b in zip(curve.sizes, curve.accuracy.mean(0), low, high, strict=True)
    ]
    said["forecast"] = forecast(curve, said["judgements"])
    return said | {"longer": _longer(found), "slice": on_slice(found, seed)}


def on_slice(found: Read, seed: int = 0) -> dict[str, Any] | None:
    """How right a head is on the random slice that learned from all other prompts: {"n": judgements, "accuracy", "low",
    "high"}, a 95 % interval (bootstrap over prompts). What is given out in order of worth is chosen for being hard, and
    so says nothing of prompts as they come; the slice does. None where one of the two has too few.
    """
    pairs, decided = found.pairs, found.pairs.better != 0.5
    drawn = np.array([found.places[row][0] in found.slice for row in pairs.first], dtype=bool)
    learned = ~np.isin(pairs.prompt, pairs.prompt[drawn])
    test = drawn & decided
    if min(np.count_nonzero(learned & decided), np.count_nonzero(test)) < FEWEST:
        return None
    differences = found.features[pairs.first] - found.features[pairs.second]
    head = fit(differences[learned], pairs.better[learned])
    was_right = right(head, differences[test], pairs.better[test])
    _, prompts = np.unique(pairs.prompt[test], return_inverse=True)
    hits, said = (np.bincount(prompts, of).astype(np.float64) for of in (was_right, np.ones(len(was_right))))
    share = agreement.share_of(hits, said, seed)
    low, high = share["interval"]
    return {"n": int(np.count_nonzero(test)), "accuracy": share["share"], "low": low, "high": high}


def learning_curve(pairs: Pairs, features: Floats, seed: int = 0, splits: int = SPLITS) -> Curve:
    """Of judgements drawn anew for each split. Accuracy is of judgements that prefer one."""
    decided = pairs.better != 0.5
    prompts = np.unique(pairs.prompt[decided])
    if len(np.unique(pairs.at[decided])) < FEWEST or len(prompts) < 4:
        return Curve(np.array([], dtype=np.int64), np.zeros((0, 0)), np.zeros((0, 0)))
    differences = features[pairs.first] - features[pairs.second]
    # A judgement may be several pairs (a ranking), and is learned from as a whole.
    judgements, whose = np.unique(pairs.at, return_inverse=True)
    made = list[tuple[NDArray[np.int64], NDArray[np.int64]]]()
    for split in range(splits):
        random = rng(seed, "value", split)
        out = random.permutation(prompts)[: max(1, round(HELD_OUT * len(prompts)))]
        held = np.isin(pairs.prompt, out)
        made.append((random.permutation(np.unique(whose[~held])), np.flatnonzero(held & decided)))
    sizes = _sizes(min(len(learned) for learned, _ in made))
    accuracies, errors = np.zeros((splits, len(sizes))), np.zeros((splits, len(sizes) - 1))
    for split, (learned, test) in enumerate(made):
        turn = np.full(len(judgements), len(judgements))
        turn[learned] = np.arange(len(learned))
        before: Floats | None = None
        for column, size in enumerate(sizes):
            rows = np.flatnonzero(turn[whose] < size)
            now = right(fit(differences[rows], pairs.better[rows]), differences[test], pairs.better[test])
            accuracies[split, column] = now.mean()
            if before is not None:
                errors[split, column - 1] = error(now - before, pairs.prompt[test])
            before = now
    return Curve(sizes, accuracies, errors)


def right(head: Head, differences: Floats, better: Floats) -> Floats:
    """[n]: 1 for each decided judgement that the head has right, 0 for the others, half where it has no opinion."""
    said: Floats = (np.sign(head.scores(differences)) * np.sign(better - 0.5) + 1) / 2
    return said


def error(values: Floats, prompt: NDArray[Any]) -> float:
    """The variance of the mean of values [n] over prompts [n] like these: those of one prompt go together."""
    _, which = np.unique(prompt, return_inverse=True)
    return float(np.square(np.bincount(which, values - values.mean())).sum()) / len(values) ** 2


def forecast(curve: Curve, now: int, more: int = NEXT) -> dict[str, Any] | None:
    """By how much so many more judgements raise the accuracy on all prompts to come: {"more", "gain", "low", "high"},
    the latter two the bounds of a 90 % interval. None for a curve of fewer than four sizes.

    The mean follows a power law, accuracy(n) = a - b n^-c (Hestness et al. 2017), fitted to the curve. The interval is
    as wide as single splits stray from the mean step, less what is due to the prompts that they are measured by; it
    shrinks as what the head does not know of its weights, with 1/n.
    """
    n = curve.sizes.astype(float)
    if len(n) < 4:
        return None
    _, b, c = power_law(n, curve.accuracy.mean(0))
    gain = b * (now**-c - (now + more) ** -c)
    # Splits draw whom they hold out from the same prompts, so that they differ by less than if each had others.
    strayed = np.diff(curve.accuracy, axis=1).var(0, ddof=1) - (1 - HELD_OUT) * curve.error.mean(0)
    known = 1 / n[:-1] - 1 / n[1:]
    variance = float(np.mean(strayed / known)) * (1 / now - 1 / (now + more))
    half = NORMAL * math.sqrt(max(0.0, variance))
    return {"more": more, "gain": float(gain), "low": float(gain - half), "high": float(gain + half)}


def power_law(n: Floats, accuracy: Floats) -> tuple[float, float, float]:
    """a, b >= 0 and c of accuracy = a - b n^-c, least squares over a grid of c."""
    best = (math.inf, float(accuracy.mean()), 0.0, 0.5)
    for c in np.linspace(0.1, 1.5, 29):
        design = np.stack([np.ones_like(n), -(n**-c)], 1)
        (a, b), *_ = np.linalg.lstsq(design, accuracy, rcond=None)
        if b < 0:
            a, b = float(accuracy.mean()), 0.0
        error = float(((design @ np.array([a, b]) - accuracy) ** 2).sum())
        if error < best[0] - 1e-15:
            best = (error, float(a), float(b), float(c))
    return best[1:]


def worth(projects: Projects, id: str) -> dict[str, float]:
    """{item: nats}: what an answer would teach a reward (the mutual information of the two; Houlsby et al. 2011), of
    every pair of a project; more where raters have disagreed about it.

    The reward is an ensemble that a worker has scored the project with, and whose members say how sure they are, or
    else the light head on vectors.
    """
    found = read(projects, id)
    scored = {
        place: (mean, spread)
        for place, (mean, spread) in vectors.scores_of(projects.store.engine, id).items()
        if spread is not None
    }
    odds = _odds_of_scores(scored) if scored else _odds_of_head(found)
    said: dict[str, dict[tuple[int, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    for a, b, better in zip(found.pairs.first, found.pairs.second, found.pairs.better, strict=True):
        pair, toward = ((a, b), better) if a < b else ((b, a), 1.0 - better)
        said[found.places[int(a)][0]][int(pair[0]), int(pair[1])].append(float(toward))
    doubt = {
        item: float(np.mean([np.var(votes) for votes in pairs.values()])) for item, pairs in said.items()
    }
    return {
        item: information(mean, variance) + doubt.get(item, 0.0) for item, (mean, variance) in odds.items()
    }


def _odds_of_head(found: Read) -> dict[str, tuple[float, float]]:
    """{item: mean and variance of the log-odds that its first completion is better than the mean of its others}."""
    if not len(found.features):
        return {}
    pairs = found.pairs
    head = fit(found.features[pairs.first] - found.features[pairs.second], pairs.better)
    odds = {}
    for item, rows in _by_item(found.places).items():
        x = found.features[rows[0]] - found.features[rows[1:]].mean(0)
        odds[item] = float(x @ head.weights), float(x @ head.covariance @ x)
    return odds


def _odds_of_scores(scored: Mapping[Place, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """The same, of rewards whose deviations are independent."""
    places, odds = sorted(scored), {}
    for item, rows in _by_item(places).items():
        means, spreads = zip(*(scored[places[row]] for row in rows), strict=True)
        others = len(rows) - 1
        variance = spreads[0] ** 2 + sum(spread**2 for spread in spreads[1:]) / others**2
        odds[item] = means[0] - sum(means[1:]) / others, variance
    return odds


def _by_item(places: Sequence[Place]) -> dict[str, list[int]]:
    """Rows of the places of each item that has two or more."""
    found: dict[str, list[int]] = defaultdict(list)
    for row, (item, _) in enumerate(places):
        found[item].append(row)
    return {item: rows for item, rows in found.items() if len(rows) > 1}


def information(mean: float, variance: float) -> float:
    """Nats that one comparison tells about the weights, where its log-odds are normal with this mean and variance."""
    p = _sigmoid(mean + math.sqrt(max(0.0, variance)) * _NODES)
    weights = _WEIGHTS / _WEIGHTS.sum()
    return max(0.0, float(_entropy(np.array(weights @ p)) - weights @ _entropy(p)))


def standings(projects: Projects, id: str, since: int | None = None, most: int = 50) -> dict[str, Any]:
    """Where each answer stands among those to the same prompt by the head, and which of them changed their place since
    event `since` (None: since before the last judgement): {"seq", "since", "prompts": [{"prompt", "answers": [{"item",
    "completion", "text", "score", "rank", "before"}]}]}, those with a change first."""
    now = read(projects, id)
    if not len(now.features):
        return {"seq": 0, "since": 0, "prompts": []}
    last = int(now.pairs.at.max()) if len(now.pairs) else 0
    since = last - 1 if since is None else since
    differences = now.features[now.pairs.first] - now.features[now.pairs.second]
    old = now.pairs.at <= since
    scores = fit(differences, now.pairs.better).scores(now.features)
    before = fit(differences[old], now.pairs.better[old]).scores(now.features)
    groups: dict[str, list[int]] = defaultdict(list)
    for row, (item, _) in enumerate(now.places):
        if item in now.items:
            groups[schema.to_json(prompt_to_json(now.items[item].prompt))].append(row)
    prompts = []
    for rows in groups.values():
        ranks, olds = _ranks(scores[rows]), _ranks(before[rows])
        answers: list[dict[str, Any]] = [
            {
                "item": now.places[row][0], "completion": now.places[row][1],
                "text": now.items[now.places[row][0]].completions[now.places[row][1]],
                "score": float(scores[row]), "rank": int(rank), "before": int(was),
            }
            for row, rank, was in zip(rows, ranks, olds, strict=True)
        ]  # fmt: skip
        prompt = prompt_to_json(now.items[now.places[rows[0]][0]].prompt)
        prompts.append({"prompt": prompt, "answers": sorted(answers, key=lambda one: one["rank"])})
    prompts.sort(key=lambda one: -sum(a["rank"] != a["before"] for a in one["answers"]))
    return {"seq": last, "since": since, "prompts": prompts[:most]}


def _standing(
    projects: Projects, id: str, up_to: int | None
) -> tuple[list[Event], dict[str, Item], frozenset[str]]:
    """Judgements that stand, what is asked twice counted once; all items of the project that can be read; and those of
    the random slice."""
    table, events = schema.project_items, schema.events
    with schema.reading(projects.store.engine) as connection:
        query = queries.standing(up_to).join(table, table.c.item == events.c.item)
        rows = connection.execute(query.where(table.c.project == id).order_by(events.c.seq)).all()
        known = connection.execute(sa.select(table).where(table.c.project == id)).all()
        items = queries.items(connection, [row.item for row in known])
    drawn = frozenset(row.item for row in known if row.part == "open" and row.queue == RANDOM)
    kept = {key: item for key, item in items.items() if item is not None and REPEATS not in item.meta}
    return [event for row in rows if (event := queries.event(row)).item in kept], kept, drawn


def _said(event: Event) -> list[tuple[int, int, float]]:
    if event.kind == "comparison":
        choice = event.payload["choice"]
        return [(0, 1, 0.5 if choice not in (0, 1) else 1.0 - choice)]
    if event.kind == "ranking":
        order = event.payload["ranking"]
        return [(order[i], order[j], 1.0) for i in range(len(order)) for j in range(i + 1, len(order))]
    return []


def _features(found: Sequence[NDArray[np.float32]], texts: Sequence[str]) -> Floats:
    """[n, k]: the vectors' leading principal components and the logarithm of the length, each of variance 1."""
    if not len(found):
        return np.zeros((0, 0))
    states = np.stack(found).astype(np.float64)
    states -= states.mean(0)
    scale = states.std(0)
    states /= np.where(scale > 0, scale, 1.0)
    width = min(COMPONENTS, states.shape[1], max(1, len(states) - 1))
    _, _, basis = np.linalg.svd(states[:: max(1, len(states) // 4000)], full_matrices=False)
    lengths = np.log1p([[len(text)] for text in texts])
    features = np.concatenate([states @ basis[:width].T, lengths - lengths.mean()], 1)
    spread = features.std(0)
    out: Floats = features / np.where(spread > 1e-9, spread, 1.0)
    return out


def _sizes(most: int) -> NDArray[np.int64]:
    """Nine sizes up to the most, each as many times the one before."""
    return np.unique(np.geomspace(min(8, most), most, 9).round().astype(np.int64))


def _longer(found: Read) -> float:
    lengths = np.array(
        [len(found.items[i].completions[p]) if i in found.items else 0 for i, p in found.places]
    )
    pairs = found.pairs.of(np.flatnonzero(found.pairs.better != 0.5))
    said = np.sign(lengths[pairs.first] - lengths[pairs.second]) * np.sign(pairs.better - 0.5)
    return float(np.mean((said + 1) / 2))


def _ranks(scores: Floats) -> NDArray[np.int64]:
    """1 is the best."""
    ranks = np.empty(len(scores), dtype=np.int64)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
    return ranks


def _sigmoid(x: Any) -> Floats:
    out: Floats = 1 / (1 + np.exp(-np.clip(x, -500, 500)))
    return out


def _entropy(p: Floats) -> Floats:
    p = np.clip(p, 1e-300, 1 - 1e-16)
    out: Floats = -(p * np.log(p) + (1 - p) * np.log1p(-p))
    return out
