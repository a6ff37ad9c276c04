"""`flashkit plan simulate`: what a load does to an endpoint, and which setting is the cheapest that keeps up."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashkit.errors import ConfigurationError, DefinitionError, InputError

if TYPE_CHECKING:
    from flashkit.simulation.load import Load
    from flashkit.simulation.results import Prices
    from flashkit.simulation.trials import Question
    from flashkit.spec import EndpointSpec

_RATE_UNITS = {"s": 1, "min": 60, "h": 3600, "day": 86_400}


@click.command("simulate")
@click.argument("app", required=False, metavar="[APP]", type=click.Path(exists=True, path_type=Path))
@click.option("--endpoint", metavar="NAME", help="Which endpoint of the app; needed where it has several.")
@click.option(
    "--load", "load", default="diurnal", show_default=True, metavar="poisson|diurnal|burst|dev|FILE",
    help="A made-up load, the jobs of the running `flashkit dev`, or a file: JSON lines or CSV with at,seconds.",
)  # fmt: skip
@click.option("--rate", metavar="2/s", help="Mean rate of a made-up load: 2/s, 90/min, 5000/h or 100000/day.")
@click.option("--seconds", metavar="TIME", help="Mean duration of its jobs; of a file's, where it does not say them.")
@click.option("--variation", type=float, default=0.5, show_default=True, help="How much durations vary, 0 not at all.")
@click.option("--peak", type=float, help="Highest rate as a multiple of the mean: diurnal 1.8, burst 10.")
@click.option("--time", "window", default="1d", show_default=True, metavar="TIME", help="How long a made-up load is.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of a made-up load; the same seed, the same jobs.")
@click.option("--cold-start", metavar="TIME", help="A worker's start until it asks for a job; estimated by default.")
@click.option("--thaw", metavar="TIME", help="The same of a worker that FlashBoot has kept; 2.3 s by default.")
@click.option("--workers", metavar="MIN,MAX", help="Instead of the endpoint's own.")
@click.option("--idle-timeout", metavar="TIME", help="Instead of the endpoint's own.")
@click.option("--scaler", type=click.Choice(["queue-delay", "request-count"]), help="Instead of the endpoint's own.")
@click.option("--scaler-value", type=int, help="Instead of the endpoint's own.")
@click.option("--concurrency", type=int, help="Instead of the endpoint's own.")
@click.option("--flashboot/--no-flashboot", default=None, help="Instead of the endpoint's own.")
@click.option(
    "--flex-price",
    type=click.FloatRange(min=0, min_open=True),
    metavar="USD_PER_SECOND",
    help="Of one GPU, or of a CPU worker, for which no price is listed.",
)
@click.option(
    "--active-price",
    type=click.FloatRange(min=0, min_open=True),
    metavar="USD_PER_SECOND",
    help="The same in workers that are always there.",
)
@click.option(
    "--target-p95", metavar="TIME", help="Find the cheapest setting in which 95 % of the jobs wait no longer."
)
@click.option("--most-workers", type=int, help="The search goes no higher.")
@click.option(
    "--compare", "is_comparing", is_flag=True, help="Also try a floor of 0 and 1, by the hour, by queue depth."
)
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.svg", help="Draw it over time.")
@click.option("--url", help="The platform's address for --load dev, instead of the running `flashkit dev`.")
@click.option("--json", "is_json", is_flag=True, help="Print everything as one JSON object.")
def command(app: Path | None, **given: Any) -> int:
    """Run a load through the local platform's scaler on virtual time: waits, cold starts, use and cost.

    APP is the file that defines the endpoint, or its folder; the current one without APP. Bounds, timeouts, scaler,
    concurrency and GPU are the endpoint's own. A day of 100,000 jobs takes some seconds.
    """
    from flashkit.cli.dev import locate_app

    file = locate_app(app or Path.cwd()).resolve()
    return asyncio.run(_simulate(file, given))


async def _simulate(file: Path, given: Mapping[str, Any]) -> int:
    from flashkit.cli.simulation_plot import draw
    from flashkit.cli.simulation_text import print_answer
    from flashkit.simulation.trials import answer

    question = await _question(file, given)
    with _progress(question) as told:
        found = answer(question, told)
    if given["plot"]:
        draw(found, given["plot"])
    if given["is_json"]:
        import orjson

        sys.stdout.write(orjson.dumps(found.to_dict(), option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        print_answer(found)
    return 0


async def _question(file: Path, given: Mapping[str, Any]) -> Question:
    from flashkit.cli.emulation import read_duration
    from flashkit.plan.figures import Figure
    from flashkit.simulation.cold_starts import estimate_cold_start
    from flashkit.simulation.running import THAW_SECONDS, WorkerTimes
    from flashkit.simulation.search import Target
    from flashkit.simulation.trials import Question

    spec = _changed(await _find_endpoint(file, given["endpoint"]), given)
    load, cold = await _load(spec, given)
    if given["cold_start"]:
        cold = Figure(read_duration(given["cold_start"]), "seconds", "--cold-start")
    cold = cold or estimate_cold_start(spec)
    thaw = read_duration(given["thaw"]) if given["thaw"] else THAW_SECONDS
    return Question(
        spec=spec,
        load=load,
        times=WorkerTimes(cold_start=cold.value, thaw=thaw),
        cold_start=cold,
        prices=_prices(spec, given["flex_price"], given["active_price"]),
        target=Target(read_duration(given["target_p95"])) if given["target_p95"] else None,
        most_workers=given["most_workers"],
        is_comparing=given["is_comparing"],
    )


def _prices(spec: EndpointSpec, flex: float | None, active: float | None) -> Prices:
    """Return the prices of a worker: those given, else the catalogue's; an active one costs no more than another."""
    from flashkit.simulation.results import Prices

    listed, count = Prices.of(spec), spec.gpu_count if spec.gpu else 1
    flex = listed.flex if flex is None else flex * count
    if active is not None:
        return Prices(flex, active * count)
    return Prices(flex, min((price for price in (flex, listed.active) if price is not None), default=None))


async def _find_endpoint(file: Path, name: str | None) -> EndpointSpec:
    from flashkit.catalog import nearest_names
    from flashkit.cli.apps import describe_app

    specs = {endpoint.name: endpoint.spec for endpoint in await describe_app(file, env={})}
    if name is None and len(specs) == 1:
        return next(iter(specs.values()))
    if name is None:
        raise ConfigurationError(f"{file.name} has several endpoints", hint=f"add --endpoint: {', '.join(specs)}")
    if name not in specs:
        near = nearest_names(name, list(specs), limit=1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigurationError(f"{file.name} has no endpoint {name!r}", hint=f"{meant}it has {', '.join(specs)}")
    return specs[name]


def _changed(spec: EndpointSpec, given: Mapping[str, Any]) -> EndpointSpec:
    """Return the endpoint with what the command line says instead.

    Raises:
        InputError: No endpoint can be set so.
    """
    from flashkit.cli.emulation import read_duration
    from flashkit.spec import ScalerType, WorkerBounds

    changes: dict[str, Any] = {name: given[name] for name in ("scaler_value", "concurrency", "flashboot")}
    if given["scaler"]:
        changes["scaler_type"] = ScalerType(given["scaler"].replace("-", "_").upper())
    if given["idle_timeout"]:
        changes["idle_timeout"] = round(read_duration(given["idle_timeout"]))
    try:
        if given["workers"]:
            numbers = [int(number) for number in given["workers"].split(",")]
            changes["workers"] = WorkerBounds.from_option(numbers if len(numbers) > 1 else numbers[0])
        return dataclasses.replace(spec, **{name: value for name, value in changes.items() if value is not None})
    except DefinitionError as exc:
        raise InputError(exc.report.message, hint=exc.report.hint) from exc
    except ValueError as exc:
        raise InputError(f"--workers {given['workers']!r} are no bounds", hint="write --workers 1,5") from exc


async def _load(spec: EndpointSpec, given: Mapping[str, Any]) -> tuple[Load, Any]:
    """Return the load, and the cold start where it tells of one."""
    from flashkit.cli.emulation import read_duration
    from flashkit.simulation.load import PEAKS, Traffic
    from flashkit.simulation.trace_file import read_trace

    seconds = read_duration(given["seconds"]) if given["seconds"] else None
    if given["load"] not in PEAKS and (given["rate"] or given["peak"]):
        raise ConfigurationError(
            f"--rate and --peak describe a made-up load, and {given['load']} is a recorded one",
            hint=f"leave them out, or choose one of {', '.join(PEAKS)} with --load",
        )
    if given["load"] == "dev":
        return await _dev_load(spec.name, given["url"])
    if given["load"] not in PEAKS:
        return read_trace(_file_of(given["load"]), endpoint=spec.name, seconds=seconds), None
    if given["rate"] is None or seconds is None:
        raise ConfigurationError(
            f"a {given['load']} load is made up, so it has to be said how many jobs there are and how long they run",
            hint="add for example --rate 2/s --seconds 1.5s, or name a recorded load with --load",
        )
    traffic = Traffic(
        given["load"],
        jobs_per_second=read_rate(given["rate"]),
        seconds=seconds,
        variation=given["variation"],
        window_seconds=read_duration(given["window"]),
        peak=given["peak"],
        seed=given["seed"],
    )
    return traffic.make(), None


def _file_of(name: str) -> Path:
    from flashkit.catalog import nearest_names
    from flashkit.simulation.load import PEAKS

    file = Path(name)
    if not file.exists() and not file.suffix:
        near = nearest_names(name, [*PEAKS, "dev"], limit=1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(
            f"--load {name!r} is neither a shape nor a file",
            hint=f"{meant}shapes: {', '.join(PEAKS)}; or dev, or a file",
        )
    return file


async def _dev_load(endpoint: str, url: str | None) -> tuple[Load, Any]:
    """Return the jobs that the running `flashkit dev` remembers, and the median of the cold starts among them."""
    from statistics import median

    from flashkit.cli.local_platform import DevClient, local_settings
    from flashkit.plan.figures import Figure
    from flashkit.simulation.load import load_of

    async with DevClient(local_settings(url)) as platform:
        await platform.check_endpoint(endpoint)
        jobs = (await platform.get("/_/jobs", endpoint=endpoint, limit=1000))["jobs"]
    ran = [(job["submitted_at"], job["execution_ms"] / 1000) for job in jobs if job["execution_ms"] is not None]
    if not ran:
        raise InputError(
            f"no job of endpoint {endpoint!r} has ended on the running flashkit dev", hint="send it some, then simulate"
        )
    cold = [job["cold_start_ms"] / 1000 for job in jobs if job["cold_start_ms"] is not None]
    figure = Figure(median(cold), "seconds", f"median of {len(cold)} on flashkit dev") if cold else None
    return load_of(ran, words="load of flashkit dev"), figure


def read_rate(text: str) -> float:
    """Return the jobs per second of `2/s`, `90/min`, `5000/h` or `100000/day`.

    Raises:
        InputError: It is no rate.
    """
    number, _, unit = text.partition("/")
    try:
        return float(number.replace(",", "")) / _RATE_UNITS[unit or "s"]
    except (ValueError, KeyError) as exc:
        raise InputError(f"--rate {text!r} is no rate", hint="write 2/s, 90/min, 5000/h or 100000/day") from exc


@contextmanager
def _progress(question: Question) -> Iterator[Callable[[str, float], None]]:
    """Show on a terminal what is simulated while the block lasts."""
    if not sys.stderr.isatty():
        yield lambda what, share: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"{len(question.load):,} jobs", total=1.0)
        yield lambda what, share: progress.update(task, description=what, completed=share)
