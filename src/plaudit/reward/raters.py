"""Raters' habits beside the crowd's reward: how reliable, how sharp, how severe, and the side of the screen they like.

    reliability  q_r      1 - careless_r = |tanh(q_r / 2)|, and a negative q_r turns the scale round (an inverted rater)
    log-scale    l_r      scale_r = sign(q_r) exp(l_r), in the crowd's log-odds; sums to zero over who shares no taste
    side         b_r      pull, in log-odds, towards what stands first on the screen
    severity     v_r      by how much a rater's scores lie below the crowd's; sums to zero over those who rated

What can be told from a judgement is the product of the reward's scale and the rater's, and the difference of the
reward's level (or the cut-points') and the rater's: hence the two sums. Reliability and side need none. Each is pulled
towards the crowd's by a Gaussian whose standard deviation stands below, in nats beside the judgements' own: a rater
with few judgements is the crowd, and one whom nobody has met is exactly the crowd. Carelessness passes without a break
through 0 into inversion, so that a gradient finds either.

Not to be told from the reward: a taste that all raters share, for length say. It is the reward, to any model of who
judged; only gold items or a second crowd could say otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

CROWD, GOLD = -1, -2
"""Places that are no rater's: an anonymous or unknown one's, who is the crowd, and the known answers'."""
GOLD_RATER = "<gold>"
"""The rater of records from files of gold items."""
CROWD_CARELESS = 0.1
"""How careless the crowd is taken to be, and so whoever has said little."""
RELIABILITY_SD, LOG_SCALE_SD, SIDE_SD, SEVERITY_SD = 2.0, 0.3, 0.7, 1.0
"""Standard deviations of raters about the crowd. To be all careless costs a rater 1.1 nats, to be all inverted 4.3: two
and seven coin tosses' evidence."""
CUT_SD = 2.0
"""Standard deviation of the logarithm of the gaps between cut-points."""
FAR = 30.0
"""Logarithms and logits beyond it are nobody's habits."""
MOST_RATERS = 1000
"""Who copies whom is a table of raters by raters, in every checkpoint: 8 MB at this many."""
CROWD_Q = 2.0 * math.atanh(1.0 - CROWD_CARELESS)


class Habits(NamedTuple):
    """Of the rater of each judgement, [N]: see `plaudit.algorithms.rater_loss`."""

    careless: Tensor
    scale: Tensor
    side: Tensor
    severity: Tensor


class RaterEffects(nn.Module):
    """The crowd's cut-points and the habits of named raters, trained with the reward. float64.

    names: the raters, in any order; rated: those of them who gave ratings. levels: how many a rating may take (2:
    regression, where there is nothing to learn of cut-points).
    Buffers: copied [R, R], the share of r's judgements that repeat s's (0 where none was found out); shared [R, R],
    whether r's ratings surely share with s's a taste that is not the crowd's; guess [levels].
    """

    copied: Tensor
    shared: Tensor
    guess: Tensor
    rated: Tensor

    def __init__(self, names: Sequence[str] = (), rated: Sequence[str] = (), *, levels: int = 2) -> None:
        super().__init__()
        self.names, self.levels = tuple(names), levels
        self.place = {name: i for i, name in enumerate(self.names)} | {GOLD_RATER: GOLD}
        zeros = torch.zeros(len(self.names), dtype=torch.float64)
        self.reliability = nn.Parameter(zeros.clone())  # beyond the crowd's
        self.log_scale = nn.Parameter(zeros.clone())
        self.side = nn.Parameter(zeros.clone())
        self.severity = nn.Parameter(zeros.clone())
        self.gaps = nn.Parameter(torch.zeros(max(0, levels - 2), dtype=torch.float64))  # logarithms
        self.register_buffer("copied", torch.zeros(len(names), len(names), dtype=torch.float64))
        self.register_buffer("shared", torch.zeros(len(names), len(names), dtype=torch.bool))
        self.register_buffer("guess", torch.full((levels,), 1 / levels, dtype=torch.float64))
        who = set(rated)
        self.register_buffer("rated", torch.tensor([name in who for name in self.names], dtype=torch.bool))

    def index(self, rater: str | None) -> int:
        """The rater's place in every table; CROWD for whoever is not known."""
        return CROWD if rater is None else self.place.get(rater, CROWD)

    def cuts(self) -> Tensor:
        """[levels - 1], increasing, of mean 0: the reward's own level is the head's bias."""
        raw = torch.cat([self.gaps.new_zeros(1), self.gaps.exp().cumsum(0)])
        return raw - raw.mean()

    def tasting(self) -> Tensor:
        """[R]: who shares with somebody, in ratings, a taste that is not the crowd's."""
        return self.shared.any(1)

    def centred(self) -> tuple[Tensor, Tensor]:
        """Log-scale and severity as they count: of sum zero (the log-scales of those who share no taste, where there
        are two); severity 0 for whoever gave no rating."""
        log_scale = self.log_scale - self.log_scale.mean() if len(self.names) else self.log_scale
        crowd = ~self.tasting()
        if 1 < int(crowd.sum()) < len(self.names):
            log_scale = log_scale - log_scale[crowd].mean()
        share = self.rated.to(self.severity.dtype)
        mean = (self.severity * share).sum() / share.sum().clamp(min=1.0)
        return log_scale, (self.severity - mean) * share

    def of(self, raters: Tensor, dtype: torch.dtype = torch.float64, *, rating: bool = False) -> Habits:
        """The habits of raters by place, [N] each, where `raters` is; rating: those in ratings, in which whoever shares
        a taste is never careless and of scale 1, so that the reward hears them as much as the others."""
        log_scale, severity = self.centred()
        right = torch.tanh((CROWD_Q + self.reliability) / 2)
        if rating:
            right = right.masked_fill(self.tasting(), 1.0)
            log_scale = log_scale.masked_fill(self.tasting(), 0.0)
        ends = right.new_tensor([1.0, 1.0 - CROWD_CARELESS])  # gold, the crowd
        right = torch.cat([right, ends])
        nothing = right.new_zeros(2)
        sign = torch.where(right < 0, -1.0, 1.0)
        tables = (
            1.0 - right.abs(),
            sign * torch.cat([log_scale, nothing]).exp(),
            torch.cat([self.side, nothing]),
            torch.cat([severity, nothing]),
        )
        return Habits(*(table.to(raters.device, dtype)[raters] for table in tables))

    def prior(self) -> Tensor:
        """What the habits cost beside the judgements' negative log-likelihood, in nats."""
        log_scale, severity = self.centred()
        parts = (
            (self.reliability, RELIABILITY_SD),
            (log_scale, LOG_SCALE_SD),
            (
                self.log_scale.mean() if len(self.names) else self.log_scale.sum(),
                1.0,
            ),  # else nothing holds it
            (self.side, SIDE_SD),
            (severity, SEVERITY_SD),
            (self.severity - severity, SEVERITY_SD),
            (self.gaps, CUT_SD),
        )
        return sum(((x / sd).square().sum() / 2 for x, sd in parts), self.gaps.new_zeros(()))

    @torch.no_grad()
    def bounded(self) -> bool:
        """Whether they can be anybody's: nothing beyond `FAR`, and the cut-points apart."""
        within = all(bool((p.abs() <= FAR).all()) for p in self.parameters())
        return within and bool((self.cuts().diff() > 0).all())

    def frequencies(self, counts: Tensor) -> None:
        """Begin with cut-points, and a careless rater's levels, as often as levels were given; counts: [levels]."""
        share = (counts.double() + 0.5) / (counts.double() + 0.5).sum()
        with torch.no_grad():
            self.guess.copy_(share)
            if self.levels > 2:
                cuts = torch.logit(share.cumsum(0)[:-1])
                self.gaps.copy_(cuts.diff().clamp(min=1e-2).log())


def copy_weights(effects: RaterEffects, units: Sequence[tuple[object, int]]) -> list[float]:
    """For judgements (of what, by whom) the share of an independent one that each is: 1 / (1 + sum of the copied
    shares of the others who judged the same). m raters who say all the same count as nearly one (Kish 1965's design
    effect): a share is what was found out, less one standard error.
    """
    if not bool(effects.copied.any()):
        return [1.0] * len(units)
    there: dict[object, set[int]] = {}
    for of, who in units:
        there.setdefault(of, set()).add(who)
    named = sorted({who for _, who in units if who >= 0})
    place = {who: i for i, who in enumerate(named)}
    copied = effects.copied[named][:, named].tolist()
    return [
        1.0
        / (1.0 + sum(copied[place[who]][place[other]] for other in there[of] if other >= 0 and other != who))
        if who >= 0
        else 1.0
        for of, who in units
    ]
