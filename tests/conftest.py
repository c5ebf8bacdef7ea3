"""What tests of several rooms share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TypeVar

import hypothesis
import pytest

hypothesis.settings.register_profile("house", hypothesis.settings(), deadline=None)  # the machine may be busy
hypothesis.settings.load_profile("house")


def pytest_configure() -> None:
    """Ctrl-C reaches the programs that tests start, also where whoever started us ignores it (nohup, a shell's `&`)."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Models that tests make ready stand in a folder of this run, never in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("cache")
        patch.setenv("PLAUDIT_CACHE", str(home))
        yield home


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of data that people outside the project made; absent on most machines."""
    root = Path(os.environ.get("PLAUDIT_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not root.is_dir():
        pytest.skip(f"real data is absent: set PLAUDIT_TEST_DATA to its folder (looked in {root})")
    return root


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """What a proof found; printed at the end of the whole run."""
    return lambda text: request.node.user_properties.append(("said", text))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    for text in [text for report in reports for name, text in report.user_properties if name == "said"]:
        terminalreporter.write_line(f"  {text}")


Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def _refuse_skip(report: Report) -> Report:
    """In CI a test that was skipped is a test that failed, unless its reason begins with "platform"."""
    if os.environ.get("CI") == "true" and report.skipped and isinstance(report.longrepr, tuple):
        reason = str(report.longrepr[2]).removeprefix("Skipped: ")
        if not reason.startswith("platform"):
            report.outcome = "failed"
            report.longrepr = f"{report.nodeid} was skipped in CI: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_assertrepr_compare() -> Generator[None, object, object]:
    """Differences are as short in CI as elsewhere; pytest would write whole ones, of a model's bytes for hours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CI", raising=False)
        return (yield)
