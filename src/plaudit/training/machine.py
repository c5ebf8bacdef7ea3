"""The machine made ready: device, precision, threads and memory, chosen once and recorded."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import resource
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field, ValidationInfo

from plaudit.types import UserError

Precision = Literal["auto", "float32", "bfloat16", "float64"]

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # <malloc.h>
_NEVER = -1
_HUGE_PAGE = 2 << 20
_released = float("-inf")
OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
"""How much memory Linux promises."""


def prepare(precision: Precision, threads: int = 0) -> tuple[torch.device, torch.dtype]:
    """Choose device and dtype, fix the thread count, make kernels deterministic, keep freed memory, in huge pages.

    precision "auto": bfloat16 on a GPU or on a CPU that multiplies it natively, else float32.
    threads 0: one a core that this process may use; UserError for more than `most_threads`. Freed blocks are kept
    rather than given back to the system: fresh pages cost a CPU training step more than half of its time.
    """
    global _released
    if threads > (most := most_threads()):
        raise UserError(
            f"{threads} is more than help any machine",
            where="threads",
            fix=f"set {most} or fewer, or 0: one a core",
        )
    if libc := _glibc():
        for setting, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, 64 << 20)):
            libc.mallopt(setting, value)
        _use_huge_pages(libc)
        _released = time.monotonic()
    torch.set_num_threads(threads or available_cores())
    torch.use_deterministic_algorithms(True)
    # Deterministic mode also fills every fresh tensor, against code that reads what it has not written: in a step
    # that allocates gigabytes this costs time, and kills-and-resumes compared bit for bit show such code too.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return device, dtype_of(precision)


def dtype_of(precision: Precision) -> torch.dtype:
    """What this machine multiplies in at that setting, as `prepare` chooses it."""
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}[precision]
    return torch.bfloat16 if torch.cuda.is_available() or fast_bfloat16() else torch.float32


def _micro_batch_tokens(given: int, known: ValidationInfo) -> int:
    if given:
        return given
    return 4096 if dtype_of(known.data.get("precision", "auto")).itemsize == 2 else 1024


MicroBatchTokens = Annotated[int, Field(ge=0, validate_default=True), AfterValidator(_micro_batch_tokens)]
"""The setting in a config, after its precision. 0 becomes what suits that: where products are of two bytes they take so
little time that what is done once a micro-batch (weights rounded, gradients added up) weighs more; activations of four
take twice the memory."""


def release(every: float = 0.0) -> None:
    """Give the system what is free. `prepare` keeps freed blocks, and a stage whose tensors have other sizes finds few
    that fit: without this the memory of a long run is that of all its stages together.

    every: nothing is done within so many seconds of `prepare`, or of the last time.
    """
    global _released
    if time.monotonic() - _released < every:
        return
    _released = time.monotonic()
    if libc := _glibc():
        libc.malloc_trim(0)
        _use_huge_pages(libc)


def _glibc() -> ctypes.CDLL | None:
    """The C library, where it is the one whose settings these are."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None


def _use_huge_pages(libc: ctypes.CDLL) -> None:
    """Have the heap grow by half of the machine's memory, as addresses alone, and ask for huge pages there: what reads
    weights or a cache once a step waits for page tables much of its time. Nothing happens where Linux counts addresses
    as memory (2: it promises no more than there is), since others would lack it."""
    if sys.platform != "linux" or _read(OVERCOMMIT).strip() not in ("0", "1"):
        return
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    if block := libc.malloc(size):
        start = block + -block % _HUGE_PAGE
        libc.madvise(start, (block + size - start) // _HUGE_PAGE * _HUGE_PAGE, mmap.MADV_HUGEPAGE)
        libc.free(block)


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def most_threads() -> int:
    """More help no machine, and some thousands bring the process down: 256, or a thread a core where there are more."""
    return max(256, available_cores())


def fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 natively (avx512_bf16 or amx)."""
    flags = cpu_flags()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def cpu_flags() -> set[str]:
    return set(_cpuinfo("flags", "Features").split())


def processor() -> str:
    """What the CPU is called."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(*names: str) -> str:
    """What the system says of the first CPU under one of these names; "" where it says nothing."""
    lines = _read(Path("/proc/cpuinfo")).splitlines()
    return next((line for line in lines if line.startswith(names)), "").partition(":")[2].strip()


def _read(place: Path) -> str:
    """ "" where the system has no such file."""
    try:
        return place.read_text(encoding="utf-8")
    except OSError:
        return ""


def record() -> dict[str, Any]:
    """What a run's bits depend on beside its config: kept with the run, compared when it is resumed."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
    }


def check_same(recorded: dict[str, Any]) -> None:
    """UserError where a run is resumed on a machine that would give other bits."""
    now = record()
    changed = [
        f"{key} {recorded[key]} -> {now[key]}" for key in now if recorded.get(key, now[key]) != now[key]
    ]
    if changed:
        raise UserError(
            f"this run was started elsewhere ({', '.join(changed)}) and would not end with the same bits",
            fix="resume it there, or start again with --overwrite",
        )


def peak_rss_gb() -> float:
    """The most memory that this process has held, in 10^9 bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9
