"""What an app wants to be on the platform: its specs and the project's configuration, as fields of endpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from flashkit.deploy.config import DeployConfig
from flashkit.deploy.fields import GPU_ORDER, LOAD_BALANCER, MODELS, QUEUE, REQUEST_COUNT, Fields
from flashkit.deploy.hardware import CpuChoice, Pools, choose_gpus, known_pools
from flashkit.deploy.identity import ENDPOINT_VARIABLE, ENDPOINTS_VARIABLE, Marker, deployed_name, endpoints_value
from flashkit.protocol import DEPLOYMENT_VARIABLE
from flashkit.spec import EndpointSpec, NetworkVolume, WorkerBounds

LB_PORTS = ["80/http"]
"""The port on which load-balanced workers listen, unless PORT says otherwise."""


class VolumeKey(NamedTuple):
    """What tells volumes apart: names may be taken more than once, in one data centre and in several."""

    name: str
    datacenter: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AppPart:
    """One endpoint of an app, as it was described."""

    spec: EndpointSpec
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables that the project gives its workers besides the spec's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointWish:
    """One endpoint as it should be."""

    name: str
    deployed_name: str
    spec: EndpointSpec
    image: str | None
    """None to keep the one that it has."""
    args: str
    """Empty for the image's own command."""
    env: Mapping[str, str]
    """Its variables, without those that flashkit adds."""
    calls: tuple[str, ...] = ()
    registry: str | None = None
    disk: int | None = None
    workers: WorkerBounds
    models: tuple[str, ...] = ()
    """Models for the platform's cache, `organisation/name[:revision]`."""

    @property
    def volumes(self) -> tuple[NetworkVolume, ...]:
        """The network volumes that it mounts."""
        return self.spec.volumes

    @property
    def datacenters(self) -> tuple[str, ...]:
        """Where its workers may run; with volumes, only where those are."""
        if self.spec.datacenters or not self.spec.volumes:
            return tuple(place.value for place in self.spec.datacenters)
        return tuple(dict.fromkeys(volume.datacenter.value for volume in self.volumes if volume.datacenter))


@dataclass(slots=True)
class Known:
    """Ids that the platform has given, and what it offers."""

    endpoint_ids: dict[str, str] = field(default_factory=dict)
    """By the endpoints' names in the app."""
    volume_ids: dict[VolumeKey, str] = field(default_factory=dict)
    registry_ids: dict[str, str] = field(default_factory=dict)
    pools: Pools = field(default_factory=known_pools)


def make_wishes(
    parts: Sequence[AppPart],
    config: DeployConfig,
    *,
    calls: Mapping[str, Sequence[str]],
    images: Mapping[str, str],
    built: Mapping[str, str] | None = None,
    default_image: str | None = None,
) -> list[EndpointWish]:
    """Return what the app wants, endpoint by endpoint.

    Args:
        parts: The app's endpoints.
        config: What the project says of them.
        calls: Whose ids each of them needs.
        images: Images by endpoint that were asked for; "" stands for all others.
        built: Images by endpoint that were built last.
        default_image: What is taken where there is none of these.
    """
    built = built or {}
    wishes = []
    for part in parts:
        spec, own = part.spec, config.of(part.spec.name)
        weights = spec.weights if own.model_cache else None
        reference = None if weights is None else ":".join(filter(None, (weights.name, weights.revision)))
        wishes.append(
            EndpointWish(
                name=spec.name,
                deployed_name=deployed_name(config.app, config.environment, spec.name),
                spec=spec,
                image=images.get(spec.name) or images.get("") or own.image or built.get(spec.name) or default_image,
                args=own.args or "",
                env={**part.env, **spec.env, **own.env},
                calls=tuple(calls.get(spec.name, ())),
                registry=own.registry,
                disk=own.disk,
                workers=spec.workers if own.workers is None else WorkerBounds.from_option(own.workers),
                models=(reference,) if reference else (),
            )
        )
    return wishes


def wanted_fields(wish: EndpointWish, known: Known) -> Fields:
    """Return the fields that the wish is about; the endpoint keeps what it has of others."""
    spec = wish.spec
    fields: Fields = {
        "type": LOAD_BALANCER if spec.load_balanced else QUEUE,
        "args": wish.args,
        "workers.min": wish.workers.min,
        "workers.max": wish.workers.max,
        "scaling.type": spec.scaler_type.value,
        "scaling.value": spec.scaler_value,
        "dataCenterIds": list(wish.datacenters),
        "networkVolumes": [known.volume_ids.get(key, f"(new) {key.name}") for key in volume_keys(wish)],
        "timeout": spec.execution_timeout_ms,
        "flashboot": "FLASHBOOT" if spec.flashboot else "OFF",
        MODELS: list(wish.models),
        **_compute_fields(spec, known.pools),
    }
    optional = {
        "image": wish.image,
        "disk": wish.disk,
        "registry": None if wish.registry is None else known.registry_ids.get(wish.registry, wish.registry),
        "ports": LB_PORTS if spec.load_balanced else None,
    }
    fields.update({name: value for name, value in optional.items() if value is not None})
    if spec.load_balanced or spec.scaler_type.value != REQUEST_COUNT:
        fields["workers.idleTimeout"] = spec.idle_timeout
    return fields


def _compute_fields(spec: EndpointSpec, pools: Pools) -> Fields:
    if spec.cpu is not None:
        choice = CpuChoice.of(spec.cpu)
        return {"cpu": [f"{choice.flavor}-{choice.vcpus}"]}
    gpus = choose_gpus(spec.gpu, pools)
    floor: Fields = {"gpu.allowedCudaVersions": []} if spec.min_cuda_version else {}  # the two exclude each other
    return {
        "gpu.pools": list(gpus.pools),
        "gpu.excludedTypes": list(gpus.excluded),
        "gpu.count": spec.gpu_count,
        "gpu.minCudaVersion": spec.min_cuda_version,
        **floor,
        GPU_ORDER: [gpu.value for gpu in spec.gpu],
    }


def wanted_env(wish: EndpointWish, known: Known, config: DeployConfig) -> dict[str, str]:
    """Return the variables that flashkit sets, its own three among them."""
    env = {ENDPOINT_VARIABLE: wish.name, **wish.env}
    ids = {name: known.endpoint_ids[name] for name in wish.calls if name in known.endpoint_ids}
    if ids and ENDPOINTS_VARIABLE not in env:
        env[ENDPOINTS_VARIABLE] = endpoints_value(ids)
    spec = wish.spec
    marker = Marker(
        app=config.app,
        environment=config.environment,
        endpoint=wish.name,
        keys=tuple(env),
        gpu=tuple(gpu.value for gpu in spec.gpu),
        cpu=spec.cpu if spec.cpu and not CpuChoice.of(spec.cpu).is_in_rest else None,
        models=wish.models,
    )
    return {**env, DEPLOYMENT_VARIABLE: marker.to_json()}


def merged_env(wanted: Mapping[str, str], present: Mapping[str, str], managed: Iterable[str]) -> dict[str, str]:
    """Return the whole environment: what is wanted, and what others put there, which is kept."""
    ours = {*managed, DEPLOYMENT_VARIABLE}
    return {**{key: value for key, value in present.items() if key not in ours}, **wanted}


def volume_keys(wish: EndpointWish) -> list[VolumeKey]:
    """Return the volumes that the endpoint mounts, as far as their data centre is known."""
    keys = []
    for volume in wish.volumes:
        place = volume_place(volume, wish)
        if place is not None:
            keys.append(VolumeKey(volume.name, place))
    return keys


def volume_place(volume: NetworkVolume, wish: EndpointWish) -> str | None:
    """Return where a volume is: where it says, or the only place where its endpoint may run."""
    if volume.datacenter is not None:
        return volume.datacenter.value
    places = wish.spec.datacenters
    return places[0].value if len(places) == 1 else None
