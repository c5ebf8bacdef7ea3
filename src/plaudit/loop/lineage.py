"""What every model of a loop was made from, by content hash; and which of them something that is taken back touches."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import plaudit
from plaudit import config as configs
from plaudit import files
from plaudit.feedback.projects import Projects
from plaudit.loop import streaming
from plaudit.loop.drawing import Row, read_rows
from plaudit.loop.round import MEND, POLICY, Result, Round, event_row, gathered, judgement_row, place_of
from plaudit.models.load import digest_of, find_model

GATE = "gate"
"""The source of judgements that decide, and are not learned from."""
VERDICT = ("decision", "why", "judges", "prompts", "rates", "bounds", "intervals")


def write(round: Round, result: Result) -> None:
    """rounds/N/lineage.json, with every judgement in events.jsonl beside it, and the model's card."""
    rows = [*_learned(round), *_behaved(round), *_judged_at_gate(round)]
    files.write_rows(round.place / "events.jsonl", rows)
    found = describe(round, result, rows)
    files.write_json(round.place / "lineage.json", found)
    files.write_text(round.place / POLICY / "model" / "README.md", card(round, found))


def _learned(round: Round) -> list[Row]:
    """What stands; and what the online mode has taken a step for, and was changed or taken back since."""
    rows = [judgement_row(one) for one in gathered(round, round.done("collect")["seq"])]
    stands = {row["event"] for row in rows}
    return rows + [row for row in streaming.learned(round) if row["event"] not in stands]


def _behaved(round: Round) -> list[Row]:
    """What was learned from without a word: the responses, by whoever asked for them."""
    path = round.place / "behaviour.jsonl"
    return [
        {
            "event": row["response"],
            "item": row["response"],
            "rater": row["rater"],
            "source": "behaviour",
            "versions": [row["version"]],
            "digest": digest([json.dumps(row["record"], sort_keys=True)])[:16],
        }
        for row in (read_rows(path) if path.exists() else [])
    ]


def _judged_at_gate(round: Round) -> list[Row]:
    if (project := round.project("gate")) is None:
        return []
    ours = set(Projects(round.store).items(project.id))
    events = (event for event in round.store.current() if event.kind == "comparison")
    return [event_row(event, GATE, []) for event in events if event.item in ours]


def describe(round: Round, result: Result, rows: Sequence[Row]) -> dict[str, Any]:
    """lineage.json: every digest is of content (`files.digest`; of judgements, over theirs in order of the log)."""
    config, verdict = round.config, round.done("gate")
    by_source: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_source[row["source"]].append(row)
    data = [round.directory / "prompts" / f"{split}.jsonl" for split in ("train", "heldout")]
    data += [Path(path) for path in (*config.data, *(suite.prompts for suite in config.suites.values()))]
    return {
        "round": round.number,
        "version": result["candidate"],
        "published": result["published"],
        "parents": {
            "policy": {"version": round.standing.version, "round": round.standing.champion},
            "anchor": round.start,
            "base": {"model": config.model, "digest": digest_of(find_model(config.model))},
        },
        "judgements": {
            "up_to": round.done("collect")["seq"],
            "sources": {
                source: {
                    "judgements": len(some),
                    "raters": len({row["rater"] for row in some}),
                    "digest": digest(row["digest"] for row in some),
                }
                for source, some in sorted(by_source.items())
                if source != GATE
            },
        },
        "samples_of": sorted({version for row in rows for version in row["versions"]}),
        "queue_ordered_by": round.done("sample")["ordered_by"],
        "settings_follow_round": round.number - 1 or None,
        "data": {str(path): files.digest(path) for path in data if path.exists()},
        "configs": {
            "loop": digest([configs.dump(config)]),
            "reward": files.digest(round.place / "reward" / "config.yaml"),
            "policy": files.digest(round.place / POLICY / "config.yaml"),
        },
        "code": {"plaudit": plaudit.__version__, "digest": code_digest()},
        "gate": {name: verdict[name] for name in VERDICT}
        | {"answers": len(by_source[GATE]), "digest": digest(row["digest"] for row in by_source[GATE])},
        "artifacts": {
            "reward": files.digest(round.place / "reward" / "model"),
            "adapter": files.digest(round.place / POLICY / "adapter"),
        },
    }  # fmt: skip


def digest(parts: Iterable[str]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(f"{part}\n".encode("utf-8", "surrogatepass"))
    return found.hexdigest()


@cache
def code_digest() -> str:
    """Of the package's own modules."""
    root = Path(plaudit.__file__).parent
    return digest(f"{path.relative_to(root)} {files.digest(path)}" for path in sorted(root.rglob("*.py")))


# Cards -----------------------------------------------------------------------------------------------------


def card(round: Round, found: Mapping[str, Any]) -> str:
    """The model's README, as model hubs show it: what it is, what it was made from, how good it is."""
    verdict, measured = found["gate"], round.done("evaluate")
    sources, step_by_step = found["judgements"]["sources"], round.config.mode == "online"
    lines = [
        "---",
        f"base_model: {json.dumps(round.config.model)}",
        f"tags: [plaudit, rlhf, {'kto' if step_by_step else 'ppo'}]",
        "---",
        "",
        f"# {found['version']}",
        "",
        f"Round {round.number} of the loop `{round.config.name}`: `{round.config.model}`, improved "
        + (
            "by a step of KTO for each judgement"
            if step_by_step
            else "by PPO against a reward learned from judgements"
        )
        + f" ({', '.join(sources)}"
        + (", whose raters are simulated). " if "panel" in sources else "). ")
        + ("It was published." if found["published"] else f"It was **kept out**: {verdict['why']}."),
        "",
        "## What it was made from",
        "",
        "| source | judgements | raters | digest |",
        "|---|---:|---:|---|",
        *(
            f"| {name} | {one['judgements']} | {one['raters']} | `{one['digest'][:12]}` |"
            for name, one in sources.items()
        ),
        "",
        f"Parent: `{found['parents']['policy']['version']}`. Samples judged were by: "
        + (", ".join(f"`{version}`" for version in found["samples_of"]) or "nobody's policy")
        + f". Plaudit {found['code']['plaudit']}; every digest is in `lineage.json`.",
        "",
        "## How good it is",
        "",
        f"Judges: {verdict['judges']}, on {verdict['prompts']} held-out prompts, blind.",
        "",
        "| against | wins | 95 % interval | sure to be above |",
        "|---|---:|---|---:|",
        *(
            f"| {name} | {verdict['rates'][name]:.0%} | {low:.0%} to {high:.0%} | {verdict['bounds'][name]:.0%} |"
            for name, (low, high) in verdict["intervals"].items()
        ),
        "",
        f"KL from the start: {measured['kl_per_token']:.3f} nats a token."
        + "".join(
            f" At equal lengths it wins {rate:.0%} against {name}."
            for name, rate in round.done("gate")["length_controlled"].items()
        ),
        "",
        "Its judges are who they are: what they prefer says nothing of truth or safety beyond what they were asked.",
        "",
    ]
    return "\n".join(lines)


# Who is touched --------------------------------------------------------------------------------------------


def touched(directory: Path, rounds: Sequence[int], matches: Callable[[Row], bool]) -> dict[int, list[str]]:
    """The rounds whose candidate depends on judgements that match, each with the ways in which it does."""
    found: dict[int, list[str]] = {}
    versions: dict[str, int] = {}
    for number in rounds:
        about = files.read_json(place_of(directory, number) / "lineage.json", MEND)
        rows = read_rows(place_of(directory, number) / "events.jsonl")
        why = list[str]()
        direct = Counter("gate" if row["source"] == GATE else "learned" for row in rows if matches(row))
        if direct["learned"]:
            why.append(f"learned from {direct['learned']} of these judgements")
        if direct["gate"]:
            why.append(f"{direct['gate']} of them decided at its gate")
        if (parent := about["parents"]["policy"]["version"]) in versions:
            why.append(f"began with {parent}, round {versions[parent]}")
        if said := sorted(set(about["samples_of"]) & set(versions)):
            why.append(f"learned from judgements of samples by {', '.join(said)}")
        if (by := about["queue_ordered_by"]) is not None and int(by) in found:
            why.append(f"its queue was ordered by the reward of round {by}")
        if about["settings_follow_round"] in found:
            why.append(f"its settings follow from the verdict of round {about['settings_follow_round']}")
        if why:
            found[number] = why
            versions[about["version"]] = number
    return found
