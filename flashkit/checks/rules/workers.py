"""FK1xx: which GPUs, how many workers, and what they cost."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, Final

from flashkit import catalog
from flashkit.catalog import GpuPool
from flashkit.checks.models import model_of, possible_gpus, short_name
from flashkit.checks.project import Endpoint, Place, Project
from flashkit.checks.rule import PRODUCTION, SHIPPED, Problem, Severity, endpoint_rule, rule
from flashkit.plan.gpu_generations import CAPABILITIES, models_of
from flashkit.plan.interruption import judge_interruption
from flashkit.spec import Kind

_WARM: Final = 1
_WARM_BEHIND_A_BALANCER: Final = 2
_WARM_IN_PRODUCTION: Final = 3
_SPREAD: Final = 2
"""Chosen: GPUs whose memory or price differs by this factor are not stand-ins for each other."""
_SMALLEST_MEMORY_GB: Final = 4
"""Fitness check of the runpod SDK from 1.9 on (docs.runpod.io/serverless/development/fitness-checks)."""
_HOURS_A_MONTH: Final = 730


@rule(
    "FK101",
    "gpu-pinned",
    Severity.WARNING,
    what="Every GPU endpoint names the GPU models that it may get.",
    why="Where the platform chooses, memory, speed and price differ from worker to worker: a model that fitted "
    "yesterday is out of memory today, and nobody can say what an hour costs.",
    fix="Name models in order of preference, gpu=['L40S', 'A100']; in .runpod/hub.json name pools in `gpuIds`.",
)
def gpu_pinned(project: Project) -> Iterator[Problem]:
    """Pools whose models differ, and Hub files that name no pool."""
    for endpoint in project.endpoints:
        for pool in endpoint.spec.gpu:
            if isinstance(pool, GpuPool) and _is_mixed(pool):
                names = ", ".join(short_name(catalog.GPUS[model]) for model in models_of((pool,)))
                yield Problem(
                    f"endpoint `{endpoint.name}` has gpu={pool.value}, a pool of unlike GPUs: {names}",
                    endpoint.place,
                    endpoint=endpoint.name,
                )
    for path, config in _hub_configs(project):
        ids = config.get("gpuIds")
        if config.get("runsOn") == "GPU" and (not ids or "ANY" in str(ids).upper().split(",")):
            yield Problem(f"{path} runs on any GPU: gpuIds is {ids or 'not set'}", Place(path))


@endpoint_rule(
    "FK102",
    "gpu-alternatives-alike",
    Severity.WARNING,
    what="The GPUs that an endpoint may get are of about the same size and price.",
    why="Options such as max_model_len and gpu_memory_utilization fit one size. On a card with half the memory the "
    "engine does not start; on one of three times the price the budget is gone in a third of the time.",
    fix="Keep to GPUs of one class, or make two endpoints.",
)
def gpu_alternatives_alike(endpoint: Endpoint, project: Project) -> Iterator[Problem]:
    """Preference lists that span classes."""
    del project
    gpus = possible_gpus(endpoint)
    if not gpus or _is_one_pool(endpoint):
        return
    small, large = min(gpus, key=lambda gpu: gpu.vram_gb), max(gpus, key=lambda gpu: gpu.vram_gb)
    if large.vram_gb >= _SPREAD * small.vram_gb:
        yield Problem(
            f"endpoint `{endpoint.name}` may get {short_name(small)} with {small.vram_gb} GB or {short_name(large)} "
            f"with {large.vram_gb} GB"
        )


@endpoint_rule(
    "FK103",
    "warm-worker",
    Severity.WARNING,
    what="An endpoint that somebody waits for keeps at least one worker.",
    why="From zero workers the first caller waits for the whole cold start: 20 to 90 seconds where a model is loaded. "
    "An agent meets that several times in one turn.",
    fix="Write workers=(1, ...) where people or agents wait; leave it at 0 for batches, and say so in a comment.",
    environments=SHIPPED,
)
def warm_worker(endpoint: Endpoint, project: Project) -> Iterator[Problem]:
    """GPU endpoints, orchestrators and load-balanced ones that scale to zero."""
    is_waited_for = endpoint.spec.kind is not Kind.CPU or endpoint.spec.load_balanced
    if is_waited_for and endpoint.spec.workers.min < _WARM and not _has_higher_floor(endpoint, project):
        yield Problem(
            f"endpoint `{endpoint.name}` scales to zero, so the first call after {endpoint.spec.idle_timeout} s of "
            "quiet waits for a cold start"
        )


@endpoint_rule(
    "FK104",
    "production-floor",
    Severity.WARNING,
    what="In production, an API that people use keeps at least three workers.",
    why="One worker is a single point of failure: while it restarts, updates or works, everybody else waits. With "
    "three, "
    "one may be busy and one may be gone.",
    fix="Write workers=(3, ...) for production.",
    environments=PRODUCTION,
)
def production_floor(endpoint: Endpoint, project: Project) -> Iterator[Problem]:
    """Agents and models that clients call directly."""
    if project.is_api(endpoint) and endpoint.spec.workers.min < _WARM_IN_PRODUCTION:
        yield Problem(
            f"endpoint `{endpoint.name}` is what clients call, and keeps {_workers(endpoint.spec.workers.min)} warm"
        )


@endpoint_rule(
    "FK105",
    "load-balanced-floor",
    Severity.WARNING,
    what="In production, a load-balanced endpoint keeps at least two workers.",
    why="There is no queue: a request without a ready worker waits at most 2 minutes and is then refused. A second "
    "warm worker is what takes over when the first one fails its health check.",
    fix="Write workers=(2, ...) for production.",
    environments=PRODUCTION,
)
def load_balanced_floor(endpoint: Endpoint, project: Project) -> Iterator[Problem]:
    """Load-balanced endpoints with fewer than two warm workers."""
    del project
    if endpoint.spec.load_balanced and endpoint.spec.workers.min < _WARM_BEHIND_A_BALANCER:
        yield Problem(
            f"load-balanced endpoint `{endpoint.name}` keeps {_workers(endpoint.spec.workers.min)} warm, and has no "
            "queue in which requests could wait"
        )


@rule(
    "FK106",
    "fan-out-fits",
    Severity.WARNING,
    what="An endpoint has at least as many places as one turn of the app asks for at the same time.",
    why="Calls beyond workers.max times concurrency wait in the queue, so a fan-out of ten to three places takes four "
    "rounds, and its timeouts run meanwhile.",
    fix="Raise workers=(min, max) or concurrency to the size of the fan-out.",
)
def fan_out_fits(project: Project) -> Iterator[Problem]:
    """Gathers that are larger than the endpoint they call."""
    for caller in project.endpoints:
        for fan_out in caller.code.fan_outs if caller.code else ():
            callee = project.find(fan_out.callee)
            places = callee.spec.workers.max * callee.spec.concurrency if callee else 0
            if callee and (fan_out.count > places or (fan_out.is_open and places == 1)):
                many = "a list of calls" if fan_out.is_open and fan_out.count <= places else f"{fan_out.count} calls"
                yield Problem(
                    f"`{caller.name}` makes {many} to `{callee.name}` at the same time, which has room for {places}: "
                    f"{_workers(callee.spec.workers.max)} with concurrency {callee.spec.concurrency}",
                    fan_out.place,
                    endpoint=caller.name,
                )


@endpoint_rule(
    "FK107",
    "flashboot-on",
    Severity.WARNING,
    what="FlashBoot is on where workers load something.",
    why="FlashBoot keeps a stopped worker's state for a faster start: seconds instead of minutes where a model is "
    "loaded. It costs nothing, but an endpoint made through REST v2 has it only where it is asked for.",
    fix="Leave flashboot out: True is the default here.",
    environments=SHIPPED,
)
def flashboot_on(endpoint: Endpoint, project: Project) -> Iterator[Problem]:
    """GPU endpoints that switch it off."""
    del project
    is_scaled = endpoint.spec.workers.max > endpoint.spec.workers.min
    if endpoint.spec.gpu and is_scaled and not endpoint.spec.flashboot:
        yield Problem(f"endpoint `{endpoint.name}` has flashboot=False, so each start loads everything anew")


@endpoint_rule(
    "FK108",
    "standing-cost",
    Severity.NOTE,
    what="What warm workers cost is known before they are deployed.",
    why="Workers of the minimum are paid day and night, whether there are jobs or not.",
    fix="Compare it with what a cold start costs you; lower workers=(min, ...) where nobody waits.",
)
def standing_cost(endpoint: Endpoint, project: Project) -> Iterator[Problem]:
    """The price of the minimum."""
    del project
    spec = endpoint.spec
    price = catalog.usd_per_second(spec.gpu[0], is_active=True) if spec.gpu else None
    if price is not None and spec.workers.min:
        hour = spec.workers.min * spec.gpu_count * price * 3600
        cards = f" x {spec.gpu_count} GPUs" if spec.gpu_count > 1 else ""
        yield Problem(
            f"endpoint `{endpoint.name}` costs about ${hour:,.2f} an hour without a single job, "
            f"${hour * _HOURS_A_MONTH:,.0f} "
            f"a month: {_workers(spec.workers.min)}{cards} x ${price:.5f} a second (prices of {catalog.READ_ON})"
        )


@rule(
    "FK109",
    "idle-limits-known",
    Severity.NOTE,
    what="Somebody knows that the platform lowers an endpoint that is not used.",
    why="After 3 days without a request Runpod lowers an endpoint's most workers to 2, after 7 days to 0, until a "
    "person raises them again. The next request then waits in the queue for ever.",
    fix="Send a request every few days, keep one worker warm, or raise the limit again before you need it.",
    environments=PRODUCTION,
)
def idle_limits_known(project: Project) -> Iterator[Problem]:
    """One note for all endpoints that scale to zero."""
    names = [
        endpoint.name
        for endpoint in project.endpoints
        if endpoint.spec.workers.min == 0 and project.is_entry(endpoint) and not endpoint.is_plain_handler
    ]
    if names:
        listed = ", ".join(f"`{name}`" for name in names)
        verb = "keeps" if len(names) == 1 else "keep"
        first = project.find(names[0])
        yield Problem(
            f"{listed} {verb} no worker: after 3 days without a request the platform allows 2 workers, after 7 days "
            "none until somebody raises it",
            first.place if first else None,
        )


@endpoint_rule(
    "FK110",
    "memory-for-fitness-check",
    Severity.ERROR,
    what="A CPU worker has the 4 GB that the SDK's fitness check demands, or the check is told of less.",
    why="At start, the runpod SDK (1.9 and later) ends a worker with less than 4 GB of memory. It never takes a job, "
    "and "
    "the platform starts the next one.",
    fix='Take an instance with 4 GB, or write env={"RUNPOD_MIN_MEMORY_GB": "1"}.',
)
def memory_for_fitness_check(endpoint: Endpoint, project: Project) -> Iterator[Problem]:
    """Instances with 2 GB."""
    del project
    memory_gb = int(endpoint.spec.cpu.rpartition("-")[2]) if endpoint.spec.cpu else _SMALLEST_MEMORY_GB
    is_told = {"RUNPOD_MIN_MEMORY_GB", "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS"} & endpoint.env.keys()
    if memory_gb < _SMALLEST_MEMORY_GB and not is_told:
        yield Problem(
            f"endpoint `{endpoint.name}` runs on {endpoint.spec.cpu} with {memory_gb} GB, and the SDK's fitness check "
            f"ends workers with less than {_SMALLEST_MEMORY_GB} GB"
        )


@endpoint_rule(
    "FK111",
    "gpus-are-used",
    Severity.ERROR,
    what="A worker has as many GPUs as its engine can use.",
    why="With fewer the engine does not start. With more, the others are paid for and do nothing. Tensor parallelism "
    "also needs a number that divides the model's attention heads.",
    fix="Make gpu_count and tensor_parallel_size agree, and let them divide the number of attention heads: 1, 2, 4 "
    "or 8.",
)
def gpus_are_used(endpoint: Endpoint, project: Project) -> Iterator[Problem]:
    """GPU counts that do not fit the engine."""
    spec, model = endpoint.spec, model_of(endpoint, project)
    if spec.engine is not None and spec.engine.type != "vllm" and spec.gpu_count > 1:
        yield Problem(
            f"endpoint `{endpoint.name}` has {spec.gpu_count} GPUs, and its {spec.engine.type} engine uses one",
            fix="Write gpu_count=1.",
        )
    if model is None or spec.engine is None or spec.engine.type != "vllm":
        return
    degree = int(model.option("tensor_parallel_size") or 1)
    wanted = degree * math.prod(
        int(model.option(name) or 1) for name in ("pipeline_parallel_size", "data_parallel_size")
    )
    if wanted != spec.gpu_count:
        yield Problem(
            f"endpoint `{endpoint.name}` has gpu_count={spec.gpu_count}, and its engine is spread over {wanted} GPUs: "
            f"tensor_parallel_size={degree}"
        )
    elif model.shape is not None and model.shape.heads % degree:
        yield Problem(
            f"endpoint `{endpoint.name}` spreads {model.shape.heads} attention heads of {model.weights.name} over "
            f"{degree} GPUs, which does not come out even: vLLM refuses to start"
        )


@rule(
    "FK112",
    "spot-with-checkpoints",
    Severity.ERROR,
    what="Only endpoints whose sessions are checkpointed run on machines that may be taken away.",
    why="An interruptible machine goes with a notice of seconds. An orchestrator's finished steps are in its journal "
    "and "
    "another worker goes on; any other job starts again from its first line, and what it did happens twice.",
    fix="Take `interruptible` out, or move the work into steps of an @orchestrator_endpoint.",
)
def spot_with_checkpoints(project: Project) -> Iterator[Problem]:
    """`.runpod` files that ask for interruptible machines."""
    others = [each.name for each in project.endpoints if not judge_interruption(each.spec).is_allowed]
    for path, data in _runpod_files(project):
        if others and _asks_for_spot(data):
            listed = ", ".join(f"`{name}`" for name in others)
            yield Problem(f"{path} asks for interruptible machines, and {listed} would lose running jobs", Place(path))


def _has_higher_floor(endpoint: Endpoint, project: Project) -> bool:
    """True where FK104 or FK105 asks for more warm workers already."""
    return project.environment in PRODUCTION and (endpoint.spec.load_balanced or project.is_api(endpoint))


def _workers(count: int) -> str:
    return "no worker" if count == 0 else "1 worker" if count == 1 else f"{count} workers"


def _is_mixed(pool: GpuPool) -> bool:
    models = models_of((pool,))
    return len({(catalog.GPUS[model].vram_gb, CAPABILITIES[model]) for model in models}) > 1


def _is_one_pool(endpoint: Endpoint) -> bool:
    return len({gpu.pool for gpu in possible_gpus(endpoint)}) == 1


def _runpod_files(project: Project) -> Iterator[tuple[str, Any]]:
    for path, text in project.files_below(".runpod/"):
        try:
            yield path, json.loads(text)
        except ValueError:  # the platform's own tools say so
            continue


def _hub_configs(project: Project) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, data in _runpod_files(project):
        config = data.get("config") if isinstance(data, dict) else None
        if path.endswith("hub.json") and isinstance(config, dict):
            yield path, config


def _asks_for_spot(data: Any) -> bool:
    if isinstance(data, dict):
        return data.get("interruptible") is True or any(map(_asks_for_spot, data.values()))
    return isinstance(data, list) and any(map(_asks_for_spot, data))
