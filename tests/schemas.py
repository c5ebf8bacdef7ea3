"""Every route of an app, sent whatever its schema allows and more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance, unsupported_method

EXCLUDED = [positive_data_acceptance, unsupported_method]
"""A request may fit its schema and still not make sense: two criteria of one name, say; and a page asks by OPTIONS."""


def hold_to_schema(
    api: Any, headers: dict[str, str], examples: int, mend: Callable[[Any], None] = lambda _: None
) -> int:
    """No answer is an error of the server's or off its schema; how many operations there are. examples: requests of
    each kind; mend: what is done to each before it is sent."""
    seen = 0
    for found in api.get_all_operations():
        operation = found.ok()

        @given(case=operation.as_strategy())
        @settings(
            max_examples=examples,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
            database=None,
        )
        def hold(case: Any) -> None:
            mend(case)
            case.call_and_validate(headers=headers, excluded_checks=EXCLUDED)

        hold()
        seen += 1
    return seen
