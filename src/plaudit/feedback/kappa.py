"""Agreement beyond chance of raters who put things into classes: the kappas of Cohen and of Fleiss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

Said = Mapping[str, Hashable]
"""What each rater said of one thing."""


def cohen(units: Sequence[Said], one: str, other: str) -> tuple[float | None, int]:
    """Two raters on the things that both judged: kappa, and how many those are. 1 is full agreement, 0 what chance
    gives; None where nothing is shared, or both said one and the same of everything.

    Jacob Cohen, "A Coefficient of Agreement for Nominal Scales" (1960).
    """
    both = [(said[one], said[other]) for said in units if one in said and other in said]
    if not both:
        return None, 0
    n = len(both)
    agreed = sum(a == b for a, b in both) / n
    first, second = Counter(a for a, _ in both), Counter(b for _, b in both)
    chance = sum(first[name] * second[name] for name in first) / n**2
    return (None if chance == 1 else (agreed - chance) / (1 - chance)), n


def fleiss(units: Sequence[Said]) -> tuple[float | None, int]:
    """Any raters, on the things that the same number of them judged (the number that gives most things): kappa, and how
    many those are. None where there is none that two judged, or one class alone.

    Joseph L. Fleiss, "Measuring Nominal Scale Agreement Among Many Raters" (1971).
    """
    sizes = Counter(len(said) for said in units if len(said) > 1)
    if not sizes:
        return None, 0
    size = max(sizes, key=lambda k: (sizes[k], k))
    tables = [Counter(said.values()) for said in units if len(said) == size]
    n = len(tables)
    agreed = sum(sum(k * (k - 1) for k in table.values()) for table in tables) / (n * size * (size - 1))
    shares = Counter[Hashable]()
    for table in tables:
        shares.update(table)
    chance = sum((count / (n * size)) ** 2 for count in shares.values())
    return (None if chance == 1 else (agreed - chance) / (1 - chance)), n
