"""The studio's HTTP API from Python.

studio = Studio("http://127.0.0.1:8321", key)
project = studio.create_project("Helpful answers", kind="comparison", overlap=2)
studio.add_items(project, [{"prompt": "Name a colour.", "completions": ["Blue.", "Four."]}])
studio.sample(project, model="smollm2", prompts=["Name a fruit."], wait=True)
records = studio.records(project)
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx2

from plaudit.types import UserError

PART = 1000
"""Items in one request."""
PATIENCE, LONGEST_WAIT = 20, 60.0
"""How often a request is sent again that came too soon, and how long is waited for it at most, seconds."""


class Studio:
    """url: where the studio is; key: an API key. Every method raises UserError with what the studio says is wrong."""

    def __init__(
        self, url: str, key: str, *, seconds: float = 60.0, transport: httpx2.BaseTransport | None = None
    ) -> None:
        self.http = httpx2.Client(
            base_url=f"{url.rstrip('/')}/api/v1/", headers={"Authorization": f"Bearer {key}"}, timeout=seconds,
            transport=transport,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.http.close()

    # Projects

    def projects(self) -> list[dict[str, Any]]:
        """All that one may see."""
        found: list[dict[str, Any]] = self._ask("GET", "projects").json()
        return found

    def create_project(self, name: str, *, guideline: Mapping[str, str] | None = None, **task: Any) -> str:
        """A project without items; task: kind and the other settings of docs/studio.md. Its id."""
        body = {"name": name, "task": task, "guideline": dict(guideline or {})}
        return str(self._ask("POST", "projects", body).json()["id"])

    def add_items(self, project: str, items: Sequence[Mapping[str, Any]]) -> int:
        """{"prompt", "completions", ...} each; how many were new."""
        added = 0
        for at in range(0, len(items), PART):
            body = {"items": [dict(item) for item in items[at : at + PART]]}
            added += int(self._ask("POST", f"projects/{_safe(project)}/items", body).json()["added"])
        return added

    def counts(self, project: str) -> dict[str, int]:
        """How much there is, and is to come."""
        found: dict[str, int] = self._ask("GET", f"projects/{_safe(project)}/counts").json()
        return found

    def quality(self, project: str) -> dict[str, Any]:
        """Agreement, raters, disagreements."""
        found: dict[str, Any] = self._ask("GET", f"projects/{_safe(project)}/quality").json()
        return found

    def value(self, project: str) -> dict[str, Any]:
        """How right a light reward is by judgements, and what the next hundred bring."""
        found: dict[str, Any] = self._ask("GET", f"projects/{_safe(project)}/value").json()
        return found

    # Judging

    def next(self, project: str, count: int = 1) -> dict[str, Any]:
        """What one judges next: {"turns", "task", "guideline", "guidelines"}."""
        found: dict[str, Any] = self._ask("GET", f"projects/{_safe(project)}/next?count={count}").json()
        return found

    def answer(
        self, project: str, item: str, payload: Mapping[str, Any] | None, *, event: str, **fields: Any
    ) -> int:
        """Writes a judgement, or, of None, passes the item over; event: an id of one's own, so that the same again is
        harmless. fields: assignment, guideline, comment, flags, supersedes. The event's number."""
        body = {"event": event, "item": item, "payload": payload, **fields}
        return int(self._ask("POST", f"projects/{_safe(project)}/answers", body).json()["seq"])

    # Data

    def records(self, project: str, format: str = "plaudit") -> list[dict[str, Any]]:
        """The judgements that stand, in a shape of docs/records.md."""
        text = self._ask("GET", f"projects/{_safe(project)}/records?format={_safe(format)}").text
        return [json.loads(line) for line in text.splitlines() if line.strip()]

    def take_in(
        self, project: str, records: Iterable[Mapping[str, Any]], format: str = "auto"
    ) -> dict[str, int]:
        """Judgements that were made elsewhere."""
        lines = "".join(json.dumps(dict(record), ensure_ascii=False) + "\n" for record in records)
        path = f"projects/{_safe(project)}/records?format={_safe(format)}"
        found: dict[str, int] = self._ask("POST", path, content=lines.encode()).json()
        return found

    # Jobs

    def sample(self, project: str, *, model: str, wait: bool = False, **settings: Any) -> dict[str, Any]:
        """Has a worker put completions into the project; settings: prompts, n, max_new_tokens, temperature, seed."""
        job = self._ask("POST", f"projects/{_safe(project)}/samples", {"model": model, **settings}).json()
        return self.wait(job["id"]) if wait else dict(job)

    def read(self, project: str, *, model: str, wait: bool = False) -> dict[str, Any]:
        """Has a worker make a vector of each completion, for `value` and `prioritise`."""
        job = self._ask("POST", f"projects/{_safe(project)}/vectors", {"model": model}).json()
        return self.wait(job["id"]) if wait else dict(job)

    def prioritise(self, project: str) -> int:
        """From now on gives out next what teaches most; how many items that ordered."""
        return int(self._ask("POST", f"projects/{_safe(project)}/priorities").json()["ordered"])

    def wait(self, job: int, seconds: float = 3600.0) -> dict[str, Any]:
        """The job once it has ended. UserError where it failed, was cancelled or takes longer."""
        until = time.monotonic() + seconds
        while True:
            found: dict[str, Any] = self._ask("GET", f"jobs/{job}").json()
            if found["state"] == "done":
                return found
            if found["state"] in ("failed", "cancelled"):
                raise UserError(found["message"] or found["state"], where=f"job {job}")
            if time.monotonic() > until:
                raise UserError("has not ended", where=f"job {job}", fix="start a worker: plaudit worker")
            time.sleep(0.3)

    def _ask(self, method: str, path: str, body: Any = None, content: bytes | None = None) -> httpx2.Response:
        given: dict[str, Any] = {} if body is None else {"json": body}
        if content is not None:
            given = {"content": content, "headers": {"Content-Type": "application/octet-stream"}}
        answer = self._send(method, path, given)
        for _ in range(PATIENCE):
            if answer.status_code != 429:
                break
            after = answer.headers.get("retry-after", "")  # it says when to go on
            time.sleep(min(float(after) if after.isdecimal() else 1.0, LONGEST_WAIT))
            answer = self._send(method, path, given)
        if answer.is_success:
            return answer
        try:
            fault = answer.json()
        except ValueError:
            fault = {"what": f"answered {answer.status_code}"}
        raise UserError(
            str(fault.get("what")), where=str(fault.get("where", "")), fix=str(fault.get("fix", ""))
        )

    def _send(self, method: str, path: str, given: Mapping[str, Any]) -> httpx2.Response:
        try:
            return self.http.request(method, path, **given)
        except httpx2.HTTPError as error:
            raise UserError(
                f"cannot be reached ({error})", where=str(self.http.base_url), fix="is it running?"
            ) from None


def _safe(part: str) -> str:
    return quote(part, safe="")
