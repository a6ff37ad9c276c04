"""An endpoint's settings as flat fields, `workers.max` and the like: read from the API, compared, and sent to it.

Flat fields are what a plan shows. Order does not matter in some of them, as the platform need not give back the order
that it was sent; where it matters to us, the marker keeps it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from flashkit.catalog import CPU_FLAVORS
from flashkit.deploy.identity import Marker

Fields = dict[str, Any]

QUEUE: Final = "QUEUE"
LOAD_BALANCER: Final = "LOAD_BALANCER"
REQUEST_COUNT: Final = "REQUEST_COUNT"
GPU_ORDER: Final = "gpu.order"
MODELS: Final = "models"
_UNORDERED: Final = frozenset({"gpu.pools", "gpu.excludedTypes", "dataCenterIds", "networkVolumes", "ports", MODELS})
_TOP_LEVEL: Final = (
    *("type", "image", "args", "disk", "ports", "registry"),
    *("dataCenterIds", "networkVolumes", "timeout", "flashboot"),
)
_GROUPS: Final = ("gpu", "workers", "scaling")
ROLLING: Final = ("image", "args", "disk", "ports", "registry", "gpu", "cpu", "dataCenterIds", "networkVolumes", MODELS)
"""What workers are replaced for; so they are for a change of their environment."""


def read_fields(endpoint: Mapping[str, Any], marker: Marker | None) -> Fields:
    """Return the fields of an endpoint as the API describes it, without its environment."""
    fields: Fields = {key: endpoint[key] for key in _TOP_LEVEL if key in endpoint}
    for group in ("gpu", "workers"):
        fields.update({f"{group}.{key}": value for key, value in (endpoint.get(group) or {}).items()})
    scaling = endpoint.get("scaling") or {}
    fields["scaling.type"] = scaling.get("type")
    fields["scaling.value"] = scaling.get("queueDelay", scaling.get("requestCount"))
    if endpoint.get("cpu"):
        fields["cpu"] = [f"{item['id']}-{item['vcpuCount']}" for item in endpoint["cpu"]]
    if "gpu.pools" in fields:
        fields.setdefault("gpu.excludedTypes", [])
    if marker is not None:
        fields.update(_noted(marker, fields))
    return fields


def _noted(marker: Marker, fields: Mapping[str, Any]) -> Fields:
    """Return what only the marker knows."""
    noted: Fields = {MODELS: list(marker.models)}
    if "gpu.pools" in fields:
        noted[GPU_ORDER] = list(marker.gpu)
    elif "cpu" not in fields and marker.cpu:
        flavor, vcpus, _ = marker.cpu.split("-")
        noted["cpu"] = [f"{flavor}-{vcpus}"]
    return noted


def same(field: str, one: Any, other: Any) -> bool:
    """Return whether two values of a field mean the same."""
    if field in _UNORDERED and one is not None and other is not None:
        return sorted(one) == sorted(other)
    return bool(one == other)


def family_of(fields: Mapping[str, Any]) -> str:
    """Return `gpu` or `cpu`."""
    return "gpu" if "gpu.pools" in fields else "cpu"


def is_one_vcpu(fields: Mapping[str, Any]) -> bool:
    """True for an endpoint that REST v2 cannot say."""
    return any(item.endswith("-1") for item in fields.get("cpu", ()))


def has_idle_timeout(fields: Mapping[str, Any]) -> bool:
    """False for an endpoint with a queue that scales on the number of requests: there it is refused, and not shown."""
    return not (fields.get("type") == QUEUE and fields.get("scaling.type") == REQUEST_COUNT)


def body_of(fields: Mapping[str, Any], names: Iterable[str], *, is_new: bool) -> dict[str, Any]:
    """Return the body of a POST or PATCH that sets these fields; a group is sent as a whole.

    Args:
        fields: All fields of the endpoint.
        names: Those to be sent.
        is_new: True for a POST, which leaves out what is not limited instead of clearing it.
    """
    body: dict[str, Any] = {}
    for name in names:
        group = name.partition(".")[0]
        if name == MODELS:
            continue  # GraphQL alone takes them
        if group in _GROUPS:
            body[group] = _group_body(group, fields, is_new=is_new)
        elif name == "cpu":
            body["cpu"] = [_cpu_body(item) for item in fields["cpu"]]
        elif not (is_new and fields[name] is None):
            body[name] = fields[name]
    return body


def _group_body(group: str, fields: Mapping[str, Any], *, is_new: bool) -> dict[str, Any]:
    values = {name.partition(".")[2]: value for name, value in fields.items() if name.startswith(f"{group}.")}
    if group == "scaling":
        is_count = values["type"] == REQUEST_COUNT
        return {"type": values["type"], "requestCount" if is_count else "queueDelay": values["value"]}
    if group == "gpu":
        return _gpu_body(values, is_new=is_new)
    if not has_idle_timeout(fields):
        values.pop("idleTimeout", None)
    return values


def _gpu_body(values: dict[str, Any], *, is_new: bool) -> dict[str, Any]:
    values.pop("order", None)  # the pools have it, as far as they can
    if values.get("minCudaVersion") is None:
        values.pop("minCudaVersion", None)
        if not is_new:
            values["minCudaVersion"] = ""
    if not values.get("excludedTypes"):
        values.pop("excludedTypes", None)  # naming pools without it clears it
    return values


def _cpu_body(item: str) -> dict[str, Any]:
    flavor, _, vcpus = item.rpartition("-")
    return {"id": flavor, "vcpuCount": int(vcpus)}


def needs_graphql(fields: Mapping[str, Any], changed: Iterable[str]) -> bool:
    """Return whether these fields are among those that REST v2 cannot set."""
    names = set(changed)
    return (MODELS in names) or ("cpu" in names and is_one_vcpu(fields))


def save_input(
    name: str, fields: Mapping[str, Any], env: Mapping[str, str], *, endpoint_id: str | None
) -> dict[str, Any]:
    """Return the input of GraphQL's `saveEndpoint`: everything, as it replaces everything."""
    idle_timeout = fields.get("workers.idleTimeout") if has_idle_timeout(fields) else None
    return {
        **({"id": endpoint_id} if endpoint_id else {}),
        "name": name,
        "type": "LB" if fields["type"] == LOAD_BALANCER else "QB",
        **_save_compute(fields),
        "workersMin": fields["workers.min"],
        "workersMax": fields["workers.max"],
        **({} if idle_timeout is None else {"idleTimeout": idle_timeout}),
        "scalerType": fields["scaling.type"],
        "scalerValue": fields["scaling.value"],
        "executionTimeoutMs": fields["timeout"],
        "flashBootType": fields["flashboot"],
        "locations": ",".join(fields.get("dataCenterIds", ())),
        "networkVolumeIds": [{"networkVolumeId": item} for item in fields.get("networkVolumes", ())],
        "modelReferences": list(fields.get(MODELS, ())),
        "template": _save_template(name, fields, env),
    }


def _save_compute(fields: Mapping[str, Any]) -> dict[str, Any]:
    if "cpu" in fields:
        sizes = (name for item in fields["cpu"] for name in CPU_FLAVORS if name.startswith(f"{item}-"))
        return {"instanceIds": list(sizes)}
    return {
        "gpuIds": ",".join([*fields["gpu.pools"], *(f"-{item}" for item in fields["gpu.excludedTypes"])]),
        "gpuCount": fields.get("gpu.count", 1),
        "minCudaVersion": fields.get("gpu.minCudaVersion") or "",
    }


def _save_template(name: str, fields: Mapping[str, Any], env: Mapping[str, str]) -> dict[str, Any]:
    disk = {"containerDiskInGb": fields["disk"]} if fields.get("disk") else {}
    return {
        "name": name,
        "imageName": fields["image"],
        "dockerArgs": fields.get("args") or "",
        **disk,
        "ports": ",".join(fields.get("ports") or ()),
        "env": [{"key": key, "value": value} for key, value in sorted(env.items())],
        "containerRegistryAuthId": fields.get("registry") or "",
    }
