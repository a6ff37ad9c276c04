"""What a client may send to `/run` and `/runsync`, checked field by field.

Whatever is wrong is said with the field's name and what would be right, as one `InputError`. Fields that
the platform does not read, `s3Config` for one, go to the worker as they came.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any, Final

from flashkit.catalog import EXECUTION_TIMEOUT_MS
from flashkit.emulator.bodies import decode_json
from flashkit.emulator.platform import JobRequest
from flashkit.emulator.webhooks import check_webhook
from flashkit.errors import InputError
from flashkit.protocol import RUNSYNC_DEFAULT_WAIT_MS, RUNSYNC_WAIT_MS, TTL_MS

_READ_HERE: Final = frozenset({"id", "input", "policy", "webhook"})
_POLICY_FIELDS: Final = ("executionTimeout", "ttl", "lowPriority")


def read_submission(body: bytes, *, allow_remote_webhooks: bool) -> JobRequest:
    """Return the job that a request body asks for.

    Raises:
        InputError: The body is not JSON, or a field is missing or wrong.
    """
    data = decode_json(body)
    if not isinstance(data, dict):
        raise InputError("the body is not a JSON object", hint='send {"input": …}')
    if "input" not in data:
        raise InputError("the field `input` is missing", hint='send {"input": …}', details={"field": "input"})
    policy = _read_policy(data.get("policy"))
    webhook = data.get("webhook") or None
    return JobRequest(
        input=data["input"],
        webhook=None if webhook is None else check_webhook(webhook, allow_remote=allow_remote_webhooks),
        execution_timeout_ms=_read_ms(
            policy, "executionTimeout", int(EXECUTION_TIMEOUT_MS.low), int(EXECUTION_TIMEOUT_MS.high)
        ),
        ttl_ms=_read_ms(policy, "ttl", *TTL_MS),
        low_priority=_read_flag(policy, "lowPriority"),
        extra={key: value for key, value in data.items() if key not in _READ_HERE},
    )


def read_wait_ms(text: str | None) -> int:
    """Return how long `/runsync?wait=` may wait.

    Raises:
        InputError: It is not a number of milliseconds that the platform takes.
    """
    return RUNSYNC_DEFAULT_WAIT_MS if text is None else read_query_ms("wait", text, *RUNSYNC_WAIT_MS)


def read_query_ms(name: str, text: str, low: int, high: int) -> int:
    """Return a number of milliseconds from the query string.

    Raises:
        InputError: It is not a whole number between `low` and `high`.
    """
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(high))
    if not is_number or not low <= int(text) <= high:
        raise _out_of_range(name, text, low, high)
    return int(text)


def _read_policy(policy: Any) -> Mapping[str, Any]:
    if policy is None:
        return {}
    if not isinstance(policy, dict):
        raise InputError(
            f"the field `policy` is {_kind_of(policy)}, not an object",
            hint='write {"executionTimeout": 60000, "ttl": 3600000}',
            details={"field": "policy"},
        )
    if unknown := [key for key in policy if key not in _POLICY_FIELDS]:
        raise InputError(
            f"the field `policy` has no part {reprlib.repr(unknown[0])}",
            hint=f"a policy has {', '.join(_POLICY_FIELDS)}",
            details={"field": "policy"},
        )
    return policy


def _read_ms(policy: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    value = policy.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _out_of_range(f"policy.{name}", value, low, high)
    return value


def _read_flag(policy: Mapping[str, Any], name: str) -> bool:
    value = policy.get(name, False)
    if not isinstance(value, bool):
        raise InputError(
            f"the field `policy.{name}` is {_kind_of(value)}, not true or false", details={"field": f"policy.{name}"}
        )
    return value


def _out_of_range(field: str, value: object, low: int, high: int) -> InputError:
    return InputError(
        f"`{field}` is {reprlib.repr(value)}, not a whole number of milliseconds from {low:,} to {high:,}",
        details={"field": field},
    )


def _kind_of(value: object) -> str:
    names = {str: "a string", list: "a list", dict: "an object", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
