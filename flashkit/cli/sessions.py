"""`flashkit sessions`: what people do with sessions, beside the workers that run them.

The store is that of the `flashkit dev` which runs here, or FLASHKIT_STATE, or `--store`. The session layer is
imported by the command that runs.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import click

from flashkit.cli.commands import Group
from flashkit.cli.run import normalise_url, parse_json, run_job, write_for_people, write_json_line
from flashkit.errors import InputError
from flashkit.settings import Settings

if TYPE_CHECKING:
    from flashkit.worker.sessions.admin import Wake
    from flashkit.worker.sessions.store import Store

T = TypeVar("T")
LAST_GOOD = "last-good"
"""Names the end of what is whole, where a step's name may stand."""
_JSON_HINT = """write JSON: '"yes"' for text, 'true', '{"amount": 3}'"""

_store_option = click.option("--store", "store_url", metavar="URL", help="The store, instead of the one found.")
_json_option = click.option("--json", "is_raw", is_flag=True, help="Print JSON on one line.")
_url_option = click.option("--url", help="The platform's address, instead of the running `flashkit dev` or Runpod.")
_endpoint_option = click.option("--endpoint", metavar="NAME", help="The endpoint, where the journal does not tell.")
_wait_option = click.option(
    "--wait", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait this long; 0 prints the job's id."
)


@click.group("sessions", cls=Group)
def command() -> None:
    """See sessions, resume, settle, rewind, fork, compare and delete them.

    Sessions are looked for in the store of the `flashkit dev` that runs in this folder or one above it, or
    where FLASHKIT_STATE (and FLASHKIT_NAMESPACE) say.
    """


@command.command("list")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 10_000), help="At most so many.")
@_json_option
@_store_option
def list_command(*, limit: int, is_raw: bool, store_url: str | None) -> None:
    """List sessions, the last changed first. Each is read, so that damaged ones show."""
    from flashkit.worker.sessions.admin import list_sessions

    found = _with_store(store_url, lambda store: list_sessions(store, limit=limit))
    if is_raw:
        write_json_line(found)
    elif not found:
        from flashkit.worker.sessions.store import without_password

        shown = without_password(store_url or Settings.from_environment().state_url)
        click.echo(f"there are no sessions in {shown}; a store of `flashkit dev` is found while that runs")
    else:
        from flashkit.cli.console import make_console
        from flashkit.cli.session_text import sessions_lines, sessions_table

        console = make_console()
        if console.is_terminal:
            console.print(sessions_table(found))
        else:
            click.echo("\n".join(sessions_lines(found)))


@command.command("show")
@click.argument("session", metavar="SID")
@_json_option
@_store_option
def show_command(session: str, *, is_raw: bool, store_url: str | None) -> None:
    """Show the timeline of session SID: its turns, and what came of every step."""
    from flashkit.worker.sessions.admin import describe

    view = _with_store(store_url, lambda store: describe(store, session))
    if is_raw:
        write_json_line(view)
        return
    from flashkit.cli.session_text import session_timeline, wide_console

    wide_console().print(session_timeline(view), soft_wrap=False)


@command.command("resume")
@click.argument("session", metavar="[SID]", required=False)
@click.option(
    "--due", is_flag=True, help="Instead of SID: all whose wait is over or whose worker is gone; print the jobs."
)
@_endpoint_option
@_wait_option
@_json_option
@_url_option
@_store_option
def resume_command(
    session: str | None,
    *,
    due: bool,
    endpoint: str | None,
    wait: float | None,
    is_raw: bool,
    url: str | None,
    store_url: str | None,
) -> int:
    """Let session SID go on with the turn that failed or was interrupted, and print the turn's output.

    Steps that are done do not run again. With --due, sessions go on whose `wait_for` has waited for its timeout,
    and those whose worker is gone for half a minute; run that every minute where `flashkit dev` does not do it.
    """
    if (session is None) is not due:
        raise click.UsageError("name one session, or --due for all that nobody goes on with")
    if session is None:
        return _resume_due(store_url, endpoint=endpoint, is_raw=is_raw, url=url)
    from flashkit.worker.sessions.admin import wake

    job = _with_store(store_url, lambda store: wake(store, session))
    _send(job, session, endpoint=endpoint, wait=wait, is_raw=is_raw, url=url)
    return 0


def _resume_due(store_url: str | None, *, endpoint: str | None, is_raw: bool, url: str | None) -> int:
    """Let sessions go on that nobody goes on with; the exit code is 1 where one could not."""
    from flashkit.client import Client
    from flashkit.worker.sessions.overdue import Resumed, resume_overdue

    async def resume(store: Store) -> tuple[Resumed, ...]:
        async with Client(_settings_for(url)) as client:
            return await resume_overdue(store, client, endpoint=endpoint)

    done = _with_store(store_url, resume)
    if is_raw:
        write_json_line(done)
    else:
        for each in done:
            what = f"job {each.job} of {each.endpoint}" if each.job else f"cannot go on: {each.problem}"
            click.echo(f"{each.session}\t{what}", err=each.job is None)
    return int(any(each.job is None for each in done))


@command.command("event")
@click.argument("session", metavar="SID")
@click.argument("name")
@click.argument("json_text", metavar="[JSON]", default="null")
@_endpoint_option
@_wait_option
@_json_option
@_url_option
@_store_option
def event_command(
    session: str,
    name: str,
    json_text: str,
    *,
    endpoint: str | None,
    wait: float | None,
    is_raw: bool,
    url: str | None,
    store_url: str | None,
) -> None:
    """Send event NAME with a value to session SID, and print the output of the turn that waited for it.

    Where no turn is under way, the event is kept for the next one.
    """
    from flashkit.worker.sessions.admin import bring_event

    value = parse_json(json_text.encode(), hint=_JSON_HINT)
    job = _with_store(store_url, lambda store: bring_event(store, session, name, value))
    if job is None:
        click.echo(f"no turn of {session} is under way: event {name} is kept for the next one", err=True)
        return
    if job.awaits and name not in job.awaits:
        awaited = " and ".join(map(repr, job.awaits))
        click.echo(f"{session} waits for {awaited}; {name!r} is kept for when it waits for that", err=True)
    _send(job, session, endpoint=endpoint, wait=wait, is_raw=is_raw, url=url)


@command.command("fork")
@click.argument("session", metavar="SID")
@click.argument("new", metavar="NEW")
@click.option("--at", "step", metavar="STEP", help="The first step that runs again in the copy.")
@click.option("--turn", type=click.IntRange(min=1), metavar="N", help="Of this turn; alone, all of it runs again.")
@click.option("--state", "state_text", metavar="JSON", help="Takes the place of the state with which the turn begins.")
@_store_option
def fork_command(
    session: str, new: str, *, step: str | None, turn: int | None, state_text: str | None, store_url: str | None
) -> None:
    """Copy session SID into a new one, NEW, to run it again from a step with new code or another state."""
    from flashkit.worker.sessions.admin import fork
    from flashkit.worker.sessions.forking import ForkPoint

    edited = {} if state_text is None else {"state": parse_json(state_text.encode(), hint=_JSON_HINT)}
    view = _with_store(store_url, lambda store: fork(store, session, new, ForkPoint(step, turn), **edited))
    done = sum(len(turn.steps) for turn in view.turns)
    click.echo(f"{new} has {done} steps of {session}")
    if view.open_turn is not None:
        click.echo(f"let it go on with: flashkit sessions resume {new}")


@command.command("quarantine")
@click.argument("session", metavar="SID")
@click.option("--reason", metavar="TEXT", help="Why; by default what is damaged.")
@_store_option
def quarantine_command(session: str, *, reason: str | None, store_url: str | None) -> None:
    """Let no worker run session SID before you have looked at it. Its bytes stay as they are."""
    from flashkit.worker.sessions.admin import quarantine

    found = _with_store(store_url, lambda store: quarantine(store, session, reason=reason))
    click.echo(f"{session} is blocked: {found}")
    click.echo(f"open it again with: flashkit sessions rewind {session} --to {LAST_GOOD}")


@command.command("rewind")
@click.argument("session", metavar="SID")
@click.option("--to", "step", metavar=f"STEP|{LAST_GOOD}", help="The last step that stays, or all that is whole.")
@click.option("--turn", type=click.IntRange(min=1), metavar="N", help="The step of this turn; alone, the turn's end.")
@_store_option
def rewind_command(session: str, *, step: str | None, turn: int | None, store_url: str | None) -> None:
    """Take off the end of session SID, damaged or not; the next job goes on from there.

    All of it as it was is kept as another session, which no worker runs. What runs again has the same
    idempotency keys as before; `fork` gives it new ones.
    """
    from flashkit.worker.sessions.admin import rewind
    from flashkit.worker.sessions.salvage import RewindPoint

    if step is None and turn is None:
        raise click.UsageError(
            f"say where it is to end: --to STEP, --turn N, or --to {LAST_GOOD} for all that is whole"
        )
    if step == LAST_GOOD and turn is not None:
        raise click.UsageError(f"--turn goes with a step, not with --to {LAST_GOOD}")
    to = RewindPoint(None if step == LAST_GOOD else step, turn)
    done = _with_store(store_url, lambda store: rewind(store, session, to))
    if done.copy is None:
        click.echo(f"{session} is whole: nothing was taken off")
    else:
        click.echo(f"{session}: {done.records} records taken off; all of it as it was is {done.copy}")
    if done.effects:
        click.echo(f"happened already, and is asked for again under the same key: {', '.join(done.effects)}", err=True)
    if done.view.open_turn is not None:
        click.echo(f"let it go on with: flashkit sessions resume {session}")


@command.command("settle")
@click.argument("session", metavar="SID")
@click.argument("step")
@click.option("--result", metavar="JSON", help="It happened, and this is what it returned.")
@click.option("--again", is_flag=True, help="It did not happen, and is to run.")
@_store_option
def settle_command(session: str, step: str, *, result: str | None, again: bool, store_url: str | None) -> None:
    """Say what came of a STEP of session SID whose worker died inside it."""
    from flashkit.worker.sessions.admin import settle

    if (result is None) is not again:
        raise click.UsageError("say either --result JSON (it happened) or --again (it did not)")
    value = None if result is None else parse_json(result.encode(), hint=_JSON_HINT)
    _with_store(store_url, lambda store: settle(store, session, step, result=value, again=again))
    click.echo(f"settled; let it go on with: flashkit sessions resume {session}")


@command.command("delete")
@click.argument("session", metavar="SID")
@click.option("--force", is_flag=True, help="Also while a worker has it; that worker can write no more.")
@_store_option
def delete_command(session: str, *, force: bool, store_url: str | None) -> None:
    """Remove session SID and all its data."""
    from flashkit.worker.sessions.admin import delete

    _with_store(store_url, lambda store: delete(store, session, force=force))
    click.echo(f"deleted {session}")


@command.command("diff")
@click.argument("first", metavar="SID[@TURN]")
@click.argument("second", metavar="OTHER[@TURN]")
@_json_option
@_store_option
def diff_command(first: str, second: str, *, is_raw: bool, store_url: str | None) -> None:
    """Show what differs between the states of two sessions, or of one after two turns: `s1@1 s1@3`."""
    from flashkit.worker.sessions.admin import diff

    found = _with_store(store_url, lambda store: diff(store, parse_place(first), parse_place(second)))
    if is_raw:
        write_json_line(found)
    elif not found:
        click.echo("no difference")
    else:
        from flashkit.cli.session_text import differences, wide_console

        wide_console().print(differences(found), soft_wrap=True)


def parse_place(text: str) -> tuple[str, int | None]:
    """Return session and turn from `SID` or `SID@TURN`.

    Raises:
        click.BadParameter: The turn is no number.
    """
    session, separator, turn = text.partition("@")
    if separator and not turn.isdecimal():
        raise click.BadParameter(f"{text!r} has no number of a turn after the @")
    return session, int(turn) if separator else None


def _settings_for(url: str | None) -> Settings:
    settings = Settings.from_environment()
    return dataclasses.replace(settings, base_url=normalise_url(url)) if url else settings


def _with_store(store_url: str | None, work: Callable[[Store], Awaitable[T]]) -> T:
    """Return what the work gives that is done with an open store."""
    from flashkit.worker.sessions.admin import open_session_store

    async def run() -> T:
        store = open_session_store(Settings.from_environment(), url=store_url)
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())


def _send(job: Wake, session: str, *, endpoint: str | None, wait: float | None, is_raw: bool, url: str | None) -> None:
    name = endpoint or job.endpoint
    if name is None:
        raise InputError(
            f"the journal of session {session!r} does not tell which endpoint runs it", hint="name it by --endpoint"
        )
    write = write_json_line if is_raw else write_for_people
    send: Coroutine[Any, Any, None] = run_job(_settings_for(url), name, job.input, wait, write)
    asyncio.run(send)
