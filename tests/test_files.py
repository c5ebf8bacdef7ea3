"""A kill, a full disk or a locked door leaves what was there, whole, and nothing beside it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from plaudit.files import (
    check_place,
    digest,
    is_left_over,
    new_directory,
    sweep,
    writable,
    write_bytes,
    write_json,
    write_text,
)
from plaudit.types import UserError


def tree(path: Path) -> dict[str, bytes]:
    """Every file below the path, hidden ones too, and what it holds; a directory ends in a slash."""
    found = sorted(path.rglob("*"))
    return {str(p.relative_to(path)) + "/" * p.is_dir(): b"" if p.is_dir() else p.read_bytes() for p in found}


def failing(number: int, *, on_call: int = 1, real: Callable[..., Any] = os.replace) -> Callable[..., Any]:
    """The real function, until the call that fails with this errno."""
    calls = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == on_call:
            raise OSError(number, os.strerror(number))
        return real(*args, **kwargs)

    return call


def test_files_are_written_replaced_and_readable(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "file.txt"
    write_text(path, "one\r\né")
    assert path.read_bytes() == b"one\r\n\xc3\xa9"
    write_bytes(path, b"\x00two")
    assert tree(tmp_path) == {"new/": b"", "new/deep/": b"", "new/deep/file.txt": b"\x00two"}
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_place_that_would_do_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("in")
    (tmp_path / "old.jsonl").write_text("old")
    before = tree(tmp_path)
    for name in ("new", "new.jsonl", "new.json", "old.jsonl"):
        check_place(tmp_path / name, tmp_path / "in.jsonl", "rules:first", tmp_path / "none", "a\0b")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("out", ["in.jsonl", "./in.jsonl", "link.jsonl", "other/in.jsonl", "hard.jsonl"])
@pytest.mark.parametrize("given", ["in.jsonl", "link.jsonl", "~/in.jsonl"])
def test_an_input_is_not_written_over_by_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, given: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("in.jsonl").write_text("precious")
    Path("link.jsonl").symlink_to("in.jsonl")
    Path("other").symlink_to(".")
    Path("hard.jsonl").hardlink_to("in.jsonl")
    with pytest.raises(UserError) as caught:
        check_place(Path(out), "prompts.txt", given)
    assert str(caught.value) == f"{Path(out)}: is the input itself; choose another place"


@pytest.mark.parametrize("name", ["a.csv", "a.CSV", "a.parquet", "a.jsonl.gz", "a.csv.gz"])
def test_no_json_lines_under_the_name_of_something_else(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"would hold JSON lines, not what \.\w+ says; end it in \.jsonl"):
        check_place(tmp_path / "deep" / name)
    assert tree(tmp_path) == {}


def test_json_is_indented_utf8_and_refuses_what_is_not_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"b": [1, "é"], "a": None})
    assert path.read_text(encoding="utf-8") == '{\n  "b": [\n    1,\n    "é"\n  ],\n  "a": null\n}\n'
    for value in (float("nan"), float("inf"), {"a": {1, 2}}):
        with pytest.raises((ValueError, TypeError)):
            write_json(path, value)
    assert json.loads(path.read_text(encoding="utf-8")) == {"b": [1, "é"], "a": None}
    assert list(tree(tmp_path)) == ["a.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES, errno.EROFS])
def test_a_failed_write_leaves_the_old_content_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    monkeypatch.setattr(os, step, failing(number))
    with pytest.raises(UserError) as caught:
        write_text(path, "new")
    assert tree(tmp_path) == {"file": b"old"}
    assert caught.value.where == str(path)
    assert "\n" not in str(caught.value)
    full = number in (errno.ENOSPC, errno.EDQUOT)
    assert caught.value.fix == ("free some space" if full else "choose another place")
    assert ("permission" in caught.value.what) == (number == errno.EACCES)


def test_an_interrupted_write_leaves_the_old_content_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "file"
    write_text(path, "old")
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "dir") as beside:
        (beside / "a").touch()
    assert tree(tmp_path) == {"file": b"old"}


@pytest.mark.parametrize("after", ["write", "fsync"])
def test_a_kill_leaves_the_old_content(tmp_path: Path, after: str) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    code = f"""
import os, signal
from pathlib import Path
from plaudit.files import write_text
real = os.fsync
def fsync(handle):
    {"real(handle)" if after == "fsync" else "pass"}
    os.kill(os.getpid(), signal.SIGKILL)
os.fsync = fsync
write_text(Path({str(path)!r}), "new" * 100_000)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_content_is_synced_before_it_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(handle: int) -> None:
        done.append("sync " + Path(os.readlink(f"/proc/self/fd/{handle}")).name.split(".")[-2:][0])
        fsync(handle)

    def noted_replace(*names: Any) -> None:
        done.append("rename")
        replace(*names)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("platform: no /proc to tell which file a handle is")
    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    write_text(tmp_path / "a", "text")
    assert done == ["sync a", "rename", f"sync {tmp_path.name}"]

    done.clear()
    with new_directory(tmp_path / "d") as beside:
        (beside / "sub").mkdir()
        (beside / "sub" / "b").write_text("b")
    assert sorted(done[:3]) == ["sync b", "sync d", "sync sub"]
    assert done[3:] == ["rename", f"sync {tmp_path.name}"]


@pytest.mark.parametrize("place", ["file/below", "file/below/deeper"])
def test_a_place_below_a_file_is_the_users_fault(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot be written"):
        write_text(tmp_path / place, "new")
    with pytest.raises(UserError, match="cannot be written"), new_directory(tmp_path / place):
        pass
    assert tree(tmp_path) == {"file": b"mine"}


def test_a_directory_is_not_overwritten_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_text("mine")
    with pytest.raises(UserError, match="directory"):
        write_text(tmp_path / "d", "new")
    assert tree(tmp_path) == {"d/": b"", "d/a": b"mine"}


def test_new_directory_stands_only_when_filled(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "one"
    with new_directory(path) as beside:
        (beside / "sub").mkdir()
        (beside / "sub" / "a").write_text("1")
        assert not path.exists()
    assert tree(tmp_path / "runs") == {"one/": b"", "one/sub/": b"", "one/sub/a": b"1"}
    assert path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("old_is_a_file", [False, True])
def test_new_directory_replaces_the_old_whole(tmp_path: Path, old_is_a_file: bool) -> None:
    path = tmp_path / "model"
    if old_is_a_file:
        path.write_text("old")
    else:
        path.mkdir()
        (path / "old").write_text("old")
    with new_directory(path) as beside:
        (beside / "new").write_text("new")
        assert path.exists()
    assert tree(tmp_path) == {"model/": b"", "model/new": b"new"}


@pytest.mark.parametrize(
    ("step", "on_call"),
    [("fsync", 1), ("fsync", 2), ("replace", 1), ("replace", 2), ("mkdir", 2), ("mkdir", 3)],
)
def test_a_failed_replacement_keeps_the_old_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, on_call: int
) -> None:
    path = tmp_path / "model"
    with new_directory(path) as beside:
        (beside / "a").write_text("old")
    monkeypatch.setattr(os, step, failing(errno.ENOSPC, on_call=on_call, real=getattr(os, step)))
    with pytest.raises(UserError, match="free some space"), new_directory(path) as beside:
        (beside / "a").write_text("new")
    assert tree(tmp_path) == {"model/": b"", "model/a": b"old"}


def test_a_fault_within_the_block_leaves_the_old_directory_and_keeps_its_name(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with new_directory(path) as beside:
        (beside / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), new_directory(path) as beside:
        (beside / "a").write_text(str(1 // 0))
    with pytest.raises(UserError, match="cannot be written"), new_directory(path) as beside:
        (beside / "none" / "a").write_text("new")
    with pytest.raises(FileNotFoundError), new_directory(path) as beside:
        (beside / "a").write_text((tmp_path.parent / "elsewhere" / "missing").read_text())
    assert tree(tmp_path) == {"model/": b"", "model/a": b"old"}


def test_writable_speaks_of_its_own_path_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (Path("log"), tmp_path / "log"):
        with pytest.raises(UserError, match="no permission"), writable(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "log"))
        with pytest.raises(UserError, match="free some space"), writable(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        with pytest.raises(PermissionError), writable(path):
            raise PermissionError(errno.EACCES, "Permission denied", "/elsewhere/secret")
        with pytest.raises(OSError, match="no number"), writable(path):
            raise OSError("no number")


def test_a_full_disk_is_told_whoever_met_it(tmp_path: Path) -> None:
    said = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(UserError, match="free some space") as caught, new_directory(tmp_path / "model"):
        raise SafetensorError(said)
    assert caught.value.where == str(tmp_path / "model")
    with pytest.raises(SafetensorError), new_directory(tmp_path / "model"):
        raise SafetensorError("Error while serializing: header too large")
    assert tree(tmp_path) == {}


def test_what_killed_writers_left_is_swept_away_and_nothing_else(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from plaudit import files
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
path = Path(sys.argv[1])
if path.suffix:
    files.write_text(path, "new")
with files.new_directory(path) as place:
    (place / "sub").mkdir()
    (place / "sub" / "file").write_text("new")
"""
    for name in ("a.txt", "deep/b.txt", "deep/model"):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=False)
        assert done.returncode == -signal.SIGKILL
    for name in (".new", ".new.txt", ".new.a.short", ".new.a.UPPERCAS", ".mine.abcdefgh", "a.new.b.abcdefgh"):
        (tmp_path / name).write_text("mine")
    assert len([path for path in tmp_path.rglob(".new.*") if is_left_over(path)]) == 3
    sweep(tmp_path)
    mine = [
        ".mine.abcdefgh",
        ".new",
        ".new.a.UPPERCAS",
        ".new.a.short",
        ".new.txt",
        "a.new.b.abcdefgh",
        "deep/",
    ]
    assert sorted(tree(tmp_path)) == mine


def test_a_digest_is_of_content_names_and_the_ends_of_what_is_large(tmp_path: Path) -> None:
    small, large = tmp_path / "a" / "small", tmp_path / "a" / "b" / "large"
    large.parent.mkdir(parents=True)
    small.write_bytes(b"abc")
    assert digest(small) == hashlib.sha256(b"abc").hexdigest()
    seen = set()
    many = 65 << 20
    for size, place, byte in [
        *((many, place, byte) for place in (0, -1) for byte in (b"1", b"2")),
        (many + 1, 0, b"1"),
    ]:
        with large.open("wb") as file:  # sparse
            file.truncate(size)
            file.seek(place % size)
            file.write(byte)
        seen |= {digest(large), digest(tmp_path / "a")}
    assert len(seen) == 10
    before = digest(tmp_path / "a")
    large.rename(large.with_name("larger"))
    assert digest(tmp_path / "a") != before
