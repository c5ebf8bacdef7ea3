"""Writing that a kill cannot halve: beside, synced, renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from plaudit.types import UserError

_BESIDE = re.compile(r"\.new\..+\.[a-z0-9_]{8}")
"""What is being written, or was when its writer was killed: .new.NAME.RANDOM."""
OTHER_KINDS = (".csv", ".parquet", ".gz")
"""Endings that say another kind of file than JSON lines."""


def write_text(path: Path, text: str) -> None:
    """Replace the file's content at once. UserError when the disk is full or the place cannot be written."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Replace the file with the value as indented JSON; NaN is refused (ValueError)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, fix: str) -> dict[str, Any]:
    """The object that the file holds. UserError, with how to mend it, where it cannot be read or holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read ({error})", where=str(path), fix=fix) from None
    return found


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace the file with the rows as JSON lines. Half a character stays the escape that it was read as, and what
    JSON has no word for (a table's dates) is written as text."""
    lines = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    write_bytes(path, lines.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the file's content at once."""
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".new.{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(file.fileno(), 0o644)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise
        _sync(path.parent)


def check_place(path: Path, *inputs: str | Path) -> None:
    """UserError, before hours of work, where JSON lines could not be written at the end, would stand under the name of
    something else, or would replace what they are made of."""
    refuse_inputs(path, *inputs)
    if path.is_dir():
        raise UserError("is a directory", where=str(path), fix="name a file")
    if path.suffix.lower() in OTHER_KINDS:
        raise UserError(
            f"would hold JSON lines, not what {path.suffix} says", where=str(path), fix="end it in .jsonl"
        )
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.parent / f".{path.name}.probe"
        probe.touch()
        probe.unlink()


def refuse_inputs(path: Path, *inputs: str | Path) -> None:
    """UserError where the path is that of an input, by whatever name or link."""
    for name in inputs:
        with contextlib.suppress(OSError, ValueError):  # what is not there is not the same
            if path.samefile(Path(name).expanduser()):
                raise UserError("is the input itself", where=str(path), fix="choose another place")


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory to fill; when the block ends well it stands at the path, replacing what stood there."""
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".new.{path.name}."))
        try:
            beside.chmod(0o755)
            yield beside
            for entry in [*beside.rglob("*"), beside]:
                if entry.is_file() or entry.is_dir():
                    _sync(entry)
            _put_in_place(beside, path)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        _sync(path.parent)


def digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and digests of a directory's files. Of a file beyond 64 MB, such as weights,
    it is the size, the first and the last megabyte that count."""
    found = hashlib.sha256()
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            found.update(f"{file.relative_to(path)}\n{digest(file)}\n".encode("utf-8", "surrogateescape"))
        return found.hexdigest()
    size = path.stat().st_size
    with path.open("rb") as opened:
        if size <= 64 << 20:
            return hashlib.file_digest(opened, "sha256").hexdigest()
        for place in (0, size - (1 << 20)):
            opened.seek(place)
            found.update(opened.read(1 << 20))
    found.update(str(size).encode())
    return found.hexdigest()


def is_left_over(path: Path) -> bool:
    """Whether the path has the name of something half written."""
    return _BESIDE.fullmatch(path.name) is not None


def sweep(directory: Path) -> None:
    """Remove what killed writers left half written anywhere below the directory. Nobody may be writing there."""
    for path in sorted(directory.rglob(".new.*")):
        if is_left_over(path):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file or a whole directory; that it is gone already is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _put_in_place(beside: Path, path: Path) -> None:
    """Rename a directory; what stood at the path goes only once the new one stands."""
    if not path.exists():
        os.replace(beside, path)
        return
    old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".new.{path.name}."))
    try:
        os.replace(path, old / path.name)
        try:
            os.replace(beside, path)
        except BaseException:
            os.replace(old / path.name, path)
            raise
    finally:
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def writable(path: Path) -> Iterator[None]:
    """Turns the errors of writing to the path into UserErrors; those about other files pass as they are."""
    try:
        yield
    except OSError as error:
        if error.errno is None or not _concerns(error, path):
            raise
        if isinstance(error, PermissionError):
            raise UserError(
                "no permission to write here", where=str(path), fix="choose another place"
            ) from None
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "free some space" if full else "choose another place"
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot be written ({reason})", where=str(path), fix=hint) from None
    except Exception as error:
        if f"(os error {errno.ENOSPC})" not in str(error):  # as safetensors says it
            raise
        reason = os.strerror(errno.ENOSPC).lower()
        raise UserError(f"cannot be written ({reason})", where=str(path), fix="free some space") from None


def _concerns(error: OSError, path: Path) -> bool:
    """Whether the error names no file, or one above the path, or one beside or below it."""
    if not isinstance(error.filename, str | os.PathLike):
        return True
    path, named = path.absolute(), Path(error.filename).absolute()
    return named in path.parents or path.parent in named.parents


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
