"""Faults of a platform in a test that concern the store of sessions."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from flashkit.errors import InputError
from flashkit.testing import LocalPlatform

APP = Path(__file__).parents[1] / "apps" / "remembering_app.py"


def test_the_platform_s_own_store_goes_down_and_comes_back() -> None:
    redis = pytest.importorskip("redis")
    with LocalPlatform(APP) as platform:
        url = platform.environment["FLASHKIT_STATE"]
        if url.startswith("sqlite"):
            pytest.skip("no redis-server here")
        platform.faults.set("redis=down")
        with redis.Redis.from_url(url, socket_timeout=0.5) as impatient, pytest.raises(redis.TimeoutError):
            all(impatient.ping() for _ in itertools.count())  # until it is down
        platform.faults.clear()
        with redis.Redis.from_url(url, socket_timeout=60) as patient:
            assert patient.ping()


def test_a_store_of_somebody_else_s_cannot_go_down(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/sessions.db"
    with LocalPlatform(APP, sessions=store) as platform, pytest.raises(InputError, match="not the platform's own"):
        platform.faults.set("redis=down")
