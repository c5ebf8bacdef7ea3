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

LOOP = (
    *of_room(
        "loop/round",
        "loop/test_loop",
        (
            "if item.prompt not in heldout and not versions & round.barred:",
            "if item.prompt not in heldout:",
            "samples of a policy that was taken back are learned from",
        ),
        ("first = (self.number - 1) * count", "first = 0", "the gate asks the same prompts again"),
    ),
    *of_room(
        "loop/asking",
        "loop/test_loop",
        ("if {a, b} <= free:", "if True:", "a completion in two pairs"),
        (
            "by_chance = order[: math.ceil(collect.random_share * wanted)]",
            "by_chance = order[:0]",
            "no random slice",
        ),
    ),
    *of_room(
        "loop/collecting",
        "loop/test_loop",
        ("if have >= wanted:", "if have > 0 or wanted == 0:", "one answer is enough"),
    ),
    *of_room(
        "loop/learning",
        "loop/test_loop",
        (
            "return old is not None and new is not None and new[1] < old[0]",
            "return old is not None and new is not None and new[1] < old[1]",
            "chance is taken for a change of taste",
        ),
        ("weight = getattr(round.config.sources, source) *", "weight = 1.0 *", "sources weigh alike"),
        (
            'stale = "stale/" if judged.seq <= fresh else ""',
            'stale = ""',
            "what was said before taste changed counts whole",
        ),
    ),
    *of_room(
        "loop/contest",
        "loop/test_loop",
        (
            "return (ANCHOR,) if round.standing.champion == 0 else (PARENT, ANCHOR)",
            "return (ANCHOR,)",
            "a candidate need not beat its parent",
        ),
        (
            "if both := sorted(trained & set(settings.raters)):",
            "if both := sorted(trained & set()):",
            "who trained it decides on it",
        ),
        (
            'return sorted((row[CANDIDATE]["completion"], row[name]["completion"]))',
            'return [row[CANDIDATE]["completion"], row[name]["completion"]]',
            "the candidate always stands first",
        ),
    ),
    *of_room(
        "loop/publishing",
        "loop/test_loop",
        (
            "champion, version = (round.number, arm.version) if published else",
            "champion, version = (round.number, arm.version) if True else",
            "what was kept out is a parent",
        ),
        (
            "factor = WIDER if published else NARROWER if rate < 0.5 else 1.0",
            "factor = WIDER if rate > 0.5 else NARROWER",
            "a gain that is not shown widens",
        ),
    ),
    *of_room(
        "loop/lineage",
        "loop/test_loop",
        (
            'if said := sorted(set(about["samples_of"]) & set(versions)):',
            "if said := []:",
            "samples of a touched policy touch nobody",
        ),
        ('if about["settings_follow_round"] in found:', "if False:", "verdicts touch nobody"),
    ),
    *of_room(
        "loop/retracting",
        "loop/test_loop",
        (
            'if stands is not None and {one.version for one in stands.arms} & set(about["barred"]):',
            "if False:",
            "a touched model goes on answering",
        ),
        (
            'kept = [entry for entry in journal.entries if entry["round"] <= back]',
            'kept = [entry for entry in journal.entries if entry["round"] <= back + 1]',
            "a touched round stands",
        ),
    ),
    *of_room(
        "loop/cycle",
        "loop/test_loop",
        (
            '        if results[n]["published"]:\n            break',
            "        if False:\n            break",
            "patience counts rounds that were published",
        ),
    ),
    *of_room(
        "feedback/reliability",
        "feedback/test_feedback_reliability",
        (
            "worth = (2 * drawn - 1) / (2 * usual - 1) if usual > 0.5 else 1.0",
            "worth = 1.0",
            "whoever contradicts counts whole",
        ),
        (
            "drawn = (n * accuracy.get(rater, usual) + PRIOR * usual) / (n + PRIOR)",
            "drawn = accuracy.get(rater, usual)",
            "two answers prove a liar",
        ),
        (
            "return max(least, min(most, -int(-(wanted - 1e-9) // 1)))",
            "return max(least, min(most, int(wanted)))",
            "a rater too few",
        ),
    ),
    *of_room(
        "reward/judgements",
        "reward/test_judgements",
        ('weight * reading.weights.get(name or "", 1.0)', "weight", "raters weigh alike"),
    ),
)
