"""What is worked on: real texts (HH-RLHF harmless, its test part) as ids, the same for ours and for the peer.

Ours reads records from a file, as its recipes do, and the peer is given the very ids that ours reads there: a text is
taken only where it comes back from the file as the ids that were meant.
"""

from __future__ import annotations

import functools
import gzip
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plaudit import files
from plaudit.data.tokenizer import Tokenizer
from plaudit.models.load import cache_directory
from plaudit.types import UserError
from speed.operations import Row

PROMPT = 64
SEQUENCE = 256
MIXED = (40, 73, 110, 150, 200, 270, 380, 512)
"""Lengths, in tokens, that the texts of a mixed batch are nearest to."""
TURN = "\n\nAssistant:"
SILENT = "<empty_output>"
"""A token of SmolLM2's vocabulary that it gives a probability of 3e-8: see `unending`."""
PAD = "<jupyter_script>"

Ids = list[int]


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's work. records: what ours reads, a JSON object a line; ids: what the peer is given; rows: prompts with
    the completions that share them, for counting; tokens: real ones, of which the tokens a second are."""

    records: list[dict[str, Any]]
    ids: list[dict[str, Ids]]
    rows: list[Row]
    tokens: int


@functools.cache
def texts() -> tuple[tuple[str, str], ...]:
    """(chosen, rejected) of every pair. UserError where the data is absent."""
    root = os.environ.get("PLAUDIT_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data"
    path = Path(root) / "hh_harmless" / "pairs.jsonl.gz"
    if not path.exists():
        raise UserError(
            f"{path} is absent",
            where="PLAUDIT_TEST_DATA",
            fix="set it to a folder with hh_harmless/pairs.jsonl.gz (Anthropic's hh-rlhf, harmless-base, test)",
        )
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return tuple((row["chosen"], row["rejected"]) for row in rows)


def unending(source: Path) -> Path:
    """A copy of SmolLM2's directory whose end-of-text token is one that it never says: every completion then has the
    full length on both sides, from the distribution as it is, without forbidding any token. The weights are the same
    file. Another model, whose vocabulary has no such token, is taken as it is."""
    vocabulary = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    known = {entry["content"]: entry["id"] for entry in vocabulary["added_tokens"]}
    if SILENT not in known or PAD not in known:
        return source
    target = cache_directory() / "models" / f"{source.name}-unending"
    if (target / "config.json").exists():
        return target
    with files.new_directory(target) as place:
        for path in source.iterdir():
            if path.suffix == ".safetensors":
                os.link(path, place / path.name)
                continue
            text = path.read_text(encoding="utf-8")
            if path.name in ("config.json", "generation_config.json", "tokenizer_config.json"):
                names = {"eos_token_id": known[SILENT], "pad_token_id": known[PAD]}
                names = {"eos_token": SILENT, "pad_token": PAD} if path.name.startswith("tok") else names
                text = json.dumps(json.loads(text) | names, indent=2)
            files.write_text(place / path.name, text)
    return target


def prompts(tokenizer: Tokenizer, count: int, completions: int, new: int) -> Batch:
    """So many prompts of exactly 64 tokens: the last 64 of what was said up to an assistant's last turn."""
    found: list[tuple[str, Ids]] = []
    for chosen, _ in texts():
        said = tokenizer.encode(chosen[: chosen.rfind(TURN) + len(TURN)])[-PROMPT:]
        text = tokenizer.decode(said)
        if len(said) == PROMPT and tokenizer.render(text) == said:
            found.append((text, said))
        if len(found) == count:
            break
    rows = [Row(PROMPT, [new] * completions) for _ in found]
    enough(len(found), count)
    return Batch(
        [{"prompt": text} for text, _ in found],
        [{"prompt": ids} for _, ids in found],
        rows,
        count * completions * (PROMPT + new),
    )


def sequences(tokenizer: Tokenizer, mixed: bool, length: int = SEQUENCE, count: int = 8) -> Batch:
    """Texts to imitate, of exactly `length` tokens or (mixed) whole ones of lengths 40 to 512. The first token is the
    prompt, so that the loss reads every token that it can."""
    found = []
    for chosen, _ in nearest(tokenizer) if mixed else texts():
        said = tokenizer.encode(chosen)
        made = written(tokenizer, said if mixed else said[: length - 1], 1)
        if made is not None and (mixed or len(made[1]) + len(made[3]) == length):
            found.append(made)
        if len(found) == count:
            break
    enough(len(found), count)
    return Batch(
        [{"prompt": prompt, "completion": completion} for prompt, _, completion, _ in found],
        [{"prompt": ids, "completion": answer} for _, ids, _, answer in found],
        [Row(len(ids), [len(answer)]) for _, ids, _, answer in found],
        sum(len(ids) + len(answer) for _, ids, _, answer in found),
    )


def pairs(tokenizer: Tokenizer, apart: bool, length: int = SEQUENCE, count: int = 8) -> Batch:
    """Comparisons, both sides of exactly `length` tokens: the answers as people judged them, the longer cut to the
    shorter, after as much of the dialogue before them as there is room for. As they come, that dialogue is the prompt
    that both sides share; apart: the same tokens, of which the prompt is the first alone, which gives ours next to
    nothing to share."""
    found, begun = [], set[int]()
    for pair in texts():
        both = [tokenizer.encode(text) for text in pair]
        shared = common(both)
        answer = min(map(len, both)) - shared
        if answer < 1 or both[0][shared:][:answer] == both[1][shared:][:answer]:
            continue
        before = both[0][:shared][-(length - 1 - answer) :]
        if len(before) + answer + 1 != length or before[0] in begun:  # equal prompts would be one prompt
            continue
        a, b = (
            written(tokenizer, before + ids[shared : shared + answer], 1 if apart else len(before))
            for ids in both
        )
        if a is None or b is None:
            continue
        begun.add(before[0])
        found.append((a, b))
        if len(found) == count:
            break
    enough(len(found), count)
    return Batch(
        [{"prompt": a[0], "completions": [a[2], b[2]], "choice": 0} for a, b in found],
        [{"prompt": a[1], "chosen": a[3], "rejected": b[3]} for a, b in found],
        [Row(len(a[1]), [len(a[3]), len(b[3])]) for a, b in found],
        sum(2 * len(a[1]) + len(a[3]) + len(b[3]) for a, b in found),
    )


def enough(found: int, wanted: int) -> None:
    """UserError where the data has fewer texts that fit."""
    if found < wanted:
        raise UserError(
            f"has {found} texts that fit, not {wanted}", where="PLAUDIT_TEST_DATA", fix="give it whole"
        )


def nearest(tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """For each length of a mixed batch, the pair whose longer side comes nearest to it, each pair once."""
    sizes = [tuple(len(tokenizer.encode(text.strip())) for text in pair) for pair in texts()]
    fit = {place for place, size in enumerate(sizes) if max(size) <= max(MIXED) and min(size) >= 24}
    for wanted in MIXED:
        place = min(fit, key=lambda p: (abs(max(sizes[p]) - wanted), p))
        fit.remove(place)
        chosen, rejected = texts()[place]
        yield chosen.strip(), rejected.strip()


def written(tokenizer: Tokenizer, ids: Sequence[int], prompt: int) -> tuple[str, Ids, str, Ids] | None:
    """The ids as text of a prompt and of a completion, with the ids that each is read as (the completion's ended);
    None where the texts are read as other ids than were meant."""
    asked, said = list(ids[:prompt]), list(ids[prompt:])
    question, answer = tokenizer.decode(asked), tokenizer.decode(said)
    if not question or not answer or tokenizer.render(question) != asked or tokenizer.encode(answer) != said:
        return None
    return question, asked, answer, tokenizer.complete(answer)


def common(both: Sequence[Ids]) -> int:
    """How many ids two sequences begin with together."""
    return next(
        (at for at, (a, b) in enumerate(zip(*both, strict=False)) if a != b), min(len(ids) for ids in both)
    )
