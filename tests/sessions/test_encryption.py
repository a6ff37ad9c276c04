"""With keys in the settings, nothing of a session is readable in its store."""

from __future__ import annotations

import base64
import dataclasses
from pathlib import Path

import pytest

from flashkit import Session, orchestrator_endpoint
from flashkit.errors import RecordKeyMissing
from flashkit.settings import Settings
from flashkit.worker.runtime import Outcome, Runtime

KEYS = "1:" + base64.b64encode(bytes(range(32))).decode()
SECRET = "the-word-nobody-may-read"


@orchestrator_endpoint()
async def agent(session: Session, question: str) -> str:
    session.history.add("user", question)
    return await session.step("echo", str.lower, question)


async def run(settings: Settings, job_id: str) -> Outcome:
    runtime = Runtime(agent.definition, settings)
    await runtime.start()

    async def emit(chunk: bytes) -> None:
        raise AssertionError(chunk)

    try:
        return await runtime.run({"id": job_id, "input": {"session_id": "s", "question": SECRET}}, emit=emit)
    finally:
        await runtime.stop()


async def test_a_sessions_data_is_encrypted_in_the_store_and_read_with_the_key(tmp_path: Path) -> None:
    settings = Settings(state_url=f"sqlite:///{tmp_path}/s.db", state_keys=KEYS, base_url="http://127.0.0.1:1/v2")

    first = await run(settings, "job-1")
    second = await run(settings, "job-2")

    assert first.output == second.output == f'"{SECRET}"'.encode()
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert SECRET.encode() not in stored


@pytest.mark.parametrize("keys", [None, KEYS.replace("1:", "2:")])
async def test_without_the_key_a_session_is_refused_and_left_alone(tmp_path: Path, keys: str | None) -> None:
    settings = Settings(state_url=f"sqlite:///{tmp_path}/s.db", state_keys=KEYS, base_url="http://127.0.0.1:1/v2")
    await run(settings, "job-1")

    refused = await run(dataclasses.replace(settings, state_keys=keys), "job-2")

    assert refused.error is not None
    assert refused.error.code == RecordKeyMissing.code
    assert (await run(settings, "job-1")).output == f'"{SECRET}"'.encode()


def test_keys_are_not_shown() -> None:
    assert KEYS not in repr(Settings(state_keys=KEYS))
