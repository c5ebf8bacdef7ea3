"""Where rows come from: lines, JSON arrays, CSV cells, datasets. Each row travels with its place; no torch."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from plaudit.data.shapes import Row
from plaudit.types import UserError

ENDINGS = (".jsonl", ".json", ".csv", ".parquet")
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")

# Cells of these columns are JSON (a text that is not JSON stands for itself); all others are text or messages.
_JSON_COLUMN = re.compile(r"completions|choice|strength|presented|ranking|scores|label|messages|annotator\d+")
_MESSAGES = re.compile(r"\[\s*\{")
# What a cell cannot begin with and stay a text: a formula, messages, nothing at all. One more ' is put before.
_SPECIAL = re.compile(r"'*(?:[=+\-@\t\r\n＝＋－＠]|\[\s*\{|\Z)")
_ESCAPED = re.compile(r"'" + _SPECIAL.pattern)
# A blank cell is an absent key, but an empty text where a companion says that the row is about this column.
_COMPANIONS = {
    "chosen": ("rejected",),
    "rejected": ("chosen",),
    "completion": ("scores", "label"),
    "response1": ("response2", "annotator1"),
    "response2": ("response1", "annotator1"),
}


def rows(source: str | Path, split: str | None = None) -> Iterator[tuple[str, Row]]:
    """The rows of a file, a dataset directory or a dataset on the hub, each with its place for error messages.

    A place is "file:line", or "file: row N" for CSV, JSON arrays and datasets (N counts records from 1).
    UserError when the source is missing, unreadable or of an unknown kind.
    """
    path = Path(source).expanduser()
    if source and os.path.isdir(path):
        yield from _numbered(str(source), _directory(path, split))
    elif source and os.path.exists(path):
        if split is not None:
            raise UserError("is a single file without splits", where=str(source), fix="leave the split out")
        yield from _file_rows(path)
    elif (
        isinstance(source, str)
        and _HUB_NAME.fullmatch(source)
        and not source.endswith((*ENDINGS, ".gz", ".txt"))
    ):
        yield from _numbered(source, _hub(source, split))
    else:
        raise UserError("there is no such file", where=str(source), fix="check the path")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, numbered from 1, without their ends (LF or CRLF; no other character ends one)."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        line = line.removesuffix("\r")
        if line.strip():
            yield number, line


def ending(path: Path) -> tuple[str, bool]:
    """The file's kind by its name, such as ".csv", and whether it is gzipped."""
    gzipped = path.suffix.lower() == ".gz"
    return (path.with_suffix("") if gzipped else path).suffix.lower(), gzipped


def to_csv(table: list[Row]) -> str:
    """The rows as CSV with a header (CRLF); texts are written so that no spreadsheet runs them as formulas."""
    columns = list(dict.fromkeys(key for row in table for key in row))
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(columns)
    writer.writerows([_to_cell(row[key]) if key in row else "" for key in columns] for row in table)
    return out.getvalue()


def _file_rows(path: Path) -> Iterator[tuple[str, Row]]:
    kind, gzipped = ending(path)
    if kind == ".jsonl":
        yield from _jsonl_rows(path)
    elif kind == ".json":
        # Many a dataset keeps JSON lines under this name.
        array = read_text(path).lstrip().startswith("[")
        yield from _numbered(str(path), _json_array(path)) if array else _jsonl_rows(path)
    elif kind == ".csv":
        yield from _csv_rows(path)
    elif kind == ".parquet" and not gzipped:
        yield from _numbered(
            str(path), _load(str(path), "train", kind="parquet", data_files=str(path.absolute()))
        )
    else:
        raise UserError(
            f"is of no known kind ({kind or 'its name has no ending'})",
            where=str(path),
            fix=f"name it by what it holds: {', '.join(ENDINGS)}",
        )


def read_text(path: Path) -> str:
    """The file's text without a byte-order mark."""
    try:
        data = path.read_bytes()
        if path.suffix.lower() == ".gz":
            data = gzip.decompress(data)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise UserError(
            "is not gzip, or is cut short", where=str(path), fix="fetch or pack it again"
        ) from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot be read ({reason})", where=str(path), fix="check the path") from None
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError("is not UTF-8 text", where=f"{path}:{line}", fix="save it as UTF-8") from None


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Row]]:
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        value = _parse_json(line, where, "put one JSON object on each line")
        yield where, _object(value, where)


def _json_array(path: Path) -> list[Any]:
    value: list[Any] = _parse_json(read_text(path), str(path), "mend the JSON")
    return value


def _parse_json(text: str, where: str, fix: str) -> Any:
    try:
        return _loads(text, where)
    except json.JSONDecodeError as error:
        place = where if "\n" not in text else f"{where}:{error.lineno}"
        raise UserError(f"is not JSON ({error.msg}, column {error.colno})", where=place, fix=fix) from None
    except RecursionError:
        raise UserError("is JSON nested too deep", where=where, fix="flatten it") from None
    except ValueError:
        raise UserError("holds a number too long to read", where=where, fix="shorten it") from None


def _loads(text: str, where: str) -> Any:
    """As json.loads. UserError for a key that stands twice in one object: which of the two was meant, nobody knows."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise UserError(
                f"has the key {twice!r} twice in one object", where=where, fix="leave one of the two out"
            )
        return found

    return json.loads(text, object_pairs_hook=once)


def _numbered(source: str, values: Iterable[Any]) -> Iterator[tuple[str, Row]]:
    for number, value in enumerate(values, 1):
        where = f"{source}: row {number}"
        yield where, _object(value, where)


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise UserError(
            f"is {type(value).__name__}, not an object", where=where, fix='write {"key": value, ...}'
        )
    return value


def _csv_rows(path: Path) -> Iterator[tuple[str, Row]]:
    text = read_text(path)
    if len(text) > csv.field_size_limit():
        csv.field_size_limit(len(text))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] | None = None
    number = 0
    try:
        for cells in reader:
            if not cells:
                continue
            if columns is None:
                columns = _header(cells, str(path))
                continue
            number += 1
            where = f"{path}: row {number}"
            if len(cells) != len(columns):
                raise UserError(
                    f"has {len(cells)} cells where the header has {len(columns)}",
                    where=where,
                    fix="quote cells that hold commas or line ends",
                )
            yield where, _from_cells(columns, cells, where)
    except csv.Error as error:
        where = f"{path}: row {number + 1}"
        raise UserError(
            f"is not CSV ({error})", where=where, fix='write a quote inside a cell as ""'
        ) from None


def _header(cells: list[str], where: str) -> list[str]:
    columns = [cell.strip() for cell in cells]
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise UserError(f"has two columns named {twice[0]!r}", where=where, fix="rename one")
    return columns


def _from_cells(columns: list[str], cells: list[str], where: str) -> Row:
    filled = {column: cell for column, cell in zip(columns, cells, strict=True) if cell}
    row = {column: _from_cell(column, cell, where) for column, cell in filled.items()}
    for column in columns:
        if column not in filled and any(other in filled for other in _COMPANIONS.get(column, ())):
            row[column] = ""
    return row


def _to_cell(value: Any) -> str:
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return "'" + value if _SPECIAL.match(value) else value


def _from_cell(column: str, cell: str, where: str) -> Any:
    """Undoes `_to_cell` exactly."""
    if _JSON_COLUMN.fullmatch(column):
        try:
            return _loads(cell, where)
        except (ValueError, RecursionError):
            return {"True": True, "False": False}.get(cell, cell)
    if _MESSAGES.match(cell):
        try:
            return _loads(cell, where)
        except (ValueError, RecursionError):
            raise UserError(
                f"{column} begins like messages but is not JSON",
                where=where,
                fix="write the messages as JSON, or put ' before a text",
            ) from None
    return cell[1:] if _ESCAPED.match(cell) else cell


def _directory(path: Path, split: str | None) -> list[Any]:
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        return _load(str(path), split, kind="disk")
    if any(path.glob("*.parquet")) or any(path.glob("*/*.parquet")):
        return _load(str(path), split, kind=str(path.absolute()))
    raise UserError(
        "is a directory but no dataset (neither save_to_disk's files nor parquet)",
        where=str(path),
        fix="name a file in it",
    )


def _hub(name: str, split: str | None) -> list[Any]:
    try:
        return _load(name, split, kind="hub")
    except UserError as error:
        raise UserError(
            f"is no file here, and the hub did not give a dataset of this name ({error.what})",
            where=name,
            fix="check the name, the network, and HF_TOKEN if the dataset is private",
        ) from None


def _load(name: str, split: str | None, *, kind: str, **options: str) -> list[Any]:
    """The rows of one split. Local parquet is converted in a directory of its own, not in the user's cache."""
    import datasets

    try:
        if kind == "disk":
            return _rows_of(datasets.load_from_disk(name), split)
        if kind == "hub":
            return _rows_of(datasets.load_dataset(name), split)
        with tempfile.TemporaryDirectory() as cache:
            return _rows_of(datasets.load_dataset(kind, cache_dir=cache, **options), split)
    except UserError as error:
        raise UserError(error.what, where=name, fix=error.fix) from None
    except Exception as error:  # whatever the library's readers raise; nothing of ours runs in there
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"cannot be loaded ({reason})", where=name, fix="check that it is whole") from None


def _rows_of(loaded: Any, split: str | None) -> list[Any]:
    if isinstance(loaded, dict):
        splits = list(loaded)
        chosen = split or ("train" if "train" in splits or len(splits) != 1 else splits[0])
        if chosen not in splits:
            raise UserError(f"has no split {chosen!r}", fix=f"choose one of: {', '.join(map(str, splits))}")
        return list(loaded[chosen])
    if split is not None and str(getattr(loaded, "split", None)) != split:
        raise UserError(f"has no split {split!r}", fix="leave the split out")
    return list(loaded)
