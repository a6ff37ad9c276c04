"""What is on the platform: the app's endpoints, and everything that a plan has to know besides. Reads only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flashkit.deploy.api import ManagementApi
from flashkit.deploy.config import DeployConfig
from flashkit.deploy.fields import Fields, read_fields
from flashkit.deploy.hardware import Pools, known_pools
from flashkit.deploy.identity import Marker, read_marker
from flashkit.deploy.prices import PriceList
from flashkit.deploy.wishes import VolumeKey


@dataclass(frozen=True, slots=True)
class Deployed:
    """One endpoint on the platform that flashkit made."""

    id: str
    name: str
    """Its name in the app."""
    deployed_name: str
    marker: Marker
    fields: Fields
    env: Mapping[str, str]
    urls: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stranger:
    """An endpoint that flashkit did not make and that has a name we would give."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Volume:
    """A network volume of the account."""

    id: str
    key: VolumeKey
    size: int


@dataclass(slots=True, kw_only=True)
class Actual:
    """The platform as it was found."""

    endpoints: dict[str, Deployed] = field(default_factory=dict)
    """By their names in the app."""
    doubles: list[Deployed] = field(default_factory=list)
    """Endpoints of ours that another one of ours is the same as."""
    strangers: dict[str, Stranger] = field(default_factory=dict)
    """By their names on the platform."""
    volumes: list[Volume] = field(default_factory=list)
    registries: dict[str, str] = field(default_factory=dict)
    """Ids by name."""
    secrets: frozenset[str] | None = None
    """Names of the account's secrets; None where nobody asked."""
    pools: Pools = field(default_factory=known_pools)
    places: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """How much of each GPU and CPU flavour a data centre has, by data centre."""
    prices: PriceList = field(default_factory=PriceList)

    def volumes_of(self, key: VolumeKey) -> list[Volume]:
        """Return the volumes of this name in this data centre."""
        return [volume for volume in self.volumes if volume.key == key]


SECRETS_QUERY = "query secrets { myself { secrets { id name } } }"


async def read_actual(api: ManagementApi, config: DeployConfig, *, asks_secrets: bool) -> Actual:
    """Return what is there: endpoints, volumes, credentials, the catalogue, and secrets where they matter."""
    actual = await read_endpoints(api, config)
    actual.volumes = [read_volume(item) for item in await api.list("/network-volumes", "networkVolumes")]
    registries = await api.list("/registries", "registries")
    actual.registries = {str(item["name"]): str(item["id"]) for item in registries}
    if asks_secrets:
        actual.secrets = await read_secrets(api)
    gpus = await api.list("/catalog/gpus", "gpus")
    cpus = await api.list("/catalog/cpus", "cpus")
    actual.pools = _read_pools(gpus)
    actual.prices = PriceList.read(gpus, cpus)
    places = await api.get("/catalog/datacenters", include="GPU_AVAILABILITY,CPU_AVAILABILITY")
    actual.places = {str(item["id"]): _read_stock(item) for item in places.get("dataCenters") or ()}
    return actual


async def read_endpoints(api: ManagementApi, config: DeployConfig) -> Actual:
    """Return the app's endpoints in one environment, and those that stand in their way."""
    actual = Actual()
    prefix = f"{config.app}-{config.environment}-"
    for item in sorted(await api.list("/serverless", "endpoints"), key=lambda item: _is_copy(item, prefix)):
        marker = read_marker(item.get("env") or {})
        if marker is None or (marker.app, marker.environment) != (config.app, config.environment):
            if marker is None and str(item["name"]).startswith(prefix):
                actual.strangers[str(item["name"])] = Stranger(str(item["id"]), str(item["name"]))
            continue
        deployed = read_deployed(item, marker)
        if deployed.name in actual.endpoints:
            actual.doubles.append(deployed)
        else:
            actual.endpoints[deployed.name] = deployed
    return actual


def _is_copy(item: Mapping[str, Any], prefix: str) -> bool:
    """True for an endpoint with another name than its note makes one expect: a copy made by hand has the note too."""
    marker = read_marker(item.get("env") or {})
    return marker is not None and str(item["name"]) != prefix + marker.endpoint


def read_deployed(item: Mapping[str, Any], marker: Marker) -> Deployed:
    """Return an endpoint as the API describes it."""
    return Deployed(
        id=str(item["id"]),
        name=marker.endpoint,
        deployed_name=str(item["name"]),
        marker=marker,
        fields=read_fields(item, marker),
        env=dict(item.get("env") or {}),
        urls=dict(item.get("requestUrls") or {}),
    )


def read_volume(item: Mapping[str, Any]) -> Volume:
    """Return a volume as the API describes it."""
    return Volume(str(item["id"]), VolumeKey(str(item["name"]), str(item["dataCenter"])), int(item["size"]))


async def read_secrets(api: ManagementApi) -> frozenset[str]:
    """Return the names of the account's secrets."""
    myself = (await api.query(SECRETS_QUERY)).get("myself") or {}
    return frozenset(str(item["name"]) for item in myself.get("secrets") or ())


def _read_pools(gpus: Sequence[Mapping[str, Any]]) -> Pools:
    pools: dict[str, list[str]] = {}
    for gpu in gpus:
        if gpu.get("pool"):
            pools.setdefault(str(gpu["pool"]), []).append(str(gpu["id"]))
    return {**known_pools(), **pools}


def _read_stock(place: Mapping[str, Any]) -> dict[str, str]:
    offers: Iterable[Mapping[str, Any]] = [*(place.get("gpuAvailability") or ()), *(place.get("cpuAvailability") or ())]
    return {_flavor(str(item["id"])): str(item["availability"]) for item in offers}


def _flavor(name: str) -> str:
    """Return the flavour of a CPU; the vendor's examples name instances as well, `cpu3c-2-4`."""
    return name.partition("-")[0] if name.startswith("cpu") else name
