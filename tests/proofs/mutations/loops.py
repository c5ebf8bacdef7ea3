"""What goes round, and what is told of a run beforehand."""

from mutations.kinds import of_room

PREDICTION = of_room(
    "loop/prediction",
    "loop/test_estimate",
    ("(steps / each - 1) * one", "steps / each * one", "the first step counted twice"),
    ("first + (steps / each", "one + (steps / each", "a first step like the others"),
    ("(saves - 1) * saving(seen)", "saves * saving(seen)", "the rehearsal's own checkpoint counted twice"),
    ("seen.disk + (min(saves, AT_ONCE) - 1)", "seen.disk + (saves - 1)", "every checkpoint kept"),
    ("max(1.0, most_tokens / seen.length)", "most_tokens / seen.length", "the most is less than what was seen"),
    ("(sizes.large - sizes.small)), large / sizes.large)", "(sizes.large - sizes.small)), large)",
     "a constant below nothing"),
    ("return large - slope * sizes.large + times", "return times * (large - slope * sizes.large) + times",
     "what is constant, once an epoch"),
    ("slope = min(max(0.0, (large - small)", "slope = min(max(-1.0, (large - small)", "what shrinks goes on shrinking"),
    ("max(small.memory, large.memory)", "large.memory", "the smaller part's peak forgotten"),
    ("PER_CHARACTER * max(0, sizes.whole - sizes.large)", "0", "the rest of the data takes no memory"),
    ("looking(large) * sizes.whole / sizes.large", "looking(large)", "as much is held out as in the rehearsal"),
    ("gaps[-1] - statistics.median", "gaps[0] - statistics.median", "measured after the first step"),
) + of_room(
    "loop/excerpt",
    "loop/test_estimate",
    ("if longest and pieces:", "if False:", "the longest text left out"),
    ("round(share * len(held))", "len(held)", "all that is held out with any part"),
    ("return sum(piece.units for piece in self.pieces if not piece.held)",
     "return sum(piece.units for piece in self.pieces)", "the held-out trained on"),
    ("sum(vote != 0 for vote", "sum(vote > 0 for vote", "what was called bad is not learned from"),
    ("(ties or isinstance(record.choice, int))", "True", "ties kept that are dropped"),
) + of_room(
    "loop/estimate",
    "loop/test_estimate",
    ("passes = (1 + epochs) / 2", "passes = epochs", "every epoch's own texts passed over once more"),
    ("saves = steps // every", "saves = math.ceil(steps / every)", "a checkpoint at the end that is not written"),
    ("math.ceil(steps / config.evaluate_every) - epochs", "math.ceil(steps / config.evaluate_every)",
     "the epochs' ends measured twice"),
    ("fits = MARGIN * found.memory", "fits = found.memory", "nothing left for what a rehearsal does not see"),
    ("return held if MARGIN * held <= asked.room else None", "return held", "whatever ends well fits"),
    ("fits and found.disk <= free_disk", "fits or found.disk <= free_disk", "a disk that is too small"),
)  # fmt: skip
