"""The management API of one local platform: its routes, who may use them, and what follows from a change."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from flashkit.emulator.admission import Admission
from flashkit.emulator.answers import ForeignOrigin, Unauthorized, json_response
from flashkit.emulator.bodies import BodyTooLarge, ClientGone, decode_json, read_body
from flashkit.emulator.control import EventStream
from flashkit.emulator.management.account import Account, EndpointRecord, Release
from flashkit.emulator.management.catalogue import Catalogue, Stock
from flashkit.emulator.management.configuration import (
    CONTAINER_KEYS,
    Configuration,
    describe_configuration,
    difference,
    graphql_fields,
    request_urls,
    rest_fields,
)
from flashkit.emulator.management.fleet import (
    LocalFleet,
    LocalWorker,
    Versions,
    active,
    describe_rollout,
    describe_workers,
    local_name,
)
from flashkit.emulator.management.graphql import GraphqlError, parse
from flashkit.emulator.management.mutations import Mutations
from flashkit.emulator.management.problems import Problem, bad_request, invalid, not_found
from flashkit.emulator.management.quota import Quota, Window
from flashkit.emulator.management.schema import find_errors
from flashkit.emulator.management.worker_logs import follow_worker, read_log_query
from flashkit.emulator.recorder import Recorder
from flashkit.errors import InputError

PREFIX: Final = "/_/management"
"""What stands for `https://api.runpod.io`."""
_BODY_LIMIT_BYTES: Final = 4 * 1024 * 1024
_ROLLING_KEYS: Final = (*CONTAINER_KEYS, "gpu", "cpu", "networkVolumes", "dataCenterIds", "modelReferences")
"""What workers must be replaced for."""

Handler = Callable[[Request], Awaitable[ASGIApp]]
Answer = Callable[[Request, Any], Any]


@dataclass(frozen=True, slots=True)
class ManagementOptions:
    """How the management API behaves where that can be chosen."""

    stock: Stock = field(default_factory=dict)
    """Levels of the catalogue that differ from what is made up."""
    windows: Sequence[Window] = ()
    """How many requests are allowed; without any, nothing is counted."""
    has_rest_names: bool = False
    """Name fields of releases as REST v2 does, instead of as GraphQL does: the vendor's description has both."""
    sorts_lists: bool = False
    """Give back pools, data centres and volumes in an order of its own: nothing says that the one sent is kept."""


class Management:
    """Serves the management API below `/_/management`.

    Args:
        file: Where the account's records are kept; nowhere without one.
        admission: Who may use it.
        base_url: Gives the platform's address.
        fleet: The local endpoints and their workers.
        recorder: What local workers printed.
        options: What can be chosen.
        clock: Gives the time of day.
    """

    def __init__(
        self,
        file: Path | None,
        *,
        admission: Admission,
        base_url: Callable[[], str],
        fleet: LocalFleet,
        recorder: Recorder,
        options: ManagementOptions,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.catalogue = Catalogue(options.stock)
        self.account = Account(file, catalogue=self.catalogue, now=clock)
        self._admission = admission
        self._base_url = base_url
        self._fleet = fleet
        self._recorder = recorder
        self._quota = Quota(options.windows)
        self._sorts_lists = options.sorts_lists
        self._fields = rest_fields if options.has_rest_names else graphql_fields
        self._clock = clock
        self._versions = Versions()
        self._mutations = Mutations(self.account, on_change=self._changed)

    def resolve(self, name: str) -> str:
        """Return the local endpoint that a deployed id stands for; any other name as it is."""
        if name in self._fleet.names():
            return name
        try:
            record = self.account.state.endpoints.get(name)
        except Problem:  # the file is damaged: who manages endpoints is told
            return name
        return name if record is None else local_name(record, self._fleet.names()) or name

    def application(self) -> Starlette:
        """Return the routes as an ASGI application."""
        v2 = f"{PREFIX}/v2"
        account, catalogue = self.account, self.catalogue
        routes = [
            self._route("GET", f"{v2}/serverless", self._list_endpoints),
            self._route("POST", f"{v2}/serverless", self._create_endpoint, schema="CreateEndpointRequest"),
            self._route("GET", f"{v2}/serverless/{{id}}", lambda request, _: self._describe(_record(account, request))),
            self._route("PATCH", f"{v2}/serverless/{{id}}", self._update_endpoint, schema="UpdateEndpointRequest"),
            self._route("DELETE", f"{v2}/serverless/{{id}}", _deleting(account.delete_endpoint)),
            self._route("GET", f"{v2}/serverless/{{id}}/workers", self._list_workers),
            self._route("GET", f"{v2}/serverless/{{id}}/releases", self._list_releases),
            self._route("GET", f"{v2}/serverless/{{id}}/workers/{{worker}}/logs", self._worker_logs),
            *self._collection("templates", account.template, _listing(account, "templates")),
            self._route("POST", f"{v2}/templates", _making(account.create_template), schema="CreateTemplateRequest"),
            self._route(
                "PATCH", f"{v2}/templates/{{id}}", _changing(account.update_template), schema="UpdateTemplateRequest"
            ),
            self._route("DELETE", f"{v2}/templates/{{id}}", _deleting(account.delete_template)),
            *self._collection("network-volumes", account.volume, _list_volumes(account)),
            self._route(
                "POST", f"{v2}/network-volumes", _making(account.create_volume), schema="CreateNetworkVolumeRequest"
            ),
            self._route(
                "PATCH",
                f"{v2}/network-volumes/{{id}}",
                _changing(account.update_volume),
                schema="UpdateNetworkVolumeRequest",
            ),
            self._route("DELETE", f"{v2}/network-volumes/{{id}}", _deleting(account.delete_volume)),
            *self._collection("registries", account.registry, _listing(account, "registries")),
            self._route("POST", f"{v2}/registries", _making(account.create_registry), schema="CreateRegistryRequest"),
            self._route("DELETE", f"{v2}/registries/{{id}}", _deleting(account.delete_registry)),
            *self._catalogue("gpus", "gpus", catalogue.gpus, catalogue.gpu),
            *self._catalogue("cpus", "cpus", catalogue.cpus, catalogue.cpu),
            *self._catalogue("datacenters", "dataCenters", catalogue.datacenters, catalogue.datacenter),
            Route(f"{PREFIX}/graphql", self._guard(self._graphql), methods=["POST"]),
        ]
        application = Starlette(routes=routes, exception_handlers={HTTPException: self._no_route, ClientGone: _hang_up})
        application.router.redirect_slashes = False
        return application

    # ------------------------------------------------------------------ routes

    def _route(self, method: str, path: str, answer: Answer, *, schema: str | None = None) -> Route:
        async def handle(request: Request) -> ASGIApp:
            body = None if schema is None else await _read_checked(request, schema)
            value = answer(request, body)
            if value is None:
                return Response(status_code=204)
            if isinstance(value, EventStream):
                return value
            return json_response(value, status=201 if method == "POST" else 200)

        return Route(path, self._guard(handle), methods=[method])

    def _collection(self, path: str, find: Callable[[str], Mapping[str, Any]], listing: Answer) -> list[Route]:
        root = f"{PREFIX}/v2/{path}"
        return [
            self._route("GET", root, listing),
            self._route("GET", f"{root}/{{id}}", lambda request, _: find(request.path_params["id"])),
        ]

    def _catalogue(
        self,
        path: str,
        key: str,
        find_all: Callable[[Mapping[str, str]], list[dict[str, Any]]],
        find: Callable[[str, Mapping[str, str]], dict[str, Any]],
    ) -> list[Route]:
        root = f"{PREFIX}/v2/catalog/{path}"
        return [
            self._route("GET", root, lambda request, _: {key: find_all(request.query_params)}),
            self._route(
                "GET", f"{root}/{{id:path}}", lambda request, _: find(request.path_params["id"], request.query_params)
            ),
        ]

    def _guard(self, handler: Handler) -> Handler:
        """Let only those in who may, count them, and answer what goes wrong as a problem."""

        async def guarded(request: Request) -> ASGIApp:
            now = self._clock()
            try:
                self._admission.check(request)
                self._admission.check_same_origin(request)
            except Unauthorized:
                return Problem(401, "the bearer token is missing or not the key of this platform").response()
            except ForeignOrigin as exc:
                return Problem(403, exc.report.message).response()
            if full := self._quota.take(now):
                headers = {**self._quota.headers(now), "Retry-After": str(self._quota.seconds_to_reset(full, now))}
                return Problem(429, f"rate limit exceeded for the {full.name} window").response(headers)
            headers = self._quota.headers(now)
            try:
                response = await handler(request)
            except Problem as exc:
                return exc.response(headers)
            except BodyTooLarge as exc:
                return Problem(413, exc.report.message).response(headers)
            if isinstance(response, Response):
                response.headers.update(headers)
            return response

        return guarded

    async def _no_route(self, request: Request, exc: Exception) -> Response:
        headers = getattr(exc, "headers", None) or {}
        status = getattr(exc, "status_code", 404)
        detail = "route not found" if status == 404 else "the method is not allowed for this path"  # noqa: PLR2004
        return Problem(status, f"{detail}: {request.method} {request.url.path}").response(headers)

    # ------------------------------------------------------------------ endpoints

    def _describe(self, record: EndpointRecord) -> dict[str, Any]:
        return {
            "id": record.id,
            **describe_configuration(record.configuration, self.catalogue, sorts_lists=self._sorts_lists),
            "requestUrls": request_urls(record.configuration, record.id, self._base_url()),
            "createdAt": record.created_at,
        }

    def _list_endpoints(self, request: Request, body: Any) -> Any:
        del request, body
        return {"endpoints": [self._describe(record) for record in self.account.state.endpoints.values()]}

    def _create_endpoint(self, request: Request, body: Any) -> Any:
        del request
        return self._describe(self.account.create_endpoint(body))

    def _update_endpoint(self, request: Request, body: Any) -> Any:
        before = _record(self.account, request).configuration
        record = self.account.update_endpoint(request.path_params["id"], body)
        self._changed(record, before)
        return self._describe(record)

    def _changed(self, record: EndpointRecord, before: Configuration) -> None:
        """Replace the workers of the local endpoint that this one stands for, where the change needs it."""
        name = local_name(record, self._fleet.names())
        if name is None or record.configuration is before:
            return
        self._versions.note_change(self._fleet.workers(name), record.version - 1)
        if any(record.configuration[key] != before[key] for key in _ROLLING_KEYS):
            self._fleet.restart(name)

    def _workers(self, record: EndpointRecord) -> Sequence[LocalWorker]:
        name = local_name(record, self._fleet.names())
        return () if name is None else self._fleet.workers(name)

    def _list_workers(self, request: Request, body: Any) -> Any:
        del body
        record = _record(self.account, request)
        return describe_workers(self._workers(record), record, self._versions, now=self._clock())

    def _list_releases(self, request: Request, body: Any) -> Any:
        del body
        record = _record(self.account, request)
        workers = self._workers(record)
        pairs = zip([None, *record.releases], record.releases, strict=False)
        described = [self._describe_release(release, before, record, workers) for before, release in pairs]
        return {
            "endpointVersion": record.version,
            "rollout": describe_rollout(workers, record, self._versions),
            "releases": described[::-1],
        }

    def _describe_release(
        self, release: Release, before: Release | None, record: EndpointRecord, workers: Sequence[LocalWorker]
    ) -> dict[str, Any]:
        old = {} if before is None else self._fields(before.configuration)
        versions = [self._versions.of(worker, record.version) for worker in active(workers)]
        return {
            "id": release.id,
            "version": release.version,
            "source": "MANUAL",
            "buildId": None,
            "createdByUserId": None,
            "workerCount": versions.count(release.version),
            "createdAt": release.created_at,
            "diff": [] if before is None else difference(old, self._fields(release.configuration)),
        }

    def _worker_logs(self, request: Request, body: Any) -> Any:
        del body
        record, worker = _record(self.account, request), request.path_params["worker"]
        name = local_name(record, self._fleet.names())
        if name is None or worker not in {item.id for item in self._fleet.workers(name)}:
            raise not_found("worker")
        return EventStream(follow_worker(self._recorder, worker, read_log_query(request)))

    # ------------------------------------------------------------------ GraphQL

    async def _graphql(self, request: Request) -> ASGIApp:
        data = await _read_json(request)
        if not isinstance(data, dict) or not isinstance(data.get("query"), str):
            raise bad_request("the body must have a query")
        variables = data.get("variables") or {}
        try:
            answer = self._mutations.answer(parse(data["query"], variables))
        except GraphqlError as exc:
            return json_response({"errors": [{"message": str(exc)}], "data": None})
        return json_response({"data": answer})


def management_route(management: Management) -> Route:
    """Return the one route of the platform that leads to all of the API."""
    methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
    return Route(f"{PREFIX}/{{rest:path}}", management.application(), methods=methods)


async def _read_json(request: Request) -> Any:
    body = await read_body(request.receive, limit_bytes=_BODY_LIMIT_BYTES)
    try:
        return decode_json(body)
    except InputError as exc:
        raise bad_request("the body is not JSON") from exc


async def _read_checked(request: Request, schema: str) -> Any:
    body = await _read_json(request)
    if errors := find_errors(schema, body):
        raise invalid(errors)
    return body


async def _hang_up(request: Request, exc: Exception) -> Response:
    del request, exc
    return Response(status_code=499)


def _record(account: Account, request: Request) -> EndpointRecord:
    return account.endpoint(request.path_params["id"])


def _listing(account: Account, kind: str) -> Answer:
    return lambda request, body: {kind: list(getattr(account.state, kind).values())}


def _list_volumes(account: Account) -> Answer:
    """Answer with all volumes on one page; the vendor's SDK 2.0.0rc2 asks whether there are more."""
    return lambda request, body: {
        "networkVolumes": list(account.state.volumes.values()),
        "pagination": {"hasNextPage": False, "nextCursor": None},
    }


def _making(make: Callable[[Any], Any]) -> Answer:
    return lambda request, body: make(body)


def _changing(change: Callable[[str, Any], Any]) -> Answer:
    return lambda request, body: change(request.path_params["id"], body)


def _deleting(delete: Callable[[str], None]) -> Answer:
    return lambda request, body: delete(request.path_params["id"])
