"""`flashkit run`: one job from the command line, on whichever platform is configured."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import click
import orjson

from flashkit.errors import ConfigurationError, InputError
from flashkit.http_routes import METHODS
from flashkit.settings import Settings

_IS_QUEUED = "not allowed for QB API"
"""How Runpod refuses a request to an endpoint that has a queue."""


@click.command("run")
@click.argument("endpoint")
@click.argument("words", metavar="[JSON | METHOD /PATH [JSON]]", nargs=-1)
@click.option("--input-file", type=click.File("rb"), help="Read the JSON from a file, or from - (standard input).")
@click.option("--stream", "is_streaming", is_flag=True, help="Print partial outputs as they come.")
@click.option("--wait", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait this long; 0 prints the job's id.")
@click.option("--json", "is_raw", is_flag=True, help="Print JSON on one line, strings quoted too.")
@click.option("--url", help="The platform's address, instead of the running `flashkit dev` or Runpod.")
def command(
    endpoint: str,
    words: tuple[str, ...],
    *,
    input_file: BinaryIO | None,
    is_streaming: bool,
    wait: float | None,
    is_raw: bool,
    url: str | None,
) -> int:
    """Send a job to ENDPOINT and print its output, or a request to a load-balanced one.

    JSON is the handler's arguments by name: '{"question": "why is the sky blue?"}'. The job goes to the
    `flashkit dev` that runs in this folder or one above it, else to Runpod (RUNPOD_API_KEY). Ctrl-C
    or SIGTERM cancels the job.

    A load-balanced endpoint gets a request: flashkit run api GET /items/3, or POST /chat and the JSON body.
    """
    settings = Settings.from_environment()
    if url:
        settings = dataclasses.replace(settings, base_url=normalise_url(url))
    write = write_json_line if is_raw else write_for_people
    route = words[:2] if len(words) > 1 and words[0].upper() in METHODS and words[1].startswith("/") else ()
    rest = words[len(route) :]
    if len(rest) > 1:
        raise click.UsageError(f"one JSON is enough; put it into single quotes (found {len(rest)} words)")
    data = read_input(rest[0] if rest else None, input_file, endpoint=endpoint)
    if route:
        body = data if rest or input_file else None
        send = _send_request(settings, endpoint, route, body, write, is_streaming=is_streaming)
    elif is_streaming:
        send = _stream_job(settings, endpoint, data, write)
    else:
        send = run_job(settings, endpoint, data, wait, write)
    run_to_end(send)
    return 0


def run_to_end(work: Coroutine[Any, Any, None]) -> None:
    """Run the work; SIGTERM cancels it as Ctrl-C does.

    Raises:
        KeyboardInterrupt: Either came.
    """

    async def run() -> None:
        task = asyncio.current_task()
        if task is not None and sys.platform != "win32":
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        await work

    try:
        asyncio.run(run())
    except asyncio.CancelledError as exc:
        raise KeyboardInterrupt from exc


async def _send_request(
    settings: Settings,
    endpoint: str,
    route: tuple[str, ...],
    body: Any,
    write: Callable[[Any], None],
    *,
    is_streaming: bool,
) -> None:
    """Send a request to a load-balanced endpoint and write its answer: JSON as such, anything else as text."""
    from flashkit.http_client import HttpClient

    method, path = route[0].upper(), route[1]
    async with HttpClient(endpoint, settings) as client:
        try:
            if is_streaming:
                async with aclosing(client.stream(method, path, json=body)) as items:
                    await _write_items(items, write)
                return
            answer = (await client.request(method, path, json=body)).raise_for_status()
        except InputError as exc:
            if _IS_QUEUED not in exc.report.message:
                raise
            raise InputError(
                f"endpoint {endpoint!r} takes jobs, not requests",
                hint=f"""send the handler's arguments: flashkit run {endpoint} '{{"question": "hello"}}'""",
            ) from exc
    is_json = answer.headers.get("Content-Type", "").startswith("application/json")
    write(answer.json() if is_json and answer.body else answer.text)


async def run_job(
    settings: Settings, endpoint: str, job_input: Any, wait: float | None, write: Callable[[Any], None]
) -> None:
    """Run one job and write its output; with `wait` 0 only its id."""
    from flashkit.client import Client

    async with Client(settings) as client:
        job = await client.endpoint(endpoint).run(job_input)
        if wait == 0:
            click.echo(job.id)
            return
        try:
            output = await job.output(wait)
        except asyncio.CancelledError:  # Ctrl-C: nobody will read the answer
            await job.cancel()
            click.echo(f"cancelled job {job.id}", err=True)
            raise
    write(output)


async def _stream_job(settings: Settings, endpoint: str, job_input: Any, write: Callable[[Any], None]) -> None:
    from flashkit.client import Client

    async with Client(settings) as client, aclosing(client.endpoint(endpoint).stream(job_input)) as items:
        await _write_items(items, write)


async def _write_items(items: AsyncIterator[Any], write: Callable[[Any], None]) -> None:
    is_text = False
    async for item in items:
        is_text = isinstance(item, str) and write is write_for_people
        if is_text:
            click.echo(item, nl=False)
        else:
            write_json_line(item)
    if is_text:
        click.echo()


def read_input(json_text: str | None, input_file: BinaryIO | None, *, endpoint: str) -> Any:
    """Return the job's input from the command line.

    Raises:
        InputError: It is not JSON; the message shows the place.
        click.UsageError: Both forms were given.
    """
    if json_text is not None and input_file is not None:
        raise click.UsageError("give the JSON either as an argument or by --input-file, not both")
    if input_file is not None:
        return parse_json(input_file.read(), hint="check the file with: python -m json.tool FILE")
    example = f"""flashkit run {endpoint} '{{"question": "hello"}}'"""
    hint = f"single quotes around the whole object, double quotes inside: {example}"
    return {} if json_text is None else parse_json(json_text.encode(errors="surrogateescape"), hint=hint)


def parse_json(text: bytes, *, hint: str) -> Any:
    """Return the value of the JSON text, or say in which line and column it stops being JSON."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        reason = exc.msg.partition(":")[0]
        lines = exc.doc.splitlines() or [""]
        line = lines[min(exc.lineno, len(lines)) - 1]
        start = max(0, exc.colno - 60)
        raise InputError(
            f"the input is not JSON: {reason} at line {exc.lineno}, column {exc.colno}\n"
            f"    {line[start : start + 80]}\n    {' ' * (exc.colno - 1 - start)}^",
            hint=hint,
        ) from exc


def normalise_url(url: str) -> str:
    """Return the base URL up to `/v2` for an address that a person typed.

    Raises:
        ConfigurationError: It is not an http address.
    """
    full = url if "://" in url else f"http://{url}"
    parts = urlsplit(full)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(f"--url {url!r} is not an address", hint="write --url http://127.0.0.1:8484")
    return full.rstrip("/") if parts.path.strip("/") else f"{parts.scheme}://{parts.netloc}/v2"


def write_json_line(value: Any) -> None:
    """Print one value as one line of JSON."""
    sys.stdout.write(orjson.dumps(value).decode() + "\n")
    sys.stdout.flush()


def write_for_people(value: Any) -> None:
    """Print text as it is, and anything else as indented JSON."""
    if isinstance(value, str):
        click.echo(value)
    else:
        click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
