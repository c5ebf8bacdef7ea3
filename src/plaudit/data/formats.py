"""Records from and to files: JSONL, JSON, CSV and datasets, in every shape that `dialects` knows. No torch."""

from __future__ import annotations

import difflib
import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from plaudit.data.dialects import DECODERS, ENCODERS, encoded
from plaudit.data.shapes import Row, filled, from_json, read_prompt, to_json
from plaudit.data.sources import ending, read_lines, rows, to_csv
from plaudit.files import write_bytes
from plaudit.types import Prompt, Record, UserError

__all__ = ["from_json", "read_prompts", "read_records", "to_json", "write_records"]


def read_records(source: str | Path, format: str = "auto", split: str | None = None) -> list[Record]:
    """Every record of a file, a dataset directory or a dataset on the hub, in order.

    format: "auto" (each row by its keys), or one of `DECODERS`.
    split: of a dataset that has several; "train" when not given.
    UserError names the first fault, its place (file:line or file: row N) and how to mend it.
    """
    decode = DECODERS[_known(format, DECODERS)]
    records: list[Record] = []
    for where, row in rows(source, split):
        try:
            records += decode(filled(row))
        except UserError as error:
            raise UserError(error.what, where=where, fix=error.fix) from None
    if not records:
        raise UserError("holds no records", where=str(source), fix="check that it is the right file")
    return records


def write_records(
    records: Iterable[Record], path: Path, format: str = "plaudit", *, skip_unrepresentable: bool = False
) -> int:
    """Write the records at once (.jsonl, .json or .csv by the ending, with or without .gz); returns how many were left
    out.

    format: "plaudit" holds all; the others of `ENCODERS` hold what docs/records.md lists. A record that the format
    cannot hold is a UserError that names it, or is left out and counted when skip_unrepresentable is set.
    """
    path = Path(path)
    format = _known(format, ENCODERS)
    kind, gzipped = ending(path)
    if kind not in (".jsonl", ".json", ".csv"):
        raise UserError(
            "has no known ending", where=str(path), fix="end it in .jsonl, .jsonl.gz, .json or .csv"
        )
    table: list[Row] = []
    left_out = 0
    for number, record in enumerate(records, 1):
        try:
            table += encoded(record, format)
        except UserError as error:
            if not skip_unrepresentable:
                where = f"{path}: record {number}"
                fix = error.fix or "leave such records out, or choose another format"
                raise UserError(error.what, where=where, fix=fix) from None
            left_out += 1
    if kind == ".csv":
        text = to_csv(table)
    else:
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in table]
        text = (
            "[\n" + ",\n".join(lines) + "\n]\n" if kind == ".json" else "".join(f"{line}\n" for line in lines)
        )
    data = text.encode()
    write_bytes(path, gzip.compress(data, mtime=0) if gzipped else data)
    return left_out


def read_prompts(path: str | Path, where: Mapping[str, object] | None = None) -> list[Prompt]:
    """The prompts of a file: the key "prompt" of each row, or each line of a .txt.

    where: keep only the rows whose keys have these values, such as {"split": "train"}.
    UserError as for `read_records`, and when no row is left.
    """
    wanted = dict(where or {})
    if ending(Path(path))[0] == ".txt":
        if wanted:
            raise UserError("is plain text, which has no keys to choose by", where=str(path), fix="use JSONL")
        prompts: list[Prompt] = [line for _, line in read_lines(Path(path).expanduser())]
    else:
        prompts = []
        for place, row in rows(path):
            if all(row.get(key) == value for key, value in wanted.items()):
                try:
                    prompts.append(read_prompt(filled(row)))
                except UserError as error:
                    raise UserError(error.what, where=place, fix=error.fix) from None
    if not prompts:
        which = " with " + ", ".join(f"{key} = {value!r}" for key, value in wanted.items()) if wanted else ""
        raise UserError(f"holds no prompts{which}", where=str(path), fix="check that it is the right file")
    return prompts


def _known(format: str, table: Mapping[str, object]) -> str:
    if format in table:
        return format
    near = difflib.get_close_matches(format, table, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(table)}"
    raise UserError(f"unknown format {format!r}", fix=hint)
