"""`flashkit trace`: the traces that `flashkit dev` keeps, as a list, as a tree, and run again from a journal."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashkit.cli.commands import Group
from flashkit.errors import ConfigurationError, InputError
from flashkit.settings import DEV_FILE, Settings

if TYPE_CHECKING:
    from flashkit.telemetry.store import TraceStore

TRACES_FILE = "traces.db"
"""Below `.flashkit` in the project's folder."""

_store_option = click.option(
    "--store", "store_url", metavar="URL", help="sqlite:///FILE or postgresql://…, instead of the one found."
)
_json_option = click.option("--json", "is_raw", is_flag=True, help="Print JSON on one line.")


class _TraceGroup(Group):
    usual = "show"
    alone = "list"


@click.group("trace", cls=_TraceGroup)
def command() -> None:
    """Show what a task did, step by step, and run it again from its journal.

    `flashkit trace JOB` is short for `flashkit trace show JOB`, and without JOB the traces are listed. They are looked
    for in the project's folder or one above it, where `flashkit dev` keeps them, or where FLASHKIT_TRACE_STORE says.
    """


@command.command("list")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 1_000), help="At most so many.")
@_json_option
@_store_option
def list_command(*, limit: int, is_raw: bool, store_url: str | None) -> None:
    """List the traces that began last, the newest first."""
    store = open_kept(store_url)
    try:
        found = store.latest(limit)
    finally:
        store.close()
    if is_raw:
        from flashkit.cli.run import write_json_line

        write_json_line(found)
        return
    if not found:
        click.echo("no traces yet: run a job on `flashkit dev`")
        return
    from flashkit.cli.trace_text import traces_table, wide_console

    wide_console().print(traces_table(found))


@command.command("show")
@click.argument("name", metavar="JOB|TRACE|SESSION")
@_json_option
@_store_option
def show_command(name: str, *, is_raw: bool, store_url: str | None) -> int:
    """Show a trace as a tree: that of a job, by its id or the begin of it, of a trace or of a session.

    Spans that never ended are red: what ran when a worker was killed. Exit code 1 when there are any.
    """
    from flashkit.telemetry.tree import build_trace

    records = _spans_of(name, store_url)
    trace = build_trace(records, now_ns=time.time_ns())
    if is_raw:
        from flashkit.cli.run import write_json_line

        write_json_line(trace.to_json())
    else:
        from flashkit.cli.trace_text import trace_tree, wide_console

        wide_console().print(trace_tree(trace), soft_wrap=False)
    return int(trace.hung is not None)


@command.command("replay")
@click.argument("name", metavar="JOB|SESSION")
@click.argument("app", metavar="[APP]", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--turn", type=click.IntRange(min=1), metavar="N", help="This turn instead of the last one.")
@click.option("--state", "state_url", metavar="URL", help="The store of sessions, instead of the one found.")
@_json_option
@_store_option
def replay_command(
    name: str, app: Path | None, *, turn: int | None, state_url: str | None, is_raw: bool, store_url: str | None
) -> int:
    """Run the handler of a session again, here and offline: every step answers from the journal, none runs.

    For a look at a task with a debugger or with changed code. Nothing is written to the session, and nothing is
    called: where the journal ends, the replay ends. Exit code 1 when it did not come to the recorded output.
    """
    from flashkit.cli.replaying import replay
    from flashkit.cli.run import write_json_line

    session = _session_of(name, store_url) or name
    done = asyncio.run(replay(session, _locate(app), turn=turn, state_url=state_url))
    if is_raw:
        write_json_line(done.to_json())
    else:
        click.echo(done.render())
    return 0 if done.is_same else 1


def open_kept(url: str | None) -> TraceStore:
    """Return the store of traces that is named, set, or lies in a project's folder here or above.

    Raises:
        ConfigurationError: There is none.
        StoreUnavailable: It cannot be opened.
    """
    from flashkit.telemetry.store import SQLITE, open_traces

    named = url or Settings.from_environment().trace_store
    if named is not None:
        if named.startswith(SQLITE) and not Path(named.removeprefix(SQLITE)).is_file():
            raise ConfigurationError(f"there is no {named}", hint="`flashkit dev` makes it when it keeps traces there")
        return open_traces(named)
    here = Path.cwd()
    files = (folder / DEV_FILE.parent / TRACES_FILE for folder in (here, *here.parents))
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise ConfigurationError(
            "no traces are kept in this folder or one above it",
            hint="run `flashkit dev` here, which keeps them, or name a store with --store",
        )
    return open_traces(f"{SQLITE}{file}")


def _spans_of(name: str, store_url: str | None) -> list[Any]:
    store = open_kept(store_url)
    try:
        ids = store.find(name)
        records = store.spans(ids[0]) if ids else []
    finally:
        store.close()
    if not records:
        raise InputError(
            f"there is no trace of {name!r}",
            hint="see those there are: flashkit trace; a worker records 20 new ones a second "
            "(FLASHKIT_TRACES_PER_SECOND)",
        )
    return records


def _session_of(name: str, store_url: str | None) -> str | None:
    """Return the session of a job whose trace is kept."""
    try:
        records = _spans_of(name, store_url)
    except (InputError, ConfigurationError):
        return None
    sessions = [str(each.attributes["flashkit.session.id"]) for each in records if _is_session_of(each, name)]
    return sessions[0] if sessions else None


def _is_session_of(record: Any, name: str) -> bool:
    job_id = record.job_id.removeprefix("sync-")
    is_named = bool(job_id) and job_id.startswith(name.removeprefix("sync-"))
    return "flashkit.session.id" in record.attributes and is_named


def _locate(app: Path | None) -> Path:
    from flashkit.cli.projects import USUAL_NAMES, find_app

    found = app or find_app(Path.cwd())
    if found is None:
        raise InputError(
            f"there is no app in {Path.cwd()}: no {', '.join(USUAL_NAMES)}",
            hint="name it: flashkit trace replay JOB APP.py",
        )
    return found
