"""The check at start: is this server one that sessions can be trusted to?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from flashkit.errors import StoreMisconfigured
from flashkit.worker.sessions.redis_client import RedisClient, Script, redis_errors
from flashkit.worker.sessions.store import StoreReport

_OLDEST: Final = (6, 2)
_WAITAOF_SINCE: Final = (7, 2)

_PROBE: Final = """
redis.call('XADD', KEYS[1], '1-0', 'r', '')
redis.call('XTRIM', KEYS[1], 'MINID', '2-0')
redis.call('PEXPIREAT', KEYS[1], redis.call('TIME')[1] * 1000 + 1000)
redis.call('HSET', KEYS[2], 'f', redis.call('TIME')[1])
return redis.call('UNLINK', KEYS[1], KEYS[2])
"""


class ServerFacts:
    """What a server says about itself."""

    def __init__(self, info: Mapping[str, Any], fsync_policy: str | None) -> None:
        self._info = info
        self.has_aof = bool(int(info.get("aof_enabled", 0)))
        self.syncs_every_write = self.has_aof and fsync_policy == "always"

    @property
    def name(self) -> str:
        """Name and version of the server."""
        valkey = self._info.get("valkey_version")
        return f"valkey {valkey}" if valkey else f"redis {self._info.get('redis_version', '?')}"

    @property
    def can_wait_for_disk(self) -> bool:
        """True where WAITAOF exists and there is an AOF to wait for."""
        return self.has_aof and self._compatible >= _WAITAOF_SINCE

    def refusal(self) -> tuple[str, str] | None:
        """Return why sessions must not be kept here, and what to do; None when they may."""
        if self._compatible < _OLDEST:
            return f"is {self.name}; sessions need 6.2 or newer", "update the server"
        if self._info.get("role") in ("slave", "replica"):
            return "is a read-only replica", "use the primary's address, or redis+sentinel:// to find it"
        if self._policy != "noeviction":
            # Every key of a session has a lifetime, so volatile-* takes sessions just as allkeys-* does. One whose
            # head is gone begins anew, and what must happen once happens again.
            return (
                f"evicts keys when it is full (maxmemory-policy {self._policy}), sessions among them",
                "CONFIG SET maxmemory-policy noeviction, or use a server of its own for sessions",
            )
        return None

    def warnings(self) -> tuple[str, ...]:
        """Return what may cost sessions, though it can be meant so."""
        found = []
        if not self.has_aof:
            found.append("appendonly is off: a crash of the server loses what it has not saved")
        elif not (self.can_wait_for_disk or self.syncs_every_write):
            found.append(
                f"{self.name} with appendfsync everysec cannot confirm writes to disk, so effects with once=True are "
                "refused: use 7.2 or newer, or appendfsync always"
            )
        return tuple(found)

    @property
    def _compatible(self) -> tuple[int, ...]:
        parts = str(self._info.get("redis_version", "0")).split(".")
        return tuple(int(part) for part in parts[:2] if part.isdigit())

    @property
    def _policy(self) -> str:
        return str(self._info.get("maxmemory_policy", "noeviction"))


async def check_server(client: RedisClient, namespace: str, *, budget_s: float) -> tuple[StoreReport, ServerFacts]:
    """Return what the server is.

    Raises:
        StoreMisconfigured: Sessions must not be kept there.
        StoreFull: It is full already.
        StoreUnavailable: It does not answer, or takes too long to load its data.
    """
    info = await client.persist(lambda: _read_info(client), budget_s=budget_s)
    facts = ServerFacts(info, await client.persist(lambda: _read_fsync_policy(client), budget_s=budget_s))
    if refusal := facts.refusal():
        reason, hint = refusal
        raise StoreMisconfigured(f"the sessions' store at {client.shown_url} {reason}", hint=hint)
    keys = [f"fk1:{{{namespace}:check}}:{name}" for name in ("j", "m")]
    probe = Script("probe", _PROBE, "")
    await client.persist(lambda: client.raw.execute_command("EVAL", probe.text, len(keys), *keys), budget_s=budget_s)
    return StoreReport(facts.name, facts.warnings()), facts


async def _read_info(client: RedisClient) -> Mapping[str, Any]:
    if client.is_cluster:
        await client.raw.initialize()
        info: Mapping[str, Any] = await client.raw.info(target_nodes=client.raw.get_primaries()[0])
    else:
        info = await client.raw.info()
    if int(info.get("loading", 0)):  # INFO is answered by then; what comes after it is not
        raise redis_errors.BusyLoadingError("LOADING the server reads its data")
    return info


async def _read_fsync_policy(client: RedisClient) -> str | None:
    """Return appendfsync; None where managed services hide it."""
    try:
        if client.is_cluster:
            node = client.raw.get_primaries()[0]
            answer = await client.raw.config_get("appendfsync", target_nodes=node)
        else:
            answer = await client.raw.config_get("appendfsync")
    except (redis_errors.NoPermissionError, redis_errors.ResponseError):
        return None
    values = {_text(name): _text(value) for name, value in answer.items()}
    return values.get("appendfsync")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
