"""What an endpoint may be, beyond its schema: the vendor's documented rules, each with the problem it answers.

Rules that no source states are marked as chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from flashkit.emulator.management.catalogue import Catalogue
from flashkit.emulator.management.configuration import LOAD_BALANCER, REQUEST_COUNT, Configuration, ignores_idle_timeout
from flashkit.emulator.management.problems import Problem, bad_request

LONGEST_NAME: Final = 191
"""REST v1's endpoint schema; v2 names no limit."""


def check_compute_of_new(body: Mapping[str, Any]) -> None:
    """Refuse a new endpoint that has not exactly one of GPU and CPU."""
    if ("gpu" in body) == ("cpu" in body):
        raise bad_request("exactly one of gpu or cpu must be given")


def check_compute_of_change(current: Configuration, body: Mapping[str, Any]) -> None:
    """Refuse a change of an endpoint's compute family."""
    if ("gpu" in body and current["gpu"] is None) or ("cpu" in body and current["cpu"] is None):
        raise bad_request("the compute family of an endpoint cannot be changed")


def check_idle_timeout(configuration: Configuration, body: Mapping[str, Any]) -> None:
    """Refuse an idle timeout that would do nothing."""
    if "idleTimeout" in body.get("workers", {}) and ignores_idle_timeout(configuration):
        raise bad_request("workers.idleTimeout does not apply to queue endpoints that scale on requestCount")


def check_configuration(
    configuration: Configuration, catalogue: Catalogue, volumes: Mapping[str, str], registries: set[str]
) -> None:
    """Refuse a configuration that the platform would.

    Args:
        configuration: What is wanted.
        catalogue: What there is.
        volumes: Data centres of the account's network volumes by id.
        registries: Ids of the account's registry credentials.
    """
    _check_name(configuration["name"])
    _check_workers(configuration)
    if configuration["gpu"] is not None:
        _check_gpu(configuration["gpu"], catalogue)
    for item in configuration["cpu"] or ():
        _check_cpu(item, catalogue)
    _check_places(configuration, catalogue, volumes)
    if configuration["registry"] and configuration["registry"] not in registries:
        raise bad_request("registry is not one of the account's credentials")
    if configuration["timeout"] < 0:
        raise bad_request("timeout must not be negative")


def _check_name(name: str) -> None:
    if len(name) > LONGEST_NAME:
        raise bad_request(f"name has more than {LONGEST_NAME} characters")


def _check_workers(configuration: Configuration) -> None:
    if configuration["workers"]["min"] > configuration["workers"]["max"]:
        raise bad_request("workers.min is above workers.max")
    if configuration["type"] == LOAD_BALANCER and configuration["scaling"]["type"] != REQUEST_COUNT:
        raise bad_request("load-balancing endpoints scale on REQUEST_COUNT")


def _check_gpu(gpu: Mapping[str, Any], catalogue: Catalogue) -> None:
    unknown = [pool for pool in gpu["pools"] if not catalogue.types_of(pool)]
    if unknown:
        raise bad_request(f"gpu.pools has unknown pools: {', '.join(unknown)}")
    offered = {name for pool in gpu["pools"] for name in catalogue.types_of(pool)}
    stray = [name for name in gpu["excludedTypes"] if name not in offered]
    if stray:
        raise bad_request(f"gpu.excludedTypes are in none of the pools: {', '.join(stray)}")
    if offered <= set(gpu["excludedTypes"]):
        raise bad_request("gpu.excludedTypes leaves no type")
    if gpu["allowedCudaVersions"] and gpu["minCudaVersion"]:
        raise bad_request("gpu.allowedCudaVersions and gpu.minCudaVersion exclude each other")


def _check_cpu(item: Mapping[str, Any], catalogue: Catalogue) -> None:
    sizes = catalogue.vcpu_counts(item["id"])
    if not sizes:
        raise bad_request(f"cpu.id {item['id']} is not a flavor of the catalog")
    if item["vcpuCount"] not in sizes:
        raise bad_request(f"cpu.vcpuCount of {item['id']} must be one of {', '.join(map(str, sizes))}")


def _check_places(configuration: Configuration, catalogue: Catalogue, volumes: Mapping[str, str]) -> None:
    places = configuration["dataCenterIds"]
    unknown = [name for name in places if not catalogue.has_datacenter(name)]
    if unknown:
        raise bad_request(f"dataCenterIds has unknown data centers: {', '.join(unknown)}")
    missing = [volume for volume in configuration["networkVolumes"] if volume not in volumes]
    if missing:
        raise Problem(404, f"network volume not found: {', '.join(missing)}")
    homes = [volumes[volume] for volume in configuration["networkVolumes"]]
    if len(set(homes)) < len(homes):
        raise bad_request("networkVolumes has more than one volume in a data center")
    outside = [home for home in homes if places and home not in places]
    if outside:
        raise bad_request(f"networkVolumes are in {', '.join(outside)}, which is not among dataCenterIds")
