"""The machine made ready: what a process keeps of what it has freed, and how large micro-batches are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from plaudit.config import Config
from plaudit.training import machine

SCRIPT = """
import gc, torch
from pathlib import Path
from plaudit.training import checkpoint, machine
from plaudit.loop.rounds import Journal

def held():
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024

machine.prepare("float32", 1)
place, journal = Path("{place}"), Journal(Path("{place}"))

def stage(size):
    blocks, kept = [], []
    for _ in range(24):
        blocks.append(torch.ones(size, 1 << 18))
        kept.append(torch.ones(1000))
    del blocks
    return kept

kept, most = [], []
for number, size in enumerate((8, 10, 12, 14)):
    kept.append(stage(size))
    most.append(held())
    {after}
    most.append(held())
print(max(most[::2]), max(most[1::2]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="platform: malloc_trim is glibc's")
@pytest.mark.parametrize(
    ("after", "given_back"),
    [
        ("pass", False),
        ("machine.release()", True),
        ("checkpoint.save(place / 'checkpoints', number, dict(a=torch.ones(1)), {})", False),
        (
            "checkpoint.RELEASE_EVERY = 0;"
            "checkpoint.save(place / 'checkpoints', number, dict(a=torch.ones(1)), {})",
            True,
        ),
        ("journal.do(number, 'stage', dict)", True),
    ],
    ids=["nothing", "release", "checkpoints at once", "a checkpoint later", "a transition"],
)
def test_what_a_stage_has_freed_goes_back(tmp_path: object, after: str, given_back: bool) -> None:
    """Stages of 200 to 350 MB with small tensors between the large: kept, they would add up."""
    script = SCRIPT.replace("{place}", str(tmp_path)).replace("{after}", after)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    working, resting = (float(number) for number in done.stdout.split())
    assert (resting < working - 150) == given_back, done.stdout


def test_release_is_harmless_where_there_is_nothing_to_give() -> None:
    machine.release()
    machine.release()


HUGE = """
import re, torch
from pathlib import Path
from plaudit.training import machine

machine.prepare("float32", 1)
{before}
block = torch.ones(300, 1 << 18)
smaps = Path("/proc/self/smaps").read_text()
print(sum(int(kb) for kb in re.findall(r"AnonHugePages: +(\\d+) kB", smaps)) / 1024)
"""
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(
    not THP.exists() or "[never]" in THP.read_text(), reason="platform: no transparent huge pages"
)
@pytest.mark.parametrize(
    "before",
    ["", "rest = torch.ones(100, 1 << 18); del rest; machine.release()"],
    ids=["at first", "after a release"],
)
def test_memory_is_in_huge_pages(before: str) -> None:
    script = HUGE.format(before=before)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 100


ADDRESSES = """
from pathlib import Path
from plaudit.training import machine

def addresses():
    return int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) / 1024

machine.OVERCOMMIT = Path("{overcommit}")
before = addresses()
machine.prepare("float32", 1)
print(addresses() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="platform: the settings are glibc's")
@pytest.mark.parametrize(("setting", "taken"), [("0", True), ("1", True), ("2", False)])
def test_no_addresses_are_taken_where_they_count_as_memory(tmp_path: Path, setting: str, taken: bool) -> None:
    (overcommit := tmp_path / "overcommit_memory").write_text(setting + "\n")
    script = ADDRESSES.format(overcommit=overcommit)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (float(done.stdout) > 500) == taken


class Sized(Config):
    precision: machine.Precision = "auto"
    micro_batch_tokens: machine.MicroBatchTokens = 0


@pytest.mark.parametrize(
    ("native", "given", "tokens"),
    [
        (True, {}, 4096),
        (False, {}, 1024),
        (True, {"precision": "float32"}, 1024),
        (False, {"precision": "bfloat16"}, 4096),
        (True, {"micro_batch_tokens": 7}, 7),
    ],
)
def test_micro_batches_are_as_large_as_suits_the_products(
    monkeypatch: pytest.MonkeyPatch, native: bool, given: dict[str, Any], tokens: int
) -> None:
    monkeypatch.setattr(machine, "fast_bfloat16", lambda: native)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Sized(**given).micro_batch_tokens == tokens
