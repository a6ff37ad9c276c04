"""One endpoint made or changed on the platform: by REST v2, or by GraphQL where that alone can say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from flashkit.deploy.actual import Deployed, read_deployed, read_endpoints
from flashkit.deploy.api import ManagementApi
from flashkit.deploy.config import DeployConfig
from flashkit.deploy.fields import MODELS, Fields, body_of, is_one_vcpu, needs_graphql, save_input
from flashkit.deploy.identity import Marker, deployed_name, read_marker
from flashkit.deploy.once import make_once
from flashkit.deploy.planning import Change
from flashkit.deploy.wishes import merged_env

SAVE_ENDPOINT: Final = "mutation save($input: EndpointInput!) { saveEndpoint(input: $input) { id } }"


async def create_endpoint(
    api: ManagementApi, config: DeployConfig, endpoint: str, fields: Fields, env: Mapping[str, str]
) -> Deployed:
    """Make an endpoint, once, and return it as the platform describes it."""
    name = deployed_name(config.app, config.environment, endpoint)

    async def make() -> str:
        if fields[MODELS] or is_one_vcpu(fields):
            given = save_input(name, fields, env, endpoint_id=None)
            data = await api.mutate(SAVE_ENDPOINT, {"input": given}, is_repeatable=False)
            return str(data["saveEndpoint"]["id"])
        body = {"name": name, **body_of(fields, fields, is_new=True), "env": dict(env)}
        return str((await api.create("/serverless", body))["id"])

    async def look() -> str | None:
        found = (await read_endpoints(api, config)).endpoints.get(endpoint)
        return None if found is None else found.id

    endpoint_id = await make_once(api, make, look)
    return describe(await api.get(f"/serverless/{endpoint_id}"), endpoint, config)


async def update_endpoint(
    api: ManagementApi,
    config: DeployConfig,
    deployed: Deployed,
    change: Change,
    *,
    fields: Fields,
    env: Mapping[str, str],
) -> Deployed:
    """Send what a change names, and return the endpoint as it is then.

    Args:
        api: The platform.
        config: Names of app and environment.
        deployed: The endpoint as it is.
        change: What differs.
        fields: Its fields as they should be.
        env: The variables that are flashkit's; those of others are kept.
    """
    name = deployed_name(config.app, config.environment, deployed.name)
    whole = merged_env(env, deployed.env, deployed.marker.keys)
    if needs_graphql(fields, change.names):
        given = save_input(name, {**deployed.fields, **fields}, whole, endpoint_id=deployed.id)
        await api.mutate(SAVE_ENDPOINT, {"input": given}, is_repeatable=True)
        return describe(await api.get(f"/serverless/{deployed.id}"), deployed.name, config)
    body: dict[str, Any] = body_of({**fields, "name": name}, change.names, is_new=False)
    if change.sends_env:
        body["env"] = whole
    return describe(await api.change(f"/serverless/{deployed.id}", body), deployed.name, config)


def describe(item: Mapping[str, Any], name: str, config: DeployConfig) -> Deployed:
    """Return an endpoint from an answer; one whose note somebody took away is still the one that was asked for."""
    marker = read_marker(item.get("env") or {})
    return read_deployed(item, marker or Marker(config.app, config.environment, name))
