"""`flashkit plan MODEL|APP`: memory, sessions and GPUs of a model, or of every model that an app loads."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashkit.errors import ConfigurationError, FlashkitError
from flashkit.settings import Settings

if TYPE_CHECKING:
    from flashkit.catalog import GpuType
    from flashkit.plan.app_plan import EndpointPlan, Load
    from flashkit.plan.line_chart import Chart
    from flashkit.plan.model_plan import ModelPlan
    from flashkit.plan.placing import Demand, Prices

WORKLOADS = ("chat", "first-token", "throughput", "embedding")
_CONTEXTS = tuple(1024 * 2**power for power in range(8))


@click.command("size")
@click.argument("target", metavar="MODEL|APP")
@click.option(
    "--context",
    default=4096,
    show_default=True,
    type=click.IntRange(min=1),
    metavar="TOKENS",
    help="Of one session, its prompt and answer together.",
)
@click.option(
    "--prompt",
    default=None,
    type=click.IntRange(min=1),
    metavar="TOKENS",
    help="Read before the first token; three quarters of --context by default.",
)
@click.option(
    "--sessions", default=8, show_default=True, type=click.IntRange(min=1), metavar="N",
    help="At the same time, on all workers together.",
)  # fmt: skip
@click.option(
    "--for",
    "workload",
    default="chat",
    show_default=True,
    type=click.Choice(WORKLOADS),
    help="What the GPU is chosen for: the price of the sessions, a first token in time, the price of tokens.",
)
@click.option(
    "--first-token",
    default=1.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="In time, with --for first-token.",
)
@click.option("--quantization", metavar="METHOD", help="fp8, awq, gptq, nvfp4 ...; as the files are by default.")
@click.option("--dtype", metavar="TYPE", help="bfloat16, float16 or float32; 32-bit files are served in 16 bits.")
@click.option("--kv-dtype", metavar="TYPE", help="vLLM's kv_cache_dtype, such as fp8.")
@click.option(
    "--memory-utilization",
    default=0.9,
    show_default=True,
    metavar="SHARE",
    type=click.FloatRange(min=0, max=1, min_open=True),
    help="vLLM's gpu_memory_utilization.",
)
@click.option("--max-num-seqs", type=click.IntRange(min=1), help="vLLM's; by default what it takes on each GPU.")
@click.option("--gpu", "gpus", multiple=True, metavar="NAME", help="Only these; may be repeated.")
@click.option(
    "--gpu-count",
    "counts",
    multiple=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Only so many GPUs in a worker; may be repeated.",
)
@click.option("--revision", metavar="REV", help="A commit, tag or branch of the model.")
@click.option(
    "--traffic",
    "traffic",
    multiple=True,
    metavar="[NAME=]JOBS:SECONDS",
    help="Of an app: jobs a day and how long one takes, of one endpoint or of all.",
)
@click.option(
    "--cold-start",
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long a worker takes to start, for --traffic.",
)
@click.option(
    "--prices",
    "prices_from",
    default="dated",
    show_default=True,
    metavar="dated|runpod|local|URL",
    help="Flex prices: flashkit's own, or those of the platform's catalogue (RUNPOD_API_KEY).",
)
@click.option("--all", "is_all", is_flag=True, help="Every worker that fits, and why others do not.")
@click.option("--explain", "is_explained", is_flag=True, help="The formula and source of every figure.")
@click.option("--json", "is_raw", is_flag=True, help="Print JSON on one line.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.svg",
              help="Draw the sessions that a worker carries, by their length.")  # fmt: skip
def command(target: str, **asked: Any) -> None:
    """Say which GPU a model or an app needs, and how many sessions it carries.

    MODEL is organisation/name, a model's folder or its config.json. It is looked for on this machine, where workers
    look, then on the Hugging Face hub, of which only the config is read. APP is a file or folder that defines
    endpoints: each is planned with its own GPUs and options.

    How it is computed, and how close it is to what vLLM says of itself: see "Plan memory, GPUs and cost" in the docs.
    """
    from flashkit.cli.plan_prices import read_prices

    demand, settings = _demand(asked), Settings.from_environment()
    prices = read_prices(asked["prices_from"])
    app = _app_file(Path(target))
    if app is not None:
        plans = _plan_app(app, demand, asked, settings, prices)
        if asked["plot"]:
            raise click.UsageError("--plot draws the plan of a model: name one, not an app")
        _show_app(plans, asked)
        return
    plan = _plan_model(target, demand, asked, settings, prices)
    if asked["plot"]:
        from flashkit.cli.plan_plots import write_chart

        write_chart(asked["plot"], _chart(plan, prices))
    _show_model(plan, asked)


def _demand(asked: Mapping[str, Any]) -> Demand:
    from flashkit.plan.placing import Demand, Workload

    return Demand(
        context_tokens=asked["context"], prompt_tokens=asked["prompt"], sessions=asked["sessions"],
        workload=Workload(asked["workload"]), first_token_seconds=asked["first_token"],
        quantization=asked["quantization"], dtype=_checked_dtype(asked["dtype"]), kv_dtype=asked["kv_dtype"],
        memory_utilization=asked["memory_utilization"], max_num_seqs=asked["max_num_seqs"],
    )  # fmt: skip


def _checked_dtype(dtype: str | None) -> str | None:
    from flashkit.plan.model_shape import BYTES_OF, normal_dtype

    if dtype not in (None, "auto") and normal_dtype(dtype) is None:
        raise click.BadParameter(f"{dtype!r} is not one of {', '.join(BYTES_OF)}", param_hint="--dtype")
    return dtype


def _app_file(path: Path) -> Path | None:
    """Return the file of an app that the path names; None where it is a model, or nothing at all."""
    from flashkit.cli.plan_models import CONFIG
    from flashkit.cli.projects import USUAL_NAMES, find_app

    if path.is_file():
        return path.resolve() if path.suffix == ".py" else None
    if path.suffix == ".py":
        raise ConfigurationError(f"there is no file {path}", hint="name a file that defines endpoints")
    if not path.is_dir() or (path / CONFIG).is_file():
        return None
    if found := find_app(path):
        return found.resolve()
    raise ConfigurationError(
        f"{path} holds neither a model ({CONFIG}) nor an app ({', '.join(USUAL_NAMES)})",
        hint="name a model's folder, or the file that defines your endpoints",
    )


def _plan_model(target: str, demand: Demand, asked: Mapping[str, Any], settings: Settings, prices: Prices) -> ModelPlan:
    from flashkit.cli.plan_models import find_model, read_model_folder, weights_named
    from flashkit.plan.model_plan import plan_model

    if asked["traffic"]:
        raise click.UsageError("--traffic is for an app; of one kind of worker: flashkit plan cost")
    path, revision = Path(target), asked["revision"]
    facts = read_model_folder(path) if path.exists() else find_model(weights_named(target, revision), settings)
    options: dict[str, Any] = {"gpus": _gpus(asked["gpus"])} if asked["gpus"] else {}
    return plan_model(facts, demand, counts=asked["counts"] or None, prices=prices, **options)


def _plan_app(
    app: Path, demand: Demand, asked: Mapping[str, Any], settings: Settings, prices: Prices
) -> list[EndpointPlan]:
    from flashkit.cli.describing import ask_app, no_endpoint_in
    from flashkit.cli.projects import project_folder
    from flashkit.plan.app_plan import plan_endpoint
    from flashkit.spec import EndpointSpec

    if asked["gpus"] or asked["counts"]:
        raise click.UsageError("an app's endpoints name their own GPUs; --gpu and --gpu-count are for a model")
    answer = asyncio.run(ask_app(app))
    specs = [EndpointSpec.from_dict(item["spec"]) for item in answer["endpoints"]]
    if not specs:
        raise no_endpoint_in(app)
    loads = _loads(asked["traffic"], [spec.name for spec in specs])
    settings = replace(settings, weights_dir=project_folder(app) / settings.weights_dir)
    plans = []
    for spec in specs:
        facts, problem = _facts_of(spec, settings)
        plans.append(
            plan_endpoint(
                spec, facts, demand,
                problem=problem, load=loads.get(spec.name), cold_start_seconds=asked["cold_start"], prices=prices,
            )
        )  # fmt: skip
    return plans


def _facts_of(spec: Any, settings: Settings) -> tuple[Any, str | None]:
    """Return what is known of an endpoint's model, or why nothing is."""
    from flashkit.cli.plan_models import find_model

    engine = spec.engine
    if engine is None or engine.weights is None or engine.options.get("mode") == "remote":
        return None, None
    try:
        return find_model(engine.weights, settings), None
    except FlashkitError as exc:
        return None, exc.report.message + _size_by_name(engine.weights.name)


def _size_by_name(name: str) -> str:
    from flashkit.plan.sizing import parameters_in_name, quantization_in_name, weights_bytes_of

    parameters = parameters_in_name(name)
    if parameters is None:
        return ""
    return f"; by its name the weights are {weights_bytes_of(parameters, quantization=quantization_in_name(name))}"


def _loads(texts: Sequence[str], names: Sequence[str]) -> dict[str, Load]:
    """Return the traffic of each endpoint: its own, else the one that is for all."""
    from flashkit.catalog import nearest_names

    loads: dict[str, Load] = {}
    for text in texts:
        name, mark, rest = text.rpartition("=")
        load = _load(rest, text)
        if mark and name not in names:
            near = nearest_names(name, names, limit=1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(names)}"
            raise click.BadParameter(f"there is no endpoint {name!r}{hint}", param_hint="--traffic")
        loads = {**loads, name: load} if mark else {**dict.fromkeys(names, load), **loads}
    return loads


def _load(text: str, whole: str) -> Load:
    from flashkit.plan.app_plan import Load

    try:
        jobs, seconds = map(float, text.split(":"))
    except ValueError:
        raise click.BadParameter(
            f"{whole!r} is not [NAME=]JOBS:SECONDS, such as 20000:4 or llm=20000:4", param_hint="--traffic"
        ) from None
    return Load(jobs, seconds)


def _gpus(names: Sequence[str]) -> tuple[GpuType, ...]:
    from flashkit.catalog import resolve_gpus
    from flashkit.plan.gpu_generations import models_of

    try:
        return models_of(resolve_gpus(names))
    except FlashkitError as exc:
        raise ConfigurationError(f"--{exc.report.message}", hint=exc.report.hint) from exc


def _show_model(plan: ModelPlan, asked: Mapping[str, Any]) -> None:
    if asked["is_raw"]:
        from flashkit.cli.run import write_json_line

        write_json_line(plan.to_dict())
        return
    from flashkit.cli.plan_text import show_model_plan

    show_model_plan(plan, is_explained=asked["is_explained"], is_all=asked["is_all"])


def _show_app(plans: Sequence[EndpointPlan], asked: Mapping[str, Any]) -> None:
    if asked["is_raw"]:
        from flashkit.cli.run import write_json_line

        write_json_line({"endpoints": [plan.to_dict() for plan in plans]})
        return
    from flashkit.cli.plan_text import show_app_plan

    show_app_plan(plans, is_explained=asked["is_explained"], is_all=asked["is_all"])


def _chart(plan: ModelPlan, prices: Prices) -> Chart:
    """Return the sessions that the best workers plan for, by their length."""
    from flashkit.plan.line_chart import Chart, Line
    from flashkit.plan.placing import Placement, place

    longest = plan.shape.max_tokens or _CONTEXTS[-1]
    lengths = [tokens for tokens in _CONTEXTS if tokens <= longest] or [longest]
    lines = []
    for worker in plan.shortlist[:6]:
        points = []
        for tokens in lengths:
            demand = replace(plan.demand, context_tokens=tokens)
            placed = place(
                plan.shape, demand, worker.gpu, worker.gpu_count, files=plan.in_memory, prices=prices
            )  # fmt: skip
            points.append((float(tokens), placed.planned.value if isinstance(placed, Placement) else 0.0))
        lines.append(Line(worker.name, tuple(points)))
    return Chart(f"{plan.name}: sessions to plan for on one worker", "tokens of a session", "sessions", tuple(lines))
