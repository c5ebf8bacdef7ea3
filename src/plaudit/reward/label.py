"""AI feedback as records: what `plaudit judge` calls. Each answer is a line of its own, and is asked for once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from plaudit import files
from plaudit.data.dialects import DECODERS
from plaudit.data.shapes import filled, read_prompt, to_json, whole_text
from plaudit.data.sources import rows
from plaudit.reward.judge import Compared, Judge, Rated
from plaudit.reward.rubric import RUBRICS, as_text
from plaudit.types import Demonstration, Preference, Prompt, Ranking, Rating, UserError


class Item(NamedTuple):
    """What is judged: one answer, or two."""

    prompt: Prompt
    texts: tuple[str, ...]


def label(judge: Judge, source: Path, out: Path) -> dict[str, float]:
    """Write a preference or rating of each item in `source` to `out`, one line each, with the judge as its rater.

    A line is a record (docs/records.md) with "judge" beside it: the item's digest, and for a preference the places
    that won in the two orders. Lines are added as answers come, in the items' order, and synced; before the first
    there is no file. Started again, it asks only for what is missing. Returns counts (of questions, too: asked, kept
    from before, without a verdict in their reply), and what the swap revealed. UserError for a source or an `out` that
    cannot be read, and for an `out` that is the source, holds answers of another judge or to other items, or anything
    else.
    """
    files.check_place(out, source)
    items = list(dict.fromkeys(read_items(source, judge.config.protocol)))
    if not items:
        raise UserError("holds nothing to judge", where=str(source), fix="check that it is the right file")
    digests = [digest_of(judge, item) for item in items]
    done = _resume(out, set(digests))
    missing = [(item, digest) for item, digest in zip(items, digests, strict=True) if digest not in done]
    counts: dict[str, float] = {"items": len(items), "already": len(items) - len(missing), "no_verdict": 0}
    counts |= {"questions_asked": 0, "replies_kept": 0, "replies_refused": 0}
    for (item, digest), found in zip(missing, judged(judge, [i for i, _ in missing]), strict=True):
        counts["questions_asked"] += sum(shares.sent for shares in found.cost)
        counts["replies_kept"] += sum(shares.kept for shares in found.cost)
        counts["replies_refused"] += sum(shares.refused for shares in found.cost)
        row = line_of(judge, item, digest, found)
        if row is None:
            counts["no_verdict"] += 1
            continue
        _add(out, json.dumps(row, ensure_ascii=False) + "\n")
        done[digest] = row
    _add(out, "")
    return counts | {"written": len(done)} | swap_figures(list(done.values()))


def read_items(source: Path, protocol: str) -> Iterator[Item]:
    """What a file asks a judge about: rows with "prompt" and "completion" or "completions", or records of any shape.

    Rating: every answer. Pairwise: the pairs within a row that has several answers, and the pairs among all single
    answers to one prompt. What people said of them is not read.
    """
    single: dict[Prompt, list[str]] = {}
    for where, row in rows(source):
        try:
            found = list(_answers(filled(row)))
        except UserError as error:
            raise UserError(error.what, where=where, fix=error.fix) from None
        for prompt, texts in found:
            if protocol == "rating":
                yield from (Item(prompt, (text,)) for text in texts)
            elif len(texts) > 1:
                yield from (Item(prompt, pair) for pair in combinations(texts, 2))
            else:
                single.setdefault(prompt, []).extend(texts)
    for prompt, answers in single.items():
        yield from (Item(prompt, pair) for pair in combinations(dict.fromkeys(answers), 2))


def _answers(row: Mapping[str, Any]) -> Iterator[tuple[Prompt, tuple[str, ...]]]:
    several, one = row.get("completions"), row.get("completion")
    if isinstance(several, list) and all(isinstance(text, str) for text in several):
        yield read_prompt(row), tuple(whole_text(text, "completions") for text in several)
    elif isinstance(one, str):
        yield read_prompt(row), (whole_text(one, "completion"),)
    else:
        for record in DECODERS["auto"](row):
            if isinstance(record, Preference | Ranking):
                yield record.prompt, tuple(record.completions)
            elif isinstance(record, Demonstration | Rating):
                yield record.prompt, (record.completion,)


def judged(judge: Judge, items: Sequence[Item]) -> Iterator[Rated | Compared]:
    """The judge's answers in the items' order."""
    if judge.config.protocol == "rating":
        return judge.rate([(as_text(item.prompt), item.texts[0]) for item in items])
    return judge.compare([(as_text(item.prompt), item.texts[0], item.texts[1]) for item in items])


def line_of(judge: Judge, item: Item, digest: str, found: Rated | Compared) -> dict[str, Any] | None:
    """A record with the judge as its rater; None without a verdict."""
    about: dict[str, Any] = {"digest": digest}
    if isinstance(found, Rated):
        if found.rating is None:
            return None
        rating = Rating(item.prompt, item.texts[0], {"overall": found.rating}, judge.name)
        return {**to_json(rating), "judge": about}
    if found.choice is None:
        return None
    about["places"] = list(found.places)
    pair = (item.texts[0], item.texts[1])
    return {**to_json(Preference(item.prompt, pair, found.choice, rater=judge.name)), "judge": about}


def digest_of(judge: Judge, item: Item) -> str:
    """Of all that an answer depends on: the item, the model, and what it is asked."""
    c = judge.config
    content: list[Any] = [
        c.model,
        c.base_url,
        judge.name,
        c.protocol,
        c.language,
        c.rubric or RUBRICS[c.language],
        c.seed,
    ]
    content += [c.temperature, c.max_tokens, dict(c.request), as_text(item.prompt), list(item.texts)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def swap_figures(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What asking in both orders revealed: the share of pairs on which the orders disagreed, and of all verdicts that
    named a place, the share of the first (a half for a judge without a taste for a place)."""
    pairs = [line["judge"]["places"] for line in lines if "places" in line["judge"]]
    if not pairs:
        return {}
    named = [place for places in pairs for place in places if place != "tie"]
    apart = sum((a, b) not in ((0, 1), (1, 0), ("tie", "tie")) for a, b in pairs)
    figures = {
        "disagreed": apart / len(pairs),
        "ties": sum(line["choice"] == "tie" for line in lines) / len(pairs),
    }
    return figures | ({"first_place": named.count(0) / len(named)} if named else {})


def _add(out: Path, text: str) -> None:
    """Add to the file, which is made where it is not there, and sync it: an answer that was paid for is kept."""
    with files.writable(out), out.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _resume(out: Path, digests: set[str]) -> dict[str, dict[str, Any]]:
    """The answers that an earlier start wrote whole, by digest; a line that a kill cut short is taken off the file.
    UserError where the file holds anything else, and it stays as it is."""
    if not out.exists():
        return {}
    fix = "choose another --out"
    try:
        data = out.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        half = data[len(whole) :]
        if not _cut_short(half):
            raise ValueError
        lines = [json.loads(line) for line in whole.decode().split("\n") if line]
        done = {line["judge"]["digest"]: line for line in lines}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError("is there, and holds no answers of a judge", where=str(out), fix=fix) from None
    if done.keys() - digests:
        raise UserError("holds answers of another judge, or to other items", where=str(out), fix=fix)
    if half:
        with files.writable(out):
            os.truncate(out, len(whole))
    return done


def _cut_short(half: bytes) -> bool:
    """Whether a kill may have left this of a line of ours: it begins as they do, and is no whole line of others."""
    begin = b'{"prompt": '
    if not (begin.startswith(half) or half.startswith(begin)):
        return False
    try:
        return "judge" in json.loads(half)
    except ValueError:
        return True
