"""What `flashkit dev` does instead of waiting for people: one job, one command, or the project's tests.

The platform starts, does it, and stops; the exit code says how it went. What is asked for goes to standard output,
everything about the platform to standard error.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from flashkit.cli import exit_code_for
from flashkit.cli.apps import AppEndpoint
from flashkit.cli.dev_store import DevStore
from flashkit.cli.hub import MISSING, HubTest, read_hub_tests
from flashkit.cli.projects import SAMPLE_FILE, project_folder, read_sample
from flashkit.cli.run import parse_json, write_for_people, write_json_line
from flashkit.client import Client
from flashkit.errors import ConfigurationError, ErrorReport, FlashkitError, InputError, JobError
from flashkit.settings import Settings

LOCAL_KEY = "local"
"""Given to commands in place of an account's key: clients demand one, and this platform takes any."""
_SIGNAL_BASE = 128
"""A shell's code for a process that a signal ended is this and the signal's number."""
_CHILD_GRACE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class RunOnce:
    """Send one job and print its output."""

    input_text: str | None = None
    endpoint: str | None = None
    is_json: bool = False


@dataclass(frozen=True, slots=True)
class RunCommand:
    """Run a command that finds the platform in its environment."""

    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RunHubTests:
    """Run the tests of `.runpod/tests.json`."""

    endpoint: str | None = None


Errand = RunOnce | RunCommand | RunHubTests


@dataclass(frozen=True, slots=True)
class Place:
    """The platform that an errand finds."""

    url: str
    endpoints: Sequence[AppEndpoint]
    apps: Sequence[Path]
    store: DevStore


async def run_errand(errand: Errand, place: Place) -> int:
    """Do it, and return the exit code.

    Raises:
        FlashkitError: It could not be done.
    """
    match errand:
        case RunOnce():
            return await _run_once(errand, place)
        case RunCommand():
            return await _run_command(errand.command, child_environment(os.environ, place))
        case RunHubTests():
            return await _run_hub_tests(errand, place)


def choose_endpoint(endpoints: Sequence[AppEndpoint], name: str | None) -> AppEndpoint:
    """Return the endpoint of this name, or the only one.

    Raises:
        click.UsageError: There is none of this name, or several to choose from.
    """
    names = ", ".join(endpoint.name for endpoint in endpoints)
    found = [endpoint for endpoint in endpoints if name in (None, endpoint.name)]
    if not found:
        raise click.UsageError(f"there is no endpoint {name!r}; the endpoints are: {names}")
    if len(found) > 1:
        raise click.UsageError(f"the app has several endpoints; choose one with --endpoint: {names}")
    return found[0]


# ------------------------------------------------------------------ one job


async def _run_once(errand: RunOnce, place: Place) -> int:
    endpoint = choose_endpoint(place.endpoints, errand.endpoint)
    job_input = _read_input(errand.input_text, endpoint, place.apps)
    try:
        output = await _run_job(place, endpoint.name, job_input)
    except JobError as exc:
        sys.stderr.write(exc.report.render() + "\n")
        return exit_code_for(exc)
    (write_json_line if errand.is_json else write_for_people)(output)
    return 0


def _read_input(text: str | None, endpoint: AppEndpoint, apps: Sequence[Path]) -> Any:
    if text is not None:
        return parse_json(text.encode(errors="surrogateescape"), hint="""write --input '{"name": "Ada"}'""")
    for app in apps:
        if app.parent == endpoint.local.cwd and (sample := read_sample(app)) is not None:
            return sample
    raise InputError(
        f"there is no input for {endpoint.name!r}",
        hint=f"""write --input '{{…}}', or {{"input": {{…}}}} into {SAMPLE_FILE} beside the app""",
    )


async def _run_job(place: Place, endpoint: str, job_input: Any) -> Any:
    """Return a job's output; that of a handler which only streams is the list of its parts."""
    async with Client(Settings(base_url=f"{place.url}/v2", api_key=LOCAL_KEY)) as client:
        job = await client.endpoint(endpoint).run(job_input)
        try:
            output = await job.output()
        except asyncio.CancelledError:
            await job.cancel()
            raise
        if output in (None, []):
            return [item async for item in job.stream()] or output
        return output


# ------------------------------------------------------------------ a command


def child_environment(environ: Mapping[str, str], place: Place) -> dict[str, str]:
    """Return the environment in which clients find this platform, and no key of an account."""
    kept = {name: value for name, value in environ.items() if name != "FLASHKIT_ENDPOINTS"}
    return {
        **kept,
        "RUNPOD_ENDPOINT_BASE_URL": f"{place.url}/v2",
        "RUNPOD_API_KEY": LOCAL_KEY,
        "FLASHKIT_STATE": place.store.url,
        "FLASHKIT_NAMESPACE": place.store.namespace,
    }


async def _run_command(command: Sequence[str], env: Mapping[str, str]) -> int:
    try:
        process = await asyncio.create_subprocess_exec(*command, env=env)
    except OSError as exc:
        raise ConfigurationError(f"cannot run {command[0]!r}: {exc.strerror}", hint="check what follows --") from exc
    try:
        code = await process.wait()
    finally:
        await _end(process)
    return code if code >= 0 else _SIGNAL_BASE - code


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a command that still runs, since we are asked to stop."""
    with contextlib.suppress(ProcessLookupError, TimeoutError):
        if process.returncode is None:
            process.terminate()
            async with asyncio.timeout(_CHILD_GRACE_SECONDS):
                await process.wait()
    with contextlib.suppress(ProcessLookupError):
        if process.returncode is None:
            process.kill()
            await process.wait()


# ------------------------------------------------------------------ the Hub's tests


async def _run_hub_tests(errand: RunHubTests, place: Place) -> int:
    endpoint = choose_endpoint(place.endpoints, errand.endpoint)
    tests = read_hub_tests(project_folder(place.apps[0])).tests
    width = max(len(test.name) for test in tests)
    failed = 0
    for test in tests:
        began = time.monotonic()
        problem = await _try(test, endpoint.name, place)
        mark = "✗" if problem else "✓"
        click.echo(f"{mark} {test.name:<{width}}  {time.monotonic() - began:6.1f} s")
        if problem:
            failed += 1
            click.echo("".join(f"    {line}\n" for line in problem.render().splitlines()), nl=False)
    click.echo(f"{len(tests) - failed} passed, {failed} failed")
    return 1 if failed else 0


async def _try(test: HubTest, endpoint: str, place: Place) -> ErrorReport | None:
    """Return why the test failed, None when it passed."""
    try:
        async with asyncio.timeout(test.timeout_s):
            output = await _run_job(place, endpoint, test.input)
    except TimeoutError:
        return _too_slow(test)
    except FlashkitError as exc:
        return exc.report
    if test.expected is not MISSING and output != test.expected:
        return _other_output(test, output)
    return None


def _too_slow(test: HubTest) -> ErrorReport:
    """Report a test of `.runpod/tests.json` whose job had no result in time."""
    return ErrorReport(
        code="test_timed_out",
        message=f"no result within {test.timeout_s:g} s, the worker's start included",
        type="TestFailed",
        hint="raise the test's timeout in .runpod/tests.json",
    )


def _other_output(test: HubTest, output: Any) -> ErrorReport:
    """Report a test of `.runpod/tests.json` whose job gave another output than the test names."""
    return ErrorReport(
        code="test_output_differs",
        message=f"the output is {output!r:.500}, and should be {test.expected!r:.500}",
        type="TestFailed",
    )
