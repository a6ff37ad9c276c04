"""The emulator: platform, worker processes and HTTP, put together in one event loop.

`async with Emulator(...)` is all there is to it. The server listens before the first worker starts, and
workers are gone before it stops listening, so no worker ever meets a closed door. Run it under uvloop
for speed; any asyncio loop works.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flashkit.emulator.admission import Admission
from flashkit.emulator.adviser import Adviser
from flashkit.emulator.application import Application
from flashkit.emulator.bodies import encode_json
from flashkit.emulator.clock import Clock
from flashkit.emulator.control import ControlRoutes
from flashkit.emulator.dashboard import dashboard_routes
from flashkit.emulator.dispatch import Dispatcher
from flashkit.emulator.events import Event, ignore
from flashkit.emulator.fault_injection import FaultInjector
from flashkit.emulator.fault_routes import fault_routes
from flashkit.emulator.faults import parse_faults, refuse_store_faults
from flashkit.emulator.http_server import listen, make_server, url_of
from flashkit.emulator.load_balancing.entry import LoadBalancing
from flashkit.emulator.management.fleet import LocalWorker
from flashkit.emulator.management.quota import DOCUMENTED_WINDOWS
from flashkit.emulator.management.service import Management, ManagementOptions, management_route
from flashkit.emulator.metrics import Metrics
from flashkit.emulator.metrics_routes import metrics_routes
from flashkit.emulator.overview import Overview
from flashkit.emulator.platform import ColdStart, Job, JobRequest, Platform, check_spec, random_id, seeded_id
from flashkit.emulator.recorder import Recorder
from flashkit.emulator.reports import Reports
from flashkit.emulator.routes import ClientRoutes, RouteOptions
from flashkit.emulator.supervisor import LocalEndpoint, Supervisor
from flashkit.emulator.traces import TRACES_PATH, Traces, traces_routes
from flashkit.emulator.traffic import TrafficRecorder
from flashkit.emulator.webhooks import WebhookSender
from flashkit.emulator.worker_wire import WorkerWire
from flashkit.errors import ErrorReport, FlashkitError
from flashkit.garbage import Collector
from flashkit.protocol import PlatformDefaults
from flashkit.telemetry.store import TraceStore

__all__ = ["Clock", "ColdStart", "Emulator", "LocalEndpoint"]


class Emulator:
    """A platform on this machine, from `async with` until the end of the block.

    Args:
        endpoints: What to run, each with the command that starts a worker.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one, see `url`.
        defaults: The platform's behaviour where it is not documented, and its limits.
        state_dir: Folder for the workers' home directories.
        on_event: Called with everything that happens, in the event loop; it must be quick.
        api_key: When set, clients must send it; workers get it for calls to other endpoints.
        allow_remote_webhooks: Let webhooks leave this machine.
        allowed_hosts: Names under which clients may reach it, besides those of this machine and `host`.
        shutdown_grace: Seconds that workers get to finish their jobs at the end.
        has_rate_limits: Refuse clients that send more than Runpod takes.
        faults: Rules of `faults.parse_faults` for what is to go wrong; `emulator.faults.set` changes them.
        seed: What chance depends on: jobs get the same ids, and the same jobs meet the same faults. Without one,
            ids are random.
        freeze_store: Makes the store of sessions stop answering, or answer again, for the fault `redis=down`, which
            is refused without it.
        clock: The platform's time; real by default. `emulator.clock` sets its speed and moves it on.
        flashboot: Freeze idle workers of endpoints that want FlashBoot instead of stopping them. Off by default:
            a frozen worker keeps its memory on this machine.
        cold_start: What a start takes besides that of the process, for every endpoint or by name.
        capacity: How many workers of an endpoint there are machines for, for every endpoint or by name.
        record_to: A file that gets every submitted job as a line, for `traffic.replay`.
        management: How the management API behaves; its records are kept in the state's folder.
        traces: Where the traces of jobs are kept, closed at the end; without it, none are recorded.
        environ: Where PATH and the like of the workers come from; this process's by default.
    """

    def __init__(
        self,
        endpoints: Sequence[LocalEndpoint],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        defaults: PlatformDefaults | None = None,
        state_dir: Path,
        on_event: Callable[[Event], None] = ignore,
        api_key: str | None = None,
        allow_remote_webhooks: bool = False,
        allowed_hosts: Collection[str] = (),
        shutdown_grace: float = 5.0,
        has_rate_limits: bool = False,
        faults: Sequence[str] = (),
        seed: int | None = None,
        freeze_store: Callable[[bool], None] | None = None,
        clock: Clock | None = None,
        flashboot: bool = False,
        cold_start: ColdStart | Mapping[str, ColdStart] | None = None,
        capacity: int | Mapping[str, int] | None = None,
        record_to: Path | None = None,
        management: ManagementOptions | None = None,
        traces: TraceStore | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        defaults = defaults or PlatformDefaults()
        self.clock = Clock() if clock is None else clock
        self.random = random.Random(seed)  # noqa: S311 - for runs that repeat, not for secrets
        new_id = random_id if seed is None else partial(seeded_id, self.random)
        self.platform = Platform(defaults, new_id=new_id, has_flashboot=flashboot)
        self.recorder = Recorder()
        self.metrics = Metrics(self.platform, self.recorder, clock=time.time)
        self.reports = Reports(lambda: tuple(self.platform.specs), clock=time.time)
        self.adviser = Adviser(self.platform, self.metrics, self.reports, clock=time.time)
        self.problems: dict[str, ErrorReport] = {}
        """Why apps do not import, by the names of their files: set by whoever loads them, shown to people."""
        self._endpoints = tuple(endpoints)
        self._address = (host, port)
        self._defaults = defaults
        self._state_dir = state_dir
        self._on_event = on_event
        self._options = RouteOptions(
            defaults, allow_remote_webhooks=allow_remote_webhooks, has_rate_limits=has_rate_limits
        )
        self._initial_faults = [fault for text in faults for fault in parse_faults(text)]
        if freeze_store is None:
            refuse_store_faults(self._initial_faults)
        self._seed = seed or 0
        self._cold_start = cold_start
        self._capacity = capacity
        self._record_to = record_to
        self._collector = Collector()
        self._recording: TrafficRecorder | None = None
        self._freeze_store = freeze_store
        self._admission = Admission(api_key=api_key, bound_host=host, allowed_hosts=allowed_hosts)
        self._management = Management(
            state_dir / "management.json",
            admission=self._admission,
            base_url=lambda: self.url,
            fleet=_Fleet(self),
            recorder=self.recorder,
            options=management or ManagementOptions(windows=DOCUMENTED_WINDOWS if has_rate_limits else ()),
        )
        self.traces = None if traces is None else Traces(traces, self.recorder, input_of=self._input_of)
        # Who needs a key to submit jobs must not take them without one.
        self._token = None if api_key is None else secrets.token_hex(16)
        self._shutdown_grace = shutdown_grace
        self._environ = os.environ if environ is None else environ

    async def __aenter__(self) -> Self:
        """Listen, then start the workers that are always there.

        Raises:
            ConfigurationError: The port is taken or the address is not of this machine.
        """
        listener = listen(*self._address)
        self.url = url_of(listener)
        self._webhooks = WebhookSender(
            self._defaults, allow_remote=self._options.allow_remote_webhooks, sleep=self.clock.sleep
        )
        self._supervisor = Supervisor(
            base_url=self.url,
            state_dir=self._state_dir,
            environ=self._environ,
            api_key=self._admission.api_key,
            token=self._token,
            more_env=self._trace_env(),
            on_log=self._tell,
            on_exit=self._worker_exited,
            fails_to_start=self._fails_to_start,
        )
        self.faults = FaultInjector(
            workers=self._supervisor,
            reclaim=self.reclaim_worker,
            tell=self._tell,
            freeze_store=self._freeze_store,
            clock=self.clock.now,
        )
        self.dispatcher = Dispatcher(
            self.platform,
            processes=self._supervisor,
            send_webhook=self._webhooks.send,
            on_event=self._observe,
            on_submit=self._submitted,
            clock=self.clock,
        )
        self.load_balancing = LoadBalancing(
            self.dispatcher,
            defaults=self._defaults,
            admission=self._admission,
            ports_of=self._supervisor.http_ports,
            resolve=self._management.resolve,
        )
        self.clock.is_quiet = self._is_quiet
        application = self._application()
        server = make_server(self.faults.around(application), listener, at_once=application.at_once)
        async with AsyncExitStack() as stack:
            stack.callback(listener.close)
            if self._record_to is not None:
                self._recording = stack.enter_context(TrafficRecorder(self._record_to, now=self.clock.now))
            stack.push_async_callback(server.stop)
            stack.push_async_callback(self._webhooks.close)
            if self.traces is not None:
                self.traces.open()
                stack.push_async_callback(self.traces.close)
            stack.callback(self.recorder.close)
            stack.push_async_callback(self.faults.close)
            stack.push_async_callback(self.load_balancing.close)
            stack.push_async_callback(self._stop_workers)
            await self.load_balancing.open()
            await server.start()
            self.dispatcher.connections.open = server.server_state.connections
            await self._supervisor.open()
            self.faults.set(self._initial_faults, seed=self._seed)
            await self.replace(self._endpoints)
            stack.push_async_callback(_cancel, asyncio.ensure_future(self.metrics.sample_for_ever()))
            stack.callback(self._collector.restore)
            self._collector.relax()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the workers finish for a moment, kill those that do not, then stop listening."""
        await self._stack.aclose()

    async def _stop_workers(self) -> None:
        self.load_balancing.balancer.close()
        self._supervisor.terminate_all()  # before the polls are answered: no worker asks for another job
        self.dispatcher.close()
        await self._supervisor.close(grace_seconds=self._shutdown_grace)

    async def replace(self, endpoints: Sequence[LocalEndpoint], *, removed: Collection[str] = ()) -> None:
        """Load endpoints anew, while all others go on.

        Args:
            endpoints: Changed ones, whose queued jobs stay, running ones finish, and workers start anew,
                and ones that were not there before.
            removed: Names of endpoints that are no more; their queued jobs are cancelled.

        Raises:
            InputError: One is described in a way that the platform refuses; nothing was changed.
        """
        for local in endpoints:
            check_spec(local.spec)
        for name in removed:
            if self._supervisor.endpoints.pop(name, None) is not None:
                self.dispatcher.apply(self.platform.remove_endpoint, name)
                self.load_balancing.balancer.look_again(name)
        for local in endpoints:
            name = local.spec.name
            is_known = name in self._supervisor.endpoints
            self._supervisor.endpoints[name] = local
            if not is_known:
                self._apply_options(name)
            change = self.platform.replace_endpoint if is_known else self.platform.add_endpoint
            self.dispatcher.apply(change, local.spec)

    def set_problem(self, names: Collection[str], problem: ErrorReport | None) -> None:
        """Say why the app of these endpoints does not import any more, or that it does again.

        Jobs that need a new worker fail with the problem; without one, workers are started anew at once.
        """
        for name in self.platform.specs.keys() & names:
            self.dispatcher.apply(self.platform.set_problem, name, problem)

    def _apply_options(self, name: str) -> None:
        """Give a new endpoint what the options say of it."""
        cold_start = self._cold_start.get(name) if isinstance(self._cold_start, Mapping) else self._cold_start
        if cold_start is not None:
            self.platform.set_cold_start(name, cold_start)
        capacity = self._capacity.get(name) if isinstance(self._capacity, Mapping) else self._capacity
        self.dispatcher.apply(self.platform.set_capacity, name, capacity)

    def submit(self, endpoint: str, request: JobRequest, *, sync: bool = False) -> Job:
        """Queue a job without going through HTTP.

        Raises:
            InputError: There is no such endpoint.
        """
        return self.dispatcher.submit(endpoint, request, sync=sync, size_bytes=len(encode_json(request.input)))

    def restart(self, endpoint: str) -> None:
        """Let new workers take over, as after a change of code: jobs stay, running ones finish.

        Raises:
            InputError: There is no such endpoint.
        """
        self.platform.workers(endpoint)
        self.dispatcher.apply(self.platform.replace_endpoint, self.platform.specs[endpoint])

    def cool(self, endpoint: str) -> int:
        """Kill all workers of an endpoint, frozen ones too, and return their number; their jobs wait again.

        Raises:
            InputError: There is no such endpoint.
        """
        return self.dispatcher.apply(self.platform.kill_workers, endpoint)

    def kill_worker(self, worker_id: str) -> None:
        """Kill a worker at once; its jobs wait again.

        Raises:
            InputError: There is no such worker.
        """
        self.dispatcher.apply(self.platform.kill_worker, worker_id)

    def reclaim_worker(self, worker_id: str, grace_s: float | None = None) -> None:
        """Take a worker's machine away, as a spot market does: SIGTERM, SIGKILL some seconds later.

        Raises:
            InputError: There is no such worker.
        """
        self.dispatcher.apply(self.platform.reclaim_worker, worker_id, grace_s=grace_s)

    def freeze_worker(self, worker_id: str) -> None:
        """Freeze an idle worker as FlashBoot does: its processes stop where they stand, its connections break.

        Raises:
            InputError: There is no such worker, it is not idle, or it runs in a container.
        """
        self._supervisor.check_freezable(worker_id)
        self.dispatcher.apply(self.platform.freeze_worker, worker_id)

    def thaw_worker(self, worker_id: str) -> None:
        """Let a frozen worker go on.

        Raises:
            InputError: There is no such worker, it is not frozen, or there is no machine for it.
        """
        self.dispatcher.apply(self.platform.thaw_worker, worker_id)

    def set_capacity(self, endpoint: str, capacity: int | None) -> None:
        """Say how many workers of an endpoint there are machines for; None for any number.

        Raises:
            InputError: It is negative.
        """
        self.dispatcher.apply(self.platform.set_capacity, endpoint, capacity)

    def set_cold_start(self, endpoint: str, cold_start: ColdStart) -> None:
        """Say what the next starts of an endpoint's workers take besides those of their processes."""
        self.platform.set_cold_start(endpoint, cold_start)

    def _application(self) -> Application:
        wire = WorkerWire(self.dispatcher, self._defaults, token=self._token)
        overview = Overview(
            self.platform,
            self.recorder,
            self.metrics,
            adviser=self.adviser,
            endpoints=self._supervisor.endpoints,
            problems=self.problems,
            clock=self.clock,
        )
        control = ControlRoutes(self.recorder, overview, admission=self._admission, controls=self)
        routes = ClientRoutes(
            self.dispatcher,
            endpoints=self._supervisor.endpoints,
            admission=self._admission,
            options=self._options,
            faults=self.faults.plan,
            problems=self.problems,
            resolve=self._management.resolve,
            more_routes=[
                *control.routes(),
                *dashboard_routes(),
                *fault_routes(self.faults, self._admission),
                *metrics_routes(self.metrics, self.reports, self._admission, token=self._token),
                management_route(self._management),
                *traces_routes(self.traces, self._admission, token=self._token),
            ],
        )
        return Application(
            wire,
            routes,
            admission=self._admission,
            load_balancing=self.load_balancing,
            faults=self.faults.plan,
        )

    def _is_quiet(self, *, spares_jobs: bool) -> bool:
        return self.dispatcher.is_quiet(spares_jobs=spares_jobs) and not self._webhooks.is_posting

    def _submitted(self, endpoint: str, request: JobRequest, *, sync: bool) -> None:
        if self._recording is not None:
            self._recording.note(endpoint, request, sync=sync)

    def _trace_env(self) -> dict[str, str]:
        if self.traces is None:
            return {}
        proof = "" if self._token is None else f"?token={self._token}"
        return {"FLASHKIT_TRACES_URL": f"{self.url}{TRACES_PATH}{proof}"}

    def _input_of(self, endpoint: str, job_id: str) -> Any:
        try:
            return self.platform.job(0.0, endpoint, job_id).input
        except FlashkitError:  # its retention is over, or its endpoint is no more
            return None

    def _fails_to_start(self, endpoint: str, worker_id: str) -> bool:
        return self.faults.fails_to_start(endpoint, worker_id)

    def _worker_exited(self, endpoint: str, worker_id: str, *, exit_code: int, log_tail: Sequence[str]) -> None:
        self.dispatcher.worker_exited(endpoint, worker_id, exit_code=exit_code, log_tail=log_tail)
        self.load_balancing.balancer.look_again(endpoint)

    def _observe(self, event: Event) -> None:
        self.load_balancing.notice(event)
        self.faults.notice(event)
        self.recorder.record(event)
        self.metrics.observe(event)
        if self.traces is not None:
            self.traces.notice(event)
        self._on_event(event)

    def _tell(self, event: Event) -> None:
        self.dispatcher.tell(event)


class _Fleet:
    """What the management API sees of the endpoints and workers that run here."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator

    def names(self) -> Collection[str]:
        return self._emulator.platform.specs.keys()

    def workers(self, name: str) -> list[LocalWorker]:
        started = time.time() - self._emulator.clock.now()
        found = self._emulator.platform.workers(name)
        return [LocalWorker(worker.id, worker.state.value, started + worker.started_at) for worker in found]

    def restart(self, name: str) -> None:
        self._emulator.restart(name)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
