"""What GraphQL does that REST v2 lacks: whole saves of endpoints, cached models, 1-vCPU CPUs, secrets.

The vendor publishes no schema of these mutations. Their fields are those that the vendor's SDKs 1.12.0 and 2.0.0rc2
send and ask for. Chosen: a save replaces everything, so that what it leaves out falls back to the default; the template
stays when it names none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from flashkit.emulator.management.account import Account, EndpointRecord
from flashkit.emulator.management.configuration import (
    DEFAULT_DISK_GB,
    LOAD_BALANCER,
    QUEUE,
    QUEUE_DELAY,
    Configuration,
    graphql_fields,
    new_configuration,
)
from flashkit.emulator.management.graphql import GraphqlError, Operation, select
from flashkit.emulator.management.problems import Problem

_SECRET_NAME: Final = re.compile(r"[A-Za-z0-9_.-]+")
_KNOWN_FIELDS: Final = frozenset(
    {
        *("id", "name", "type", "template", "templateId", "gpuIds", "gpuCount", "instanceIds", "workersMin"),
        *("workersMax", "workersStandby", "workersPFBTarget", "idleTimeout", "scalerType", "scalerValue"),
        *("executionTimeoutMs", "locations", "networkVolumeId", "networkVolumeIds", "allowedCudaVersions"),
        *("minCudaVersion", "flashBootType", "flashEnvironmentId", "modelReferences"),
    }
)

OnChange = Callable[[EndpointRecord, Configuration], None]
"""Called with an endpoint and its configuration before."""


class Mutations:
    """Answers operations on one account.

    Args:
        account: The records.
        on_change: Told of every endpoint that was changed.
    """

    def __init__(self, account: Account, *, on_change: OnChange) -> None:
        self._account = account
        self._on_change = on_change
        self._queries: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {"myself": self._myself}
        self._mutations: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
            "saveEndpoint": self._save_endpoint,
            "deleteEndpoint": self._delete_endpoint,
            "saveTemplate": self._save_template,
            "deleteTemplate": self._delete_template,
            "updateEndpointTemplate": self._update_endpoint_template,
            "secretCreate": self._create_secret,
            "secretDelete": self._delete_secret,
        }

    def answer(self, operation: Operation) -> dict[str, Any]:
        """Return the data of an operation.

        Raises:
            GraphqlError: It asks for what there is not, or is refused.
        """
        known = self._queries if operation.kind == "query" else self._mutations
        data: dict[str, Any] = {}
        for field in operation.fields:
            if field.name not in known:
                raise GraphqlError(f"cannot query field {field.name!r} of {operation.kind}")
            try:
                value = known[field.name](field.arguments)
            except Problem as exc:
                raise GraphqlError(exc.detail) from exc
            data[field.alias] = select(value, field.selection)
        return data

    # ------------------------------------------------------------------ endpoints

    def _myself(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        del arguments
        state = self._account.state
        return {
            "id": "user_local",
            "endpoints": [self._describe(record) for record in state.endpoints.values()],
            "secrets": list(state.secrets.values()),
            "networkVolumes": [_describe_volume(volume) for volume in state.volumes.values()],
        }

    def _describe(self, record: EndpointRecord) -> dict[str, Any]:
        fields = graphql_fields(record.configuration)
        template = {name.removeprefix("template."): value for name, value in fields.items() if "." in name}
        volumes = [self._account.state.volumes[item] for item in record.configuration["networkVolumes"]]
        return {
            **{name: value for name, value in fields.items() if "." not in name},
            "id": record.id,
            "type": "LB" if record.configuration["type"] == LOAD_BALANCER else "QB",
            "version": record.version,
            "createdAt": record.created_at,
            "userId": "user_local",
            "aiKey": None,
            "templateId": record.template_id or f"bound-{record.id}",
            "template": template,
            "env": template["env"],
            "workersStandby": 0,
            "networkVolumeId": volumes[0]["id"] if volumes else "",
            "networkVolume": _describe_volume(volumes[0]) if volumes else None,
        }

    def _save_endpoint(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        data = _input_of(arguments)
        if unknown := sorted(data.keys() - _KNOWN_FIELDS):
            raise GraphqlError(f"field {unknown[0]!r} is not defined by type EndpointInput")
        record = self._account.endpoint(data["id"]) if data.get("id") else None
        template_id = data.get("templateId") or (record.template_id if record else None)
        container = self._container(data, record)
        body = _rest_body(data, container)
        if record is not None:
            body["type"] = record.configuration["type"]
        configuration = new_configuration(body, None)
        if record is None:
            record = self._account.add_endpoint(configuration, template_id=template_id)
            return self._describe(record)
        configuration["env"] = container["env"]  # ports are put in once, when an endpoint is made
        before = record.configuration
        self._account.set_configuration(record, configuration)
        self._on_change(record, before)
        return self._describe(record)

    def _container(self, data: Mapping[str, Any], record: EndpointRecord | None) -> dict[str, Any]:
        """Return the container settings: of the template inside, the one it names, or as they were."""
        if isinstance(template := data.get("template"), Mapping):
            return _template_body(template)
        if data.get("templateId"):
            return dict(self._account.template(data["templateId"]))
        if record is None:
            raise GraphqlError("template or templateId is required")
        return record.configuration

    def _delete_endpoint(self, arguments: Mapping[str, Any]) -> None:
        record = self._account.endpoint(str(arguments.get("id")))
        workers = record.configuration["workers"]
        if workers["min"] or workers["max"]:
            raise GraphqlError("endpoint cannot be deleted before workersMin and workersMax are 0")
        self._account.delete_endpoint(record.id)

    def _update_endpoint_template(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        data = _input_of(arguments)
        record = self._account.endpoint(str(data.get("endpointId")))
        before = record.configuration
        self._account.update_endpoint(record.id, {"templateId": str(data.get("templateId"))})
        record.template_id = str(data["templateId"])
        self._account.save()
        self._on_change(record, before)
        return self._describe(record)

    # ------------------------------------------------------------------ templates and secrets

    def _save_template(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        data = _input_of(arguments)
        if not data.get("name") or not data.get("imageName"):
            raise GraphqlError("name and imageName are required")
        body = {**_template_body(data), "name": data["name"], "serverless": bool(data.get("isServerless"))}
        if data.get("id"):
            template = self._account.update_template(data["id"], body)
        else:
            template = self._account.create_template(body)
        return _describe_template(template)

    def _delete_template(self, arguments: Mapping[str, Any]) -> None:
        name = arguments.get("templateName")
        found = [item["id"] for item in self._account.state.templates.values() if item["name"] == name]
        if not found:
            raise GraphqlError("template not found")
        self._account.delete_template(found[0])

    def _create_secret(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        data = _input_of(arguments)
        name = str(data.get("name") or "")
        if not _SECRET_NAME.fullmatch(name) or not data.get("value"):
            raise GraphqlError("a secret needs a value, and a name of letters, digits, dots, dashes and underscores")
        return self._account.create_secret(name, str(data.get("description") or ""))

    def _delete_secret(self, arguments: Mapping[str, Any]) -> bool:
        self._account.delete_secret(str(arguments.get("id")))
        return True


def _input_of(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    data = arguments.get("input")
    if not isinstance(data, Mapping):
        raise GraphqlError("argument 'input' is required")
    return data


def _rest_body(data: Mapping[str, Any], container: Mapping[str, Any]) -> dict[str, Any]:
    """Return the input of a save as the body of a create."""
    if not data.get("name"):
        raise GraphqlError("name is required")
    workers = {"min": "workersMin", "max": "workersMax", "idleTimeout": "idleTimeout"}
    optional = {"timeout": data.get("executionTimeoutMs"), "flashboot": data.get("flashBootType")}
    return {
        **{key: container[key] for key in ("image", "args", "disk", "ports", "env", "registry")},
        "name": data["name"],
        "type": LOAD_BALANCER if data.get("type") == "LB" else QUEUE,
        **_compute(data),
        "workers": {key: data[name] for key, name in workers.items() if data.get(name) is not None},
        "scaling": _scaling(data),
        "dataCenterIds": _split(data.get("locations")),
        "networkVolumes": _volume_ids(data),
        "modelReferences": list(data.get("modelReferences") or ()),
        **{key: value for key, value in optional.items() if value is not None},
    }


def _compute(data: Mapping[str, Any]) -> dict[str, Any]:
    if data.get("instanceIds"):
        return {"cpu": [_read_instance(name) for name in data["instanceIds"]]}
    tokens = _split(data.get("gpuIds"))
    if not tokens:
        raise GraphqlError("gpuIds or instanceIds is required")
    gpu = {
        "pools": [token for token in tokens if not token.startswith("-")],
        "excludedTypes": [token.removeprefix("-") for token in tokens if token.startswith("-")],
        "count": data.get("gpuCount") or 1,
        "allowedCudaVersions": _split(data.get("allowedCudaVersions")),
    }
    return {"gpu": {**gpu, "minCudaVersion": data["minCudaVersion"]} if data.get("minCudaVersion") else gpu}


def _read_instance(name: Any) -> dict[str, Any]:
    parts = str(name).split("-")
    if len(parts) != 3 or not parts[1].isdigit():  # noqa: PLR2004 - flavour, vCPUs, GB
        raise GraphqlError(f"instanceIds has {name!r}, which is no instance")
    return {"id": parts[0], "vcpuCount": int(parts[1])}


def _scaling(data: Mapping[str, Any]) -> dict[str, Any]:
    kind = data.get("scalerType") or QUEUE_DELAY
    value = data.get("scalerValue") or 4
    return {"type": kind, "queueDelay" if kind == QUEUE_DELAY else "requestCount": value}


def _volume_ids(data: Mapping[str, Any]) -> list[str]:
    if data.get("networkVolumeIds"):
        return [str(item["networkVolumeId"]) for item in data["networkVolumeIds"]]
    return [str(data["networkVolumeId"])] if data.get("networkVolumeId") else []


def _template_body(template: Mapping[str, Any]) -> dict[str, Any]:
    pairs = template.get("env") or ()
    return {
        "image": str(template.get("imageName") or ""),
        "args": str(template.get("dockerArgs") or ""),
        "disk": int(template.get("containerDiskInGb") or DEFAULT_DISK_GB),
        "ports": _split(template.get("ports")),
        "env": {str(item["key"]): str(item["value"]) for item in pairs},
        "registry": template.get("containerRegistryAuthId") or None,
    }


def _describe_template(template: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": template["id"],
        "name": template["name"],
        "imageName": template["image"],
        "dockerArgs": template["args"],
        "containerDiskInGb": template["disk"],
        "volumeInGb": 0,
        "volumeMountPath": None,
        "ports": ",".join(template["ports"]),
        "env": [{"key": key, "value": value} for key, value in template["env"].items()],
        "isServerless": template["serverless"],
        "containerRegistryAuthId": template["registry"],
    }


def _describe_volume(volume: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": volume["id"],
        "name": volume["name"],
        "size": volume["size"],
        "dataCenterId": volume["dataCenter"],
    }


def _split(value: Any) -> list[str]:
    return [part.strip() for part in str(value or "").split(",") if part.strip()]
