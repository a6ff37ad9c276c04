"""What an endpoint is configured to be: made of a request's body, changed by another, shown as the API shows it.

A configuration is a dictionary in the words of REST v2 with every key present, so that two of them can be compared.
Functions here are pure; what is allowed is in `rules`. Where the vendor documents no default, the one of REST v1 is
taken, and named.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from flashkit.emulator.management.catalogue import Catalogue

Configuration = dict[str, Any]

QUEUE: Final = "QUEUE"
LOAD_BALANCER: Final = "LOAD_BALANCER"
QUEUE_DELAY: Final = "QUEUE_DELAY"
REQUEST_COUNT: Final = "REQUEST_COUNT"
DEFAULT_TIMEOUT_MS: Final = 300_000
DEFAULT_WORKERS: Final = {"min": 0, "max": 3, "idleTimeout": 10}
DEFAULT_DISK_GB: Final = 50
"""REST v1's default; v2 names none."""
LB_PORTS: Final = {"PORT": "80", "PORT_HEALTH": "80"}
"""What the platform puts into the environment of load-balanced endpoints when they are made, and never again."""
CONTAINER_KEYS: Final = ("image", "args", "disk", "ports", "env", "registry")
_PLAIN_KEYS: Final = ("name", "dataCenterIds", "networkVolumes", "timeout", "flashboot")
"""Keys whose values are replaced as a whole."""
_EMPTY_GPU: Final = {"excludedTypes": [], "count": 1, "allowedCudaVersions": [], "minCudaVersion": None}


def new_configuration(body: Mapping[str, Any], template: Mapping[str, Any] | None) -> Configuration:
    """Return the configuration of an endpoint that is made from a checked body, and a template's settings."""
    container = container_settings(body, template)
    injected = LB_PORTS if body["type"] == LOAD_BALANCER else {}
    gpu = body.get("gpu")
    return {
        "name": body["name"],
        "type": body["type"],
        "image": container.get("image", ""),
        "args": container.get("args", ""),
        "disk": container.get("disk", DEFAULT_DISK_GB),
        "ports": list(container.get("ports", ())),
        "env": {**injected, **container.get("env", {})},
        "registry": container.get("registry"),
        "gpu": None if gpu is None else _new_gpu(gpu, template),
        "cpu": None if body.get("cpu") is None else [dict(item) for item in body["cpu"]],
        "workers": {**DEFAULT_WORKERS, **body.get("workers", {})},
        "scaling": dict(body["scaling"]),
        "dataCenterIds": list(body.get("dataCenterIds", ())),
        "networkVolumes": list(body.get("networkVolumes", ())),
        "timeout": body.get("timeout", DEFAULT_TIMEOUT_MS),
        "flashboot": body.get("flashboot", "OFF"),
        "modelReferences": list(body.get("modelReferences", ())),
    }


def changed_configuration(
    current: Configuration, body: Mapping[str, Any], template: Mapping[str, Any] | None
) -> Configuration:
    """Return the configuration after a PATCH: what the body names, everything else as it was."""
    container = container_settings(body, template)
    plain = {key: value for key, value in body.items() if key in _PLAIN_KEYS}
    changed: Configuration = {**current, **container, **plain}
    if "gpu" in body:
        changed["gpu"] = _changed_gpu(current["gpu"], body["gpu"])
    if "cpu" in body:
        changed["cpu"] = [dict(item) for item in body["cpu"]]
    if "workers" in body:
        changed["workers"] = {**current["workers"], **body["workers"]}
    if "scaling" in body:
        changed["scaling"] = dict(body["scaling"])
    return changed


def container_settings(body: Mapping[str, Any], template: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the container settings of a body over those of a template; `env` is merged by name."""
    own = {key: body[key] for key in CONTAINER_KEYS if key in body}
    if template is None:
        return own
    merged = {**{key: template[key] for key in CONTAINER_KEYS}, **own}
    return {**merged, "env": {**template["env"], **own.get("env", {})}}


def _new_gpu(gpu: Mapping[str, Any], template: Mapping[str, Any] | None) -> dict[str, Any]:
    seeded = {}
    if template is not None and "allowedCudaVersions" not in gpu and not gpu.get("minCudaVersion"):
        seeded = {"allowedCudaVersions": list(template.get("allowedCudaVersions", ()))}
    return _clean_gpu({**_EMPTY_GPU, **seeded, **gpu})


def _changed_gpu(current: Mapping[str, Any], gpu: Mapping[str, Any]) -> dict[str, Any]:
    """Return the GPU settings after a change; naming pools anew drops exclusions that are not named again."""
    dropped: dict[str, Any] = {"excludedTypes": []} if "pools" in gpu else {}
    return _clean_gpu({**current, **dropped, **gpu})


def _clean_gpu(gpu: Mapping[str, Any]) -> dict[str, Any]:
    excluded = [name.strip() for name in gpu["excludedTypes"]]
    return {**gpu, "excludedTypes": excluded, "minCudaVersion": gpu["minCudaVersion"] or None}


def ignores_idle_timeout(configuration: Mapping[str, Any]) -> bool:
    """True for an endpoint with a queue that scales on the number of requests: it has no idle timeout."""
    return bool(configuration["type"] == QUEUE and configuration["scaling"]["type"] == REQUEST_COUNT)


# ---------------------------------------------------------------------- as REST v2 shows it


def describe_configuration(
    configuration: Configuration, catalogue: Catalogue, *, sorts_lists: bool = False
) -> dict[str, Any]:
    """Return the configuration as REST v2 shows it, without what is known of the endpoint besides."""
    if sorts_lists:
        gpu = configuration["gpu"] and {**configuration["gpu"], "pools": sorted(configuration["gpu"]["pools"])}
        lists = {key: sorted(configuration[key]) for key in ("dataCenterIds", "networkVolumes")}
        configuration = {**configuration, **lists, "gpu": gpu}
    shown = {key: value for key, value in configuration.items() if key not in ("gpu", "cpu", "modelReferences")}
    workers = dict(configuration["workers"])
    if ignores_idle_timeout(configuration):
        del workers["idleTimeout"]
    shown["workers"] = workers
    if gpu := configuration["gpu"]:
        shown["gpu"] = {key: value for key, value in gpu.items() if value or key != "excludedTypes"}
    # REST v2 cannot say one vCPU, which GraphQL makes: chosen, such an endpoint is shown without its CPU.
    if cpu := [item for item in configuration["cpu"] or () if item["vcpuCount"] > 1]:
        shown["cpu"] = [{**item, "memory": item["vcpuCount"] * catalogue.gb_per_vcpu(item["id"])} for item in cpu]
    return shown


def request_urls(configuration: Configuration, endpoint_id: str, base_url: str) -> dict[str, str]:
    """Return where clients send their requests."""
    if configuration["type"] == LOAD_BALANCER:
        base = f"{base_url}/lb/{endpoint_id}"
        return {"base": base, "health": base + configuration["env"].get("HEALTH_CHECK_PATH", "/ping")}
    root = f"{base_url}/v2/{endpoint_id}"
    paths = {
        "run": "run",
        "runSync": "runsync",
        "status": "status/{job_id}",
        "stream": "stream/{job_id}",
        "cancel": "cancel/{job_id}",
        "retry": "retry/{job_id}",
        "purgeQueue": "purge-queue",
        "health": "health",
    }
    return {name: f"{root}/{path}" for name, path in paths.items()}


# ---------------------------------------------------------------------- as releases and GraphQL name it


def graphql_fields(configuration: Configuration) -> dict[str, Any]:
    """Return the configuration by GraphQL's names; those of the container begin with `template.`."""
    gpu, scaling = configuration["gpu"], configuration["scaling"]
    return {
        "name": configuration["name"],
        "template.imageName": configuration["image"],
        "template.dockerArgs": configuration["args"],
        "template.containerDiskInGb": configuration["disk"],
        "template.ports": ",".join(configuration["ports"]),
        "template.env": [{"key": key, "value": value} for key, value in configuration["env"].items()],
        "template.containerRegistryAuthId": configuration["registry"],
        "gpuIds": "" if gpu is None else ",".join([*gpu["pools"], *(f"-{name}" for name in gpu["excludedTypes"])]),
        "gpuCount": 0 if gpu is None else gpu["count"],
        "allowedCudaVersions": "" if gpu is None else ",".join(gpu["allowedCudaVersions"]),
        "minCudaVersion": None if gpu is None else gpu["minCudaVersion"],
        "instanceIds": instance_ids(configuration["cpu"]),
        "workersMin": configuration["workers"]["min"],
        "workersMax": configuration["workers"]["max"],
        "idleTimeout": configuration["workers"]["idleTimeout"],
        "scalerType": scaling["type"],
        "scalerValue": scaling["queueDelay" if scaling["type"] == QUEUE_DELAY else "requestCount"],
        "locations": ",".join(configuration["dataCenterIds"]),
        "networkVolumeIds": list(configuration["networkVolumes"]),
        "executionTimeoutMs": configuration["timeout"],
        "flashBootType": configuration["flashboot"],
        "modelReferences": list(configuration["modelReferences"]),
    }


def rest_fields(configuration: Configuration) -> dict[str, Any]:
    """Return the configuration by the names of REST v2, with dots for what is inside."""
    fields: dict[str, Any] = {}
    for key, value in configuration.items():
        if isinstance(value, dict) and key in ("gpu", "workers", "scaling"):
            fields.update({f"{key}.{inner}": item for inner, item in value.items()})
        else:
            fields[key] = value
    return fields


def instance_ids(cpu: list[dict[str, Any]] | None) -> list[str]:
    """Return CPU choices as GraphQL names them, `cpu5c-2-4`."""
    catalogue = Catalogue()
    return [
        f"{item['id']}-{item['vcpuCount']}-{item['vcpuCount'] * catalogue.gb_per_vcpu(item['id'])}"
        for item in cpu or ()
    ]


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the fields that changed, as a release lists them."""
    names = dict.fromkeys([*before, *after])
    return [
        {"field": name, "old": before.get(name), "new": after.get(name)}
        for name in names
        if before.get(name) != after.get(name)
    ]
