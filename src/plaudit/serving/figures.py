"""What is counted of a server, as Prometheus reads it. No text of anybody's, and no name of a requester, is in it."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Figures:
    """Of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made: Any = {"registry": self.registry, "namespace": "plaudit"}
        self.requests = Counter("requests", "requests by route and status", ["route", "status"], **made)
        self.tokens = Counter("tokens", "tokens by model and kind", ["version", "kind"], **made)
        self.seconds = Histogram(
            "request_seconds", "until the whole answer is there", ["route"], buckets=SECONDS, **made
        )
        self.first = Histogram(
            "first_token_seconds", "until the first of it", ["version"], buckets=SECONDS, **made
        )
        self.going = Gauge("requests_going", "requests that are answered now", **made)
        self.feedback = Counter("feedback", "feedback by kind", ["kind"], **made)
        self.cached = Counter("cached", "answers that were known already", **made)
        self.refused = Counter("refused", "what a guard kept from being asked or said", ["where"], **made)
        self.cancelled = Counter("cancelled", "answers that nobody waited for to the end", **made)

    def text(self) -> bytes:
        return generate_latest(self.registry)
