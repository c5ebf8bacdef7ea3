"""Our server beside transformers' own: the same model, requests and clients, in turns.

    PLAUDIT_TEST_DATA=DIR python benchmarks/serving.py [--requests 96] [--clients 16] [--rounds 5]

Each client asks for one answer after the other, of 64 tokens, as a stream; all servers run all the time, and whoever
waits is stopped. transformers' server runs with continuous batching and without, and the better counts. Ours keeps
every answer in its store, as it does by itself. Figures go to benchmarks/results/serving.json.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2

sys.path.insert(0, str(Path(__file__).parent))

from speed.batches import prompts, unending
from speed.calibrate import about
from speed.environments import python_of

from plaudit import files
from plaudit.data.tokenizer import Tokenizer
from plaudit.models.load import find_model
from plaudit.training import machine
from plaudit.types import UserError

PLACE = Path(__file__).parent / "results" / "serving.json"
PROGRAM = "import sys; from plaudit.cli import main; sys.exit(main())"
NEW = 64
"""Tokens an answer; the model's end of text is one that it never says."""
READY_SECONDS = 180.0


class Served:
    """A server that is running, stopped while it is not asked."""

    def __init__(self, name: str, command: list[str], port: int, model: str, env: dict[str, str]) -> None:
        self.name, self.port, self.model = name, port, model
        self.log = Path(tempfile.mkdtemp(prefix="plaudit-serving-")) / "log.txt"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | env, start_new_session=True
            )

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def wait(self) -> None:
        """UserError where it does not answer."""
        ends = time.monotonic() + READY_SECONDS
        while time.monotonic() < ends and self.process.poll() is None:
            try:
                url = f"http://127.0.0.1:{self.port}/v1/models"
                if httpx2.get(url, timeout=2.0, trust_env=False).status_code == 200:
                    return
            except httpx2.HTTPError:
                pass
            time.sleep(0.5)
        last = self.log.read_text(errors="replace").strip()[-300:]
        raise UserError(f"does not start ({last})", where=self.name)

    async def ask(self, client: httpx2.AsyncClient, text: str) -> tuple[float, float]:
        """Seconds to the first piece and to the last."""
        body = {
            "model": self.model, "messages": [{"role": "user", "content": text}], "max_tokens": NEW,
            "temperature": 1.0, "stream": True,
        }  # fmt: skip
        began, first, count = time.monotonic(), 0.0, 0
        url = f"http://127.0.0.1:{self.port}/v1/chat/completions"
        async with client.stream("POST", url, json=body, timeout=600.0) as answer:
            if answer.status_code != 200:
                raise UserError(
                    f"answers {answer.status_code} ({(await answer.aread())[:300]!r})", where=self.name
                )
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                if any((choice.get("delta") or {}).get("content") for choice in event.get("choices") or ()):
                    count += 1
                    first = first or time.monotonic() - began
        if count < NEW // 2:
            raise UserError(f"said {count} pieces, not about {NEW}", where=self.name)
        return first, time.monotonic() - began


async def load(served: Served, texts: list[str], clients: int) -> dict[str, Any]:
    """All texts asked by so many clients."""
    waiting = list(reversed(texts))
    found = list[tuple[float, float]]()
    async with httpx2.AsyncClient(trust_env=False) as client:

        async def one() -> None:
            while waiting:
                found.append(await served.ask(client, waiting.pop()))

        began = time.monotonic()
        await asyncio.gather(*(one() for _ in range(clients)))
        seconds = time.monotonic() - began
    whole, first = sorted(last for _, last in found), sorted(first for first, _ in found)
    return {
        "seconds": round(seconds, 2),
        "tokens_per_second": round(len(found) * NEW / seconds, 1),
        "request_ms": {q: round(1000 * whole[int(len(whole) * float(q) / 100)]) for q in ("50", "95")},
        "first_ms": {q: round(1000 * first[int(len(first) * float(q) / 100)]) for q in ("50", "95")},
    }


def free() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def servers(source: Path, place: Path, clients: int) -> list[Served]:
    """Ours, and the peer in both its ways."""
    dtype = "bfloat16" if machine.fast_bfloat16() else "float32"
    ports = [free() for _ in range(3)]
    ours = [sys.executable, "-c", PROGRAM, "serve", str(source), "name=model", f"port={ports[0]}", "open=true",
            f"store={place / 'feedback.db'}", "requests_per_minute=1000000", "tokens_per_minute=1000000000",
            f"max_batch={clients}"]  # fmt: skip
    peer = str(python_of("serve").parent / "transformers")
    shared = ["serve", str(source), "--device", "cpu", "--dtype", dtype]
    hub = place / "hub"  # its list of models looks there, and fails where there is nothing to look into
    hub.mkdir()
    env = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(hub), "TOKENIZERS_PARALLELISM": "false"}
    return [
        Served("ours", ours, ports[0], "model", {}),
        Served("transformers", [peer, *shared, "--port", str(ports[1])], ports[1], str(source), env),
        Served("transformers, continuous batching", [peer, *shared, "--continuous-batching", "--port", str(ports[2])],
               ports[2], str(source), env),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    source = unending(find_model("smollm2"))
    records = prompts(Tokenizer.load(source), given.requests, 1, NEW).records
    texts = [str(record["prompt"]) for record in records]
    rows: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="plaudit-serving-") as place:
        running = servers(source, Path(place), given.clients)
        faults: dict[str, str] = {}
        try:
            for one in running:
                one.wait()
                try:
                    asyncio.run(load(one, texts[: given.clients], given.clients))  # to warm up
                except UserError as error:
                    faults[one.name] = str(error)
                one.signal(signal.SIGSTOP)
            for number in range(given.rounds):
                for one in running:
                    if one.name in faults:
                        continue
                    one.signal(signal.SIGCONT)
                    row = asyncio.run(load(one, texts, given.clients))
                    one.signal(signal.SIGSTOP)
                    rows.setdefault(one.name, []).append(row)
                    print(number, one.name, row, flush=True)
        finally:
            for one in running:
                one.signal(signal.SIGKILL)
    seconds = {name: statistics.median(row["seconds"] for row in found) for name, found in rows.items()}
    peer = min((name for name in rows if name != "ours"), key=seconds.__getitem__)
    ratios = [
        round(theirs["seconds"] / mine["seconds"], 3)
        for mine, theirs in zip(rows["ours"], rows[peer], strict=True)
    ]
    p95 = {name: statistics.median(row["request_ms"]["95"] for row in found) for name, found in rows.items()}
    told = {
        "name": "serving",
        "peer": peer,
        "ratio": round(statistics.median(ratios), 3),
        "ratio_p95": round(p95[peer] / p95["ours"], 3),
        "ratios": ratios,
        "seconds": seconds,
        "request_p95_ms": p95,
        "requests": given.requests,
        "clients": given.clients,
        "new_tokens": NEW,
        "machine": about(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": "python benchmarks/serving.py",
        "faults": faults,
        "rounds": rows,
    }
    files.write_json(PLACE, told)
    print(
        json.dumps(
            {key: told[key] for key in ("peer", "ratio", "ratio_p95", "seconds", "request_p95_ms")}, indent=2
        )
    )


if __name__ == "__main__":
    main()
