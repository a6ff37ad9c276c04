"""The same endpoint on another engine: a test's app file puts a scripted model in the place of a real one."""

from __future__ import annotations

from dataclasses import replace
from typing import ParamSpec, TypeVar

from flashkit.endpoint import Endpoint
from flashkit.errors import DefinitionError
from flashkit.spec import EngineSpec

CallP = ParamSpec("CallP")
JobP = ParamSpec("JobP")
CallR = TypeVar("CallR")
Output = TypeVar("Output")


def with_engine(
    endpoint: Endpoint[CallP, CallR, JobP, Output], engine: EngineSpec
) -> Endpoint[CallP, CallR, JobP, Output]:
    """Return the endpoint, its name and its handler, on another engine.

    Args:
        endpoint: One that has an engine.
        engine: What its workers load instead: `ScriptedLLM({...})`.

    Raises:
        DefinitionError: The endpoint has no engine, or cannot have this one.

    Example:
        >>> from flashkit import ScriptedLLM, VLLM, Weights, gpu_endpoint
        >>> llm = gpu_endpoint(name="llm", gpu="A100", engine=VLLM(Weights("org/model")))
        >>> with_engine(llm, ScriptedLLM("Hello.")).spec.engine.type
        'scripted'
    """
    definition = endpoint.definition
    if definition.spec.engine is None:
        raise DefinitionError(
            f"endpoint {endpoint.name!r} has no engine that could be replaced", hint="call its handler, or use run_job"
        )
    return Endpoint(replace(definition, spec=replace(definition.spec, engine=engine)))
