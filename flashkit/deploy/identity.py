"""How flashkit knows its endpoints again: by their names, and by a variable in their environment.

REST v2 gives endpoints no labels, and their names need not be unique. So `FLASHKIT_DEPLOYMENT` says which endpoint of
which app and environment this is, and what the platform does not give back: the variables that flashkit set (all others
are the platform's or a person's, and are kept), the order of preference of GPUs, one-vCPU instances, cached models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from flashkit.protocol import DEPLOYMENT_VARIABLE

ENDPOINTS_VARIABLE: Final = "FLASHKIT_ENDPOINTS"
"""Ids of other endpoints by their names in the app."""
ENDPOINT_VARIABLE: Final = "FLASHKIT_ENDPOINT"
"""Which endpoint of its app a worker runs, where several share an image."""
LONGEST_NAME: Final = 191
"""Characters of an endpoint's name (REST v1's schema; v2 names no limit)."""


def deployed_name(app: str, environment: str, endpoint: str) -> str:
    """Return the name of an endpoint on the platform."""
    return f"{app}-{environment}-{endpoint}"


@dataclass(frozen=True, slots=True)
class Marker:
    """What an endpoint's environment says about where it comes from."""

    app: str
    environment: str
    endpoint: str
    keys: tuple[str, ...] = ()
    """Variables that flashkit set."""
    gpu: tuple[str, ...] = ()
    """GPUs in order of preference."""
    cpu: str | None = None
    """The instance, where REST v2 cannot say it."""
    models: tuple[str, ...] = ()
    """Models that the platform keeps on its machines for this endpoint."""

    def to_json(self) -> str:
        """Return the variable's value; the same marker gives the same text."""
        optional = {"gpu": list(self.gpu), "cpu": self.cpu, "models": list(self.models)}
        data = {
            "app": self.app,
            "environment": self.environment,
            "endpoint": self.endpoint,
            "keys": sorted(self.keys),
            **{key: value for key, value in optional.items() if value},
        }
        return json.dumps(data, separators=(",", ":"), sort_keys=True)


def read_marker(env: Mapping[str, str]) -> Marker | None:
    """Return an endpoint's marker; None for one that flashkit did not make."""
    try:
        data = json.loads(env[DEPLOYMENT_VARIABLE])
        return Marker(
            app=str(data["app"]),
            environment=str(data["environment"]),
            endpoint=str(data["endpoint"]),
            keys=_texts(data.get("keys")),
            gpu=_texts(data.get("gpu")),
            cpu=data.get("cpu"),
            models=_texts(data.get("models")),
        )
    except (KeyError, ValueError, TypeError):
        return None


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value or ()))


def endpoints_value(ids: Mapping[str, str]) -> str:
    """Return the value of FLASHKIT_ENDPOINTS; the same ids give the same text."""
    return json.dumps(dict(sorted(ids.items())), separators=(",", ":"))
