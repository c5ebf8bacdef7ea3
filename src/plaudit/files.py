"""Writing that a kill cannot halve: beside, synced, renamed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plaudit.types import UserError


def write_text(path: Path, text: str) -> None:
    """Replace the file's content at once. UserError when the disk is full or the place cannot be written."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Replace the file with the value as indented JSON; NaN is refused (ValueError)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the file's content at once."""
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
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
        _sync_directory(path.parent)


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory to fill; when the block ends well it stands at the path, replacing what stood there."""
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            beside.chmod(0o755)
            yield beside
            for file in beside.rglob("*"):
                if file.is_file():
                    with file.open("rb+") as handle:
                        os.fsync(handle.fileno())
            if path.exists():
                old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
                os.replace(path, old / path.name)
                os.replace(beside, path)
                shutil.rmtree(old)
            else:
                os.replace(beside, path)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        _sync_directory(path.parent)


@contextlib.contextmanager
def writable(path: Path) -> Iterator[None]:
    """Turns the errors of writing to the path into UserErrors."""
    try:
        yield
    except PermissionError:
        raise UserError("no permission to write here", where=str(path), fix="choose another place") from None
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        hint = "free some space" if error.errno in (28, 122) else "choose another place"
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot be written ({reason})", where=str(path), fix=hint) from None


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
