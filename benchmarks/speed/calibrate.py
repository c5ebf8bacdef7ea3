"""What this machine can do at most, measured: products of 2048 x 2048 matrices and the copying of memory.

python -m speed.calibrate [THREADS]     # below benchmarks/; prints one JSON object
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from plaudit.training import machine

SIDE, SLOW_SIDE = 2048, 512
"""Of the matrices; of those in bfloat16 where it is not native, whose 2048 x 2048 product takes a minute."""
WORTH = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_tile", "asimd", "bf16", "sve")
"""Flags of a CPU that decide how fast it multiplies."""


def rate(work: Callable[[], object], seconds: float = 1.0) -> float:
    """Calls a second, after two to warm up; the best of three stretches, since a ceiling is wanted."""
    work(), work()
    best = 0.0
    for _ in range(3):
        began, calls = time.perf_counter(), 0
        while time.perf_counter() - began < seconds / 3:
            work()
            calls += 1
        best = max(best, calls / (time.perf_counter() - began))
    return best


def ceilings(seconds: float = 1.0) -> dict[str, float]:
    """float32 and bfloat16 in 10^9 operations a second, copy in 10^9 bytes a second, read and written both counted."""
    found = {}
    narrow = SIDE if machine.fast_bfloat16() else SLOW_SIDE
    for name, dtype, side in (("float32", torch.float32, SIDE), ("bfloat16", torch.bfloat16, narrow)):
        a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        found[name] = 2 * side**3 * rate(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), seconds) / 1e9  # type: ignore[misc]
    source = torch.randn(64 << 20)
    target = torch.empty_like(source)
    found["copy"] = 2 * source.numel() * 4 * rate(lambda: target.copy_(source), seconds) / 1e9
    return {name: round(value, 1) for name, value in found.items()}


def about() -> dict[str, Any]:
    """The machine: CPU, cores that may be used, memory, the flags that matter."""
    model = platform.processor() or platform.machine()
    memory = 0.0
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next(
                (line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), model
            )
        with open("/proc/meminfo", encoding="utf-8") as file:
            memory = int(file.readline().split()[1]) * 1024 / 1e9
    except OSError:
        pass
    flags = machine.cpu_flags()
    return {
        "cpu": model,
        "cores": machine.available_cores(),
        "memory_gb": round(memory, 1),
        "flags": [flag for flag in WORTH if flag in flags],
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }


if __name__ == "__main__":
    machine.prepare("auto", int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    print(json.dumps({"machine": about(), "ceilings": ceilings()}))
