"""vLLM's own server, started beside this one and asked as any other server behind it (plaudit[vllm])."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
import subprocess
import sys
import tempfile
import time

import httpx2

from plaudit.feedback.releases import Arm
from plaudit.serving.upstream import UpstreamBackend
from plaudit.types import UserError

START_SECONDS = 900.0


class VllmBackend(UpstreamBackend):
    """Ends its server with itself."""

    def __init__(
        self, process: subprocess.Popen[bytes], url: str, version: str, timeout: float, logprobs: bool
    ) -> None:
        super().__init__(url, "model", version, timeout=timeout, logprobs=logprobs)
        self.process = process

    async def ready(self) -> bool:
        return self.process.poll() is None and await super().ready()

    async def close(self, seconds: float) -> None:
        await super().close(seconds)
        await asyncio.to_thread(_end, self.process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def start(arm: Arm, timeout: float, logprobs: bool = True) -> VllmBackend:
    """A server with the arm's model, once it answers. UserError where vLLM is missing or does not start."""
    if importlib.util.find_spec("vllm") is None:
        raise UserError("vLLM is not installed", where="engine vllm", fix="pip install plaudit[vllm]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", arm.model,
               "--host", "127.0.0.1", "--port", str(port), "--served-model-name", "model"]  # fmt: skip
    if arm.adapter is not None:
        command += ["--enable-lora", "--lora-modules", f"model={arm.adapter}"]
        command[command.index("--served-model-name") + 1] = "base"
    said = tempfile.TemporaryFile()  # noqa: SIM115 (vLLM writes to it; not a pipe, which nobody would empty)
    # In a group of its own: Ctrl-C ends this server first, which ends that one.
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True)
    url, ends = f"http://127.0.0.1:{port}/v1", time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < ends:
        try:
            if httpx2.get(f"{url}/models", timeout=2.0, trust_env=False).status_code == 200:
                return VllmBackend(process, url, arm.version, timeout, logprobs)
        except httpx2.HTTPError:
            pass
        time.sleep(0.5)
    _end(process)
    said.seek(0)
    last = said.read().decode(errors="replace").strip().rpartition("\n")[2][:200]
    raise UserError(f"vLLM does not start ({last})", where=arm.model, fix="run `vllm serve` with it by hand")
