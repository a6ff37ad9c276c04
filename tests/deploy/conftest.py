"""Deployments in tests: a real management API over HTTP, with a proxy in between that writes everything down."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from flashkit.deploy.actual import Actual, read_actual
from flashkit.deploy.api import ManagementApi
from flashkit.deploy.applying import Outcome, apply_plan
from flashkit.deploy.config import DeployConfig, EndpointConfig
from flashkit.deploy.planning import Plan, make_plan
from flashkit.deploy.record import read_record
from flashkit.deploy.releases import apply_rollback, plan_rollback
from flashkit.deploy.undeploying import apply_removal, plan_removal
from flashkit.deploy.wishes import AppPart, make_wishes
from flashkit.emulator.management.service import PREFIX, ManagementOptions
from flashkit.emulator.server import Emulator
from flashkit.spec import EndpointSpec
from tests.deploy.proxy import RecordingProxy

IMAGE = "registry.example/app:1.0"


@dataclass
class Lab:
    """An account, the proxy before it, and an app to deploy to it."""

    emulator: Emulator
    proxy: RecordingProxy
    config: DeployConfig = field(default_factory=lambda: DeployConfig("shop", "production"))
    waits: list[float] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    api_options: dict[str, Any] = field(default_factory=dict)

    def api(self) -> ManagementApi:
        async def sleep(seconds: float) -> None:
            self.waits.append(seconds)

        return ManagementApi(self.proxy.url, None, sleep=sleep, say=self.said.append, **self.api_options)

    async def plan(
        self,
        specs: Sequence[EndpointSpec],
        *,
        calls: Mapping[str, Sequence[str]] | None = None,
        image: str | None = IMAGE,
        is_local: bool = True,
        **options: Any,
    ) -> tuple[Plan, Actual]:
        """Return the plan for these endpoints, and the platform that it was made for."""
        parts = [AppPart(spec=spec) for spec in specs]
        wishes = make_wishes(
            parts, self.config, calls=calls or {}, images={} if image is None else {"": image}, default_image=None
        )
        async with self.api() as api:
            actual = await read_actual(api, self.config, asks_secrets=options.pop("asks_secrets", False))
        return make_plan(wishes, actual, self.config, is_local=is_local, **options), actual

    async def deploy(self, specs: Sequence[EndpointSpec], *, note: str = "", **options: Any) -> Outcome:
        """Carry out the plan for these endpoints."""
        secrets = options.pop("secrets", {})
        plan, actual = await self.plan(specs, new_secrets=list(secrets), **options)
        assert [problem.message for problem in plan.problems] == []
        async with self.api() as api:
            return await apply_plan(api, plan, actual, secrets=secrets, note=note)

    async def roll_back(self, **options: Any) -> Outcome:
        async with self.api() as api:
            actual = await read_actual(api, self.config, asks_secrets=False)
            record = await read_record(api, self.config)
            plan = await plan_rollback(api, actual, record, self.config, **options)
            assert plan.problems == []
            return await apply_rollback(api, plan, actual)

    async def undeploy(self, *names: str, removes_volumes: bool = False) -> list[str]:
        async with self.api() as api:
            removal = await plan_removal(api, self.config, names, removes_volumes=removes_volumes)
            return await apply_removal(api, self.config, removal)

    async def endpoints(self) -> dict[str, dict[str, Any]]:
        """Return the account's endpoints by their names on the platform, as REST v2 shows them."""
        async with self.api() as api:
            return {str(item["name"]): dict(item) for item in await api.list("/serverless", "endpoints")}

    def configure(self, **endpoints: EndpointConfig) -> None:
        self.config = DeployConfig(self.config.app, self.config.environment, endpoints=endpoints)


MakeLab = Callable[..., Awaitable[Lab]]


@pytest.fixture
async def make_lab(tmp_path: Path) -> AsyncIterator[MakeLab]:
    """Start an account of its own, for tests that need one that is special."""
    async with AsyncExitStack() as stack:

        async def make(management: ManagementOptions | None = None, **options: Any) -> Lab:
            folder = tmp_path / f"account-{len(list(tmp_path.iterdir()))}"
            emulator = await stack.enter_async_context(Emulator([], state_dir=folder, management=management, **options))
            proxy = await stack.enter_async_context(RecordingProxy(emulator.url + PREFIX))
            return Lab(emulator, proxy)

        yield make


@pytest.fixture
async def lab(make_lab: MakeLab) -> Lab:
    """An empty account."""
    return await make_lab()
