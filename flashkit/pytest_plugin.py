"""Fixtures for pytest: `platform`, `endpoint`, `fake_clock` and `faults`. Installed with flashkit, nothing to import.

The app is app.py in pytest's root folder, or what `flashkit_app` in the settings of pytest names. One platform serves
all tests; faults and speed are taken back after each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from flashkit.testing.platform import FakeClock, Faults, LocalPlatform, PlatformEndpoint


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare what the settings may hold."""
    parser.addini("flashkit_app", "files that define the endpoints for the `platform` fixture", type="args", default=[])


@pytest.fixture(scope="session", name="platform")
def platform_fixture(request: pytest.FixtureRequest) -> Iterator[LocalPlatform]:
    """Give a running platform with the project's endpoints; `endpoint.remote(...)` in tests reaches it."""
    from flashkit.testing.platform import LocalPlatform, find_apps

    config = request.config
    with (
        LocalPlatform(*find_apps(config.getini("flashkit_app"), config.rootpath), notes_runs=True) as platform,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in platform.environment.items():
            patch.setenv(name, value)
        yield platform


@pytest.fixture(scope="session", name="endpoint")
def endpoint_fixture(platform: LocalPlatform) -> Callable[[str], PlatformEndpoint]:
    """Give the endpoints of the platform by name: `endpoint("search").call({...})`."""
    return platform.endpoint


@pytest.fixture(name="fake_clock")
def fake_clock_fixture(platform: LocalPlatform) -> Iterator[FakeClock]:
    """Give the platform's clock: `fake_clock.advance(3600)`."""
    yield platform.clock
    platform.clock.set_speed(1.0)


@pytest.fixture(name="faults")
def faults_fixture(platform: LocalPlatform) -> Iterator[Faults]:
    """Give what is made to go wrong: `faults.set("search:kill=1")`."""
    yield platform.faults
    platform.faults.clear()
