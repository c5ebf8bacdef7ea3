"""docs/speed.md and its pictures, from benchmarks/results alone: no figure is typed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plaudit import files
from speed import charts, results
from speed.cases import CASES, MEMORY, SHARE, TARGETS

ROOT = Path(__file__).parents[2]
PAGE, IMAGES = ROOT / "docs" / "speed.md", ROOT / "docs" / "images"
Found = Mapping[str, dict[str, Any]]
"""Results by name."""
Kind = tuple[Found, Found]
"""Of one kind of machine: the results with rows beside a peer's, and the others."""

INTRO = """# Speed

Ours and a peer side by side: the same weights (SmolLM2-135M), the same texts, the same lengths, two processes that work
in turns. A ratio is the median over the rounds of the peer's seconds to ours, so that above 1 ours is the faster. This
page is written by `python -m benchmarks page` from `benchmarks/results`; how to measure is in
[benchmarks/README.md](../benchmarks/README.md#speed).
"""
COUNTED = """
**The ceiling** is the least time in which this machine could do what the work needs, at the speed of a plain product of
2048 x 2048 matrices and of copying memory, both measured beside each row. What is counted is what the work needs, not
what somebody does: a prompt that completions share once, the output layer only where a loss or a draw reads it, 2
operations a parameter a token forward and 4 backward (2 where the parameter is frozen), attention's own, the weights
and caches that each token drawn reads. Sampling, the reference's pass, scores and every epoch are in a step.
"""
REWARD = """
## `time_to_reward`: minutes to the same held-out reward at the same KL limit, GRPO with LoRA on both sides

The same start, prompts, reward function, learning rate, group size and KL coefficient; one judge samples from both
sides' policies on prompts that nobody trains on, while the clock stands still.
"""
WITHOUT = """
## Where bfloat16 is not native

Both sides compute in float32 there, and several aims lie beyond what any program could reach ("at the ceiling").
"""
GROWTH = "\n## Growth"
NAMES = {
    "rollout": "sample 32 prompts of 64 tokens, 64 new ones each",
    "rollout_group": "sample 4 prompts of 64 tokens, 8 completions of 64 each",
    "sft": "an SFT step, 8 sequences of 256 tokens, the loss on all",
    "sft_mixed": "an SFT step, 8 whole texts of about 40 to 512 tokens",
    "reward": "a step of a reward model, 8 pairs of 256 tokens",
    "dpo": "a DPO step, 8 pairs of 256 tokens, the reference's pass included",
    "grpo": "a GRPO step, 4 prompts x 8 completions x (64 + 64) tokens, sampling included",
    "ppo": "a PPO step, 32 x (64 + 64) tokens, 4 epochs, sampling and a learned reward included",
}
HEAD = (
    "| row | ours, s | peer, s | ratio | tokens/s, ours / peer | peak GB, ours / peer "
    "| of the ceiling, ours / peer |"
)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows in Markdown."""
    lines = [HEAD, "|---" * 7 + "|"]
    for row in rows:
        speed, memory, share = row["tokens_per_second"], row["peak_rss_gb"], row["roofline"]
        lines.append(
            f"| {row['name']} | {row['ours']:.2f} | {row['peer']:.2f} | {row['ratio']:.2f} "
            f"| {speed['ours']:.0f} / {speed['peer']:.0f} | {memory['ours']:.1f} / {memory['peer']:.1f} "
            f"| {share['ours']:.2f} / {share['peer']:.2f} |"
        )
    return "\n".join(lines)


def best_of(found: Found, target: str) -> dict[str, Any] | None:
    """The row that a target is measured by, where it has been."""
    result = found.get(target.split(",")[0])
    return results.headline(result["rows"], target) if result is not None else None


def verdict(value: float, least: float, moonshot: float | None) -> str:
    """In words; compared as they are shown, to two digits."""
    value = round(value, 2)
    return "moonshot" if moonshot and value >= moonshot else "reached" if value >= least else "missed"


def targets(found: Found) -> str:
    """What was aimed at beside what came of it."""
    lines = [
        "| aim | against | at least | moonshot | measured | | at the ceiling | of the ceiling | rounds |",
        "|---" * 9 + "|",
    ]
    for name, aim in TARGETS.items():
        row = best_of(found, name)
        moon = "" if aim.moonshot is None else f"{aim.moonshot:g}"
        if row is None:
            lines.append(f"| `{name}` | | {aim.least:g} | {moon} | not measured yet | | | | |")
            continue
        possible = row["peer"] / row["seconds_at_ceiling"]
        said = verdict(row["ratio"], aim.least, aim.moonshot)
        lines.append(
            f"| `{name}` | {row['name']} | {aim.least:g} | {moon} | {row['ratio']:.2f} | {said} "
            f"| {possible:.2f} | {row['roofline']['ours']:.2f} | {row['repeats']} |"
        )
    lines += [
        "",
        f"Of the ceiling at least {SHARE.least:g} was aimed at, {SHARE.moonshot:g} as a moonshot. At the ceiling: the "
        "ratio that a program would have which wastes nothing.",
        "",
    ]
    lines += ["| peak memory | ours, GB | peer, GB | the peer's to ours | aim | |", "|---" * 6 + "|"]
    for name in ("ppo", "dpo", "grpo"):
        row = best_of(found, name)
        if row is None:
            lines.append(
                f"| `{name}` | | | not measured yet | {MEMORY.least:g}, moonshot {MEMORY.moonshot:g} | |"
            )
            continue
        ours, peer = row["peak_rss_gb"]["ours"], row["peak_rss_gb"]["peer"]
        said = verdict(peer / ours, MEMORY.least, MEMORY.moonshot)
        lines.append(
            f"| `{name}` | {ours:.1f} | {peer:.1f} | {peer / ours:.2f} "
            f"| {MEMORY.least:g}, moonshot {MEMORY.moonshot:g} | {said} |"
        )
    return "\n".join(lines)


def reward_text(found: Mapping[str, Any]) -> str:
    """Minutes to the goal by seed, and what the goal was."""
    lines = ["| seed | ours, minutes (steps) | peer, minutes (steps) | ratio | KL at the end, ours / peer |"]
    lines += ["|---" * 5 + "|"]

    def said(side: Mapping[str, Any]) -> str:
        steps = side["curve"][-1][0]
        return f"not within {steps} steps" if side["minutes"] is None else f"{side['minutes']:.1f} ({steps})"

    for row in found["rows"]:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        kl = " / ".join(f"{row[side]['curve'][-1][3]:.3f}" for side in ("ours", "peer"))
        lines.append(f"| {row['seed']} | {said(row['ours'])} | {said(row['peer'])} | {ratio} | {kl} |")
    median = "none" if found["ratio"] is None else f"{found['ratio']:.2f}"
    peak = found["peak_rss_gb"]
    lines += [
        "",
        f"The start's held-out reward is {found['began']:.3f}, the goal {found['goal']:.3f}, the limit "
        f"{found['limit']:g} nats a token. Median ratio: {median}; at least {found['least']:g} was aimed at. Peak "
        f"memory {peak['ours']:.1f} / {peak['peer']:.1f} GB. Measured {found['date']} with `{found['command']}`."
        + micro_batches({f"seed {r['seed']}": r["ours"]["micro_batch_tokens"] for r in found["rows"]}),
    ]
    return "\n".join(lines)


def where(result: Mapping[str, Any]) -> str:
    """Machine, dates, ceilings and versions of one result, in a sentence."""
    machine, rows = result["machine"], result["rows"]
    dates = sorted({row["date"] for row in rows})
    speeds = {name: sorted(row["ceilings"][name] for row in rows) for name in ("float32", "bfloat16", "copy")}
    spans = {
        name: f"{s[0]:.0f}" if round(s[0]) == round(s[-1]) else f"{s[0]:.0f} to {s[-1]:.0f}"
        for name, s in speeds.items()
    }
    sides: dict[str, dict[str, str]] = {}
    for row in rows:
        sides.setdefault("ours", {}).update(row["versions"].get("ours", {}))
        sides.setdefault(row["peer_name"], {}).update(row["versions"].get("peer", {}))
    told = "; ".join(
        f"{side}: " + ", ".join(f"{name} {number}" for name, number in sorted(versions.items()))
        for side, versions in sides.items()
    )
    return (
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}, {machine['cores']} cores of {machine['cpu']} "
        f"({', '.join(machine['flags']) or 'no flags of note'}), {machine['memory_gb']:.0f} GB, {machine['system']}. "
        f"Ceilings: {spans['float32']} (float32) and {spans['bfloat16']} (bfloat16) GFLOP/s, copying {spans['copy']} "
        f"GB/s. {told}." + micro_batches({row["name"]: row["micro_batch_tokens"] for row in rows})
    )


def micro_batches(sizes: Mapping[str, int | None]) -> str:
    """Of how many tokens ours were, by row, in a sentence; "" where no row says so."""
    rows = dict[int, list[str]]()
    for name, size in sizes.items():
        if size is not None:
            rows.setdefault(size, []).append(name)
    told = (f"{size:,} tokens" + f" ({'; '.join(names)})" * (len(rows) > 1) for size, names in rows.items())
    return " Ours in micro-batches of " + ", of ".join(told) + "." if rows else ""


def growth_text(growth: Mapping[str, Any]) -> str:
    """The fits in a table, the memory in a sentence."""
    lines = ["| what grows | from, to | seconds | fit: seconds = | R² |", "|---" * 5 + "|"]
    for one in growth["series"]:
        fit, x, y = one["fit"], one["x"], one["seconds"]
        lines.append(
            f"| {one['name']} | {x[0]:.4g} to {x[-1]:.4g} {one['unit']} | {y[0]:.2f} to {y[-1]:.2f} "
            f"| {fit['intercept']:.3g} + {fit['slope']:.3g} a unit | {fit['r2']:.3f} |"
        )
    memory = growth["memory"]
    held, settled = memory["rss_gb"], memory["settled"]
    lines += [
        "",
        f"Memory over {len(held)} steps ({memory['work']}): {held[settled]:.3f} GB after {settled} steps, "
        f"{held[-1]:.3f} GB at the end, {1000 * 100 * memory['fit']['slope']:+.2f} MB a hundred steps by the fit.",
        f"Measured {growth['date']} with `{growth['command']}`.",
    ]
    return "\n".join(lines)


def aims(kind: Kind, images: Sequence[str], suffix: str = "") -> list[str]:
    """What was aimed at and what came of it on one kind of machine, with its pictures."""
    return [
        targets(kind[0]),
        *shown(images, f"speed{suffix}", "Ratios by benchmark, with what was aimed at"),
        *shown(images, f"speed_ceiling{suffix}", "The share of the machine's ceiling, ours and the peer's"),
    ]


def shown(images: Sequence[str], name: str, says: str) -> list[str]:
    return ["", f"![{says}](images/{name}.png)"] if name in images else []


def measured(result: Mapping[str, Any]) -> list[str]:
    """A benchmark's rows on one kind of machine, and where and how they were measured."""
    command = result["command"]
    return [
        table(result["rows"]),
        "",
        where(result),
        f"Measured with `{command}` and what its rows' dates say.",
    ]


def text(native: Kind, without: Kind, images: Sequence[str]) -> str:
    """The whole page. native, without: results of machines that multiply bfloat16, and of those that do not; images:
    names of the pictures that stand in docs/images."""
    parts = [INTRO, "## What was aimed at\n", *aims(native, images), COUNTED]
    if without[0]:
        parts += [WITHOUT, *aims(without, images, "_float32")]
    for name in CASES:
        here = [kind[0][name] for kind in (native, without) if name in kind[0]]
        parts += [f"\n## `{name}`: {NAMES[name]}"] if here else []
        for result in here:
            parts += ["", *measured(result)]
    for name, head, tell in (("time_to_reward", REWARD, reward_text), ("growth", GROWTH, growth_text)):
        there = [kind[1][name] for kind in (native, without) if name in kind[1]]
        parts += [head] if there else []
        for one in there:
            parts += ["", tell(one)]
        if there and name == "growth":
            parts += shown(images, "speed_growth", "Seconds a step by what grows, with fits")
    return "\n".join(parts) + "\n"


def read(place: Path = results.PLACE) -> Kind:
    """All results of one kind of machine by name, and those that are no rows beside a peer's."""
    there = {path.stem: path for path in place.glob("*.json")}
    found = {name: results.read(there[name]) for name in CASES if name in there}
    others = [name for name in ("time_to_reward", "growth") if name in there]
    return found, {
        name: files.read_json(there[name], f"run `python -m benchmarks {name}`") for name in others
    }


def pictures(place: Path = IMAGES) -> list[str]:
    return sorted(path.stem for path in place.glob("speed*.png"))


def write() -> None:
    """The page and its pictures."""
    native, without = read(), read(results.WITHOUT)
    for (found, _), suffix in ((native, ""), (without, "_float32")):
        if found:
            charts.draw_ratios({name: best_of(found, name) for name in TARGETS}, IMAGES, suffix)
    if growth := native[1].get("growth") or without[1].get("growth"):
        charts.draw_growth(growth, IMAGES)
    files.write_text(PAGE, text(native, without, pictures()))
    print(f"written: {PAGE}")
