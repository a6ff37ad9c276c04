"""The connection to Redis or Valkey: URLs, one way to call, retries within a budget, errors in our words.

redis-py's own retries are off. A call is repeated here, with full jitter, until its budget is spent: every
script of ours may run twice (see `lua/`), so a reply that was lost does no harm.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

from flashkit.errors import ConfigurationError, FlashkitError, StoreFull, StoreMisconfigured, StoreUnavailable
from flashkit.worker.sessions.store import without_password

try:
    import hiredis
    import redis.asyncio as aioredis
    import redis.exceptions
    from redis.asyncio.cluster import ClusterNode, RedisCluster
    from redis.asyncio.connection import parse_url
    from redis.asyncio.retry import Retry
    from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
    from redis.backoff import NoBackoff

    from flashkit.worker.sessions.redis_lane import Lane, NoTransport, Then, settle
except ImportError as exc:
    raise ConfigurationError(
        "the sessions' store is a Redis, but the package redis is not installed",
        hint="pip install 'flashkit-serverless[redis]'",
    ) from exc

T = TypeVar("T")
Word = bytes | str | int
"""One word of a command."""

redis_errors: Final = redis.exceptions

FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 2.0
SHORTEST_ATTEMPT_S: Final = 0.02
"""With less of the budget left no attempt is begun."""
ATTEMPT_S: Final = 5.0
"""A server that does not answer for this long is tried again on a new connection."""
_MOST_CONNECTIONS: Final = 64
_DEFAULT_SENTINEL_PORT: Final = 26_379
_LUA: Final = Path(__file__).parent / "lua"

FAILURES: Final = (redis_errors.RedisError, redis_errors.RedisClusterException, OSError)
"""What calls raise; that of a Cluster none of whose servers answers is no RedisError."""
_PASSING: Final = (
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.ReadOnlyError,
    redis_errors.MasterDownError,
    redis_errors.ClusterDownError,
    redis_errors.TryAgainError,
    redis_errors.RedisClusterException,
    OSError,
)
"""Outages and failovers: worth another attempt."""
_PASSING_WORDS: Final = (
    *("LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "NOREPLICAS", "UNBLOCKED"),
    "TTL exhausted",  # redis-py's word for slots that moved again and again while it followed them
)

_TLS_HINTS: Final = (
    (
        "CERTIFICATE_VERIFY_FAILED",
        "name who signed its certificate with ?ssl_ca_certs=/path/to/ca.pem, and the host as the certificate does",
    ),
    ("WRONG_VERSION_NUMBER", "no TLS is spoken on this port: write redis:// instead of rediss://, or use its TLS port"),
    ("CERTIFICATE_REQUIRED", "give a certificate of yours: ?ssl_certfile=/path/to/cert.pem&ssl_keyfile=/path/to/key"),
    ("[SSL", "check the server's TLS and the ssl_ options of the URL"),
)
"""What to do about errors of TLS, by their words; no later attempt heals one."""
_SSL_FILES: Final = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
_SENTINEL_LOGIN: Final = ("sentinel_username", "sentinel_password")


class NotDurable(Exception):
    """The server applied a write, but did not confirm in time that it is on disk or on a replica."""


@dataclass(frozen=True, slots=True)
class Script:
    """One Lua script of ours."""

    name: str
    text: str
    sha: str


def read_script(name: str, *, prelude: bool = True) -> Script:
    """Return the script in `lua/`, after the part that those about one session share."""
    text = (_LUA / f"{name}.lua").read_text()
    if prelude:
        text = (_LUA / "prelude.lua").read_text() + text
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


class RedisClient:
    """One server, Sentinel group or Cluster; nothing is connected before the first call."""

    def __init__(self, url: str, *, budget_s: float) -> None:
        self.shown_url = without_password(url)
        self.budget_s = budget_s
        attempt_s = min(ATTEMPT_S, budget_s / 4)
        self.confirm_ms = round(800 * attempt_s)
        """How long a write may wait for disk or replicas before it is tried again."""
        self.raw: Any = _connect(url, self.shown_url, attempt_s=attempt_s)
        self.is_cluster = isinstance(self.raw, RedisCluster)
        self._lane_client: Any = None
        self._lane: Lane | None = None
        if not self.is_cluster:
            self._lane_client = _connect(url, self.shown_url, attempt_s=attempt_s, is_lane=True)
            self._lane = Lane(self._lane_client.connection_pool, attempt_s=attempt_s)

    async def close(self) -> None:
        """Close all connections."""
        if self._lane is not None:
            await self._lane.close()
        for client in filter(None, (self._lane_client, self.raw)):
            await client.aclose()
            manager = None if self.is_cluster else getattr(client.connection_pool, "sentinel_manager", None)
            for sentinel in manager.sentinels if manager else ():
                await sentinel.aclose()

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Word]) -> Any:
        """Return a script's answer, retrying within the budget. Raises `StoreUnavailable`."""
        started = time.monotonic()
        try:
            return await self._run_once(script, keys, arguments)
        except FAILURES as exc:
            self._raise_lasting(exc)
            left = self.budget_s - (time.monotonic() - started)
            last = exc
        return await self.persist(lambda: self._run_once(script, keys, arguments), budget_s=left, last=last)

    @property
    def is_ready(self) -> bool:
        """True when `send` sends at once."""
        return self._lane is not None and self._lane.is_open

    def send(self, script: Script, keys: Sequence[str], arguments: Sequence[Word], then: Then) -> None:
        """Make one attempt at a call; `then` gets the answer, or the exception in its place.

        Only while `is_ready`. A call that fails has to be made again by `run`, which knows what to do.
        """
        self._send(then, "EVALSHA", script.sha, len(keys), *keys, *arguments)

    def _send(self, then: Then, *words: Word) -> None:
        assert self._lane is not None  # noqa: S101 - the caller has asked
        self._lane.send(_pack(words), then)

    async def command(self, *words: Any) -> Any:
        """Return a command's answer, retrying within the budget. Raises `StoreUnavailable`."""
        return await self.persist(lambda: self.raw.execute_command(*words))

    async def run_many(self, commands: Sequence[tuple[Word, ...]]) -> None:
        """Run commands on any keys, one attempt each, and return when all have been answered, well or not."""
        if self.is_ready:
            answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            for number, words in enumerate(commands, 1):  # answers come in order
                is_last = number == len(commands)
                self._send(partial(settle, answered) if is_last else _ignore, *words)
            await answered
            return
        async with self.raw.pipeline(transaction=False) as pipe:
            for words in commands:
                pipe.execute_command(*words)
            await _heed(pipe.execute(raise_on_error=False))

    async def run_durably(
        self, script: Script, keys: Sequence[str], arguments: Sequence[Word], confirm: Sequence[Any]
    ) -> Any:
        """Run a script and, on the same connection, the command that waits for disk or replicas."""
        return await self.persist(lambda: self._run_confirmed(script, keys, arguments, confirm))

    async def persist(
        self, attempt: Callable[[], Awaitable[T]], *, budget_s: float | None = None, last: Exception | None = None
    ) -> T:
        """Return what the attempt returns, repeating it through outages. Raises `StoreUnavailable`."""
        budget = self.budget_s if budget_s is None else budget_s
        deadline = time.monotonic() + budget
        longest = FIRST_PAUSE_S
        try:
            async with asyncio.timeout(budget):
                while True:
                    try:
                        return await _heed(attempt())
                    except (*FAILURES, NotDurable) as exc:
                        self._raise_lasting(exc)
                        last = exc
                    left = deadline - time.monotonic()
                    if left < SHORTEST_ATTEMPT_S:
                        break
                    pause = random.uniform(0, longest)  # noqa: S311 - spreads retries, guards nothing
                    await asyncio.sleep(min(pause, left - SHORTEST_ATTEMPT_S))
                    longest = min(LONGEST_PAUSE_S, 2 * longest)
        except TimeoutError as exc:
            last = last or exc
        raise self._unavailable(last) from last

    async def _run_once(self, script: Script, keys: Sequence[str], arguments: Sequence[Word]) -> Any:
        try:
            words = ("EVALSHA", script.sha, len(keys), *keys, *arguments)
            if self._lane is not None:
                try:
                    return await self._lane.call(_pack(words))
                except NoTransport:
                    self._lane = None
            return await _heed(self.raw.execute_command(*words))
        except redis_errors.NoScriptError:  # a new server; EVAL also teaches it the script
            return await _heed(self.raw.execute_command("EVAL", script.text, len(keys), *keys, *arguments))

    async def _run_confirmed(
        self, script: Script, keys: Sequence[str], arguments: Sequence[Word], confirm: Sequence[Any]
    ) -> Any:
        async with self.raw.pipeline(transaction=False) as pipe:
            pipe.execute_command("EVAL", script.text, len(keys), *keys, *arguments)
            pipe.execute_command(*confirm)
            reply, confirmed = await pipe.execute()
        count = confirmed[0] if isinstance(confirmed, list) else confirmed
        if count < 1:
            raise NotDurable(f"{confirm[0]} was not confirmed within {confirm[-1]} ms")
        return reply

    def _raise_lasting(self, exc: Exception) -> None:
        """Raise our error for what another attempt cannot heal; return for what it may."""
        text = str(exc)
        if (tls := next((hint for words, hint in _TLS_HINTS if words in text), None)) is not None:
            raise self._misconfigured(f"cannot be spoken to by TLS: {text}", tls) from exc
        if isinstance(exc, MasterNotFoundError) and "AuthenticationError" in text:
            service = text.partition(" : ")[0].rpartition("No master found for ")[2]
            hint = "give the Sentinels' own password as ?sentinel_password=…"
            raise self._misconfigured(f"cannot be found: the Sentinels of service {service} refused", hint) from exc
        is_login = isinstance(exc, (redis_errors.AuthenticationError, redis_errors.AuthorizationError))
        if is_login or "NOAUTH" in text or "unauthenticated" in text:
            raise self._refused(exc, "check user and password in the URL") from exc
        if isinstance(exc, redis_errors.NoPermissionError) or "NOPERM" in text or "can't run this command" in text:
            raise self._refused(exc, "allow the user EVAL, EVALSHA and the commands on keys fk1:*") from exc
        if isinstance(exc, redis_errors.OutOfMemoryError) or "OOM command" in text or "MISCONF" in text:
            raise StoreFull(
                f"the sessions' store at {self.shown_url} has no room for writes: {text}",
                hint="raise maxmemory or the disk's size, or delete sessions; nothing of this write was applied",
            ) from exc
        if isinstance(exc, (*_PASSING, NotDurable)) or any(word in text for word in _PASSING_WORDS):
            return
        raise self._refused(exc, "is this a Redis >= 6.2 or a Valkey that nobody else writes fk1:* keys to?") from exc

    def _refused(self, exc: Exception, hint: str) -> FlashkitError:
        return self._misconfigured(f"refused a command: {exc}", hint)

    def _misconfigured(self, what: str, hint: str) -> FlashkitError:
        return StoreMisconfigured(f"the sessions' store at {self.shown_url} {what}", hint=hint)

    def _unavailable(self, last: Exception | None) -> StoreUnavailable:
        is_tls = self.shown_url.startswith(("rediss", "valkeys"))
        doubt = "; does this port speak TLS? redis:// is without" if is_tls else ""
        return StoreUnavailable(
            f"the sessions' store at {self.shown_url} could not be used within {self.budget_s:g} s: "
            f"{type(last).__name__}: {last}",
            hint=f"what was acknowledged is kept; try again when the store is back{doubt}",
        )


async def _heed(work: Awaitable[T]) -> T:
    """Return or raise what redis-py does, but for two faults of it.

    It writes through `asyncio.wait_for`, which before Python 3.12 forgets a cancellation that comes in the same round
    of the event loop as its end. A loop that is to be stopped would go on for ever, and a job past its time.

    It closes the connections of a server that leaves a Cluster also while another call writes on them, which then
    finds no stream. That is a lost connection.
    """
    task = asyncio.current_task()
    wishes = task.cancelling() if task else 0
    try:
        return await work
    except AttributeError as exc:
        if exc.obj is None and exc.name == "writelines":
            raise redis_errors.ConnectionError("the connection was closed while a command was written") from exc
        raise
    finally:
        if task and task.cancelling() > wishes:
            raise asyncio.CancelledError


def _pack(words: tuple[Word, ...]) -> bytes:
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # it takes any number of words
    return packed


def _ignore(answer: Any) -> None:
    """Take an answer that nobody needs."""


def _connect(url: str, shown_url: str, *, attempt_s: float, is_lane: bool = False) -> Any:
    scheme, _, rest = url.partition("://")
    scheme = scheme.replace("valkey", "redis", 1)
    options: dict[str, Any] = {
        "socket_timeout": None if is_lane else attempt_s,  # a lane has one timer for all it reads
        "socket_connect_timeout": attempt_s,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    try:
        base, kind = _split_scheme(scheme)
        _require_escaped_login(base, rest)
        given = _read_query(base, kind, rest)
        if kind == "cluster":
            return _connect_cluster(rest, {**options, **given, "ssl": base == "rediss"})
        if kind == "sentinel":
            return _connect_sentinel(rest, options, given, is_tls=base == "rediss")
        pool = aioredis.BlockingConnectionPool.from_url(
            f"{base}://{rest}", max_connections=_MOST_CONNECTIONS, timeout=attempt_s, **options
        )
        return aioredis.Redis.from_pool(pool)
    except (ValueError, TypeError) as exc:
        raise ConfigurationError(
            f"{shown_url!r} is not a store for sessions: {exc}",
            hint="write it as redis://user:password@host:6379/0, rediss://…, unix:///path/to/socket, "
            "redis+cluster://host:6379 or redis+sentinel://host:26379/service",
        ) from exc


def _split_scheme(scheme: str) -> tuple[str, str]:
    """Return what a scheme says about the connection and about the kind of service."""
    base, _, kind = scheme.partition("+")
    if base not in ("redis", "rediss", "unix") or kind not in ("", "cluster", "sentinel"):
        raise ValueError(f"there is no {scheme}://")
    return base, kind


def _require_escaped_login(base: str, rest: str) -> None:
    """Refuse a login that would be read as a part of the address, before an error shows it as that."""
    if base != "unix" and set("/?#@") & set(rest.rpartition("@")[0]):
        raise ValueError("in user and password, write / ? # @ as %2F %3F %23 %40")


def _read_query(base: str, kind: str, rest: str) -> dict[str, Any]:
    """Return the options behind the question mark, where they are ours to hand on; refuse what would be lost."""
    _, _, query = rest.partition("?")
    # redis-py reads a URL with one host; it knows the types of its options.
    given: dict[str, Any] = dict(parse_url(f"{base}://localhost/?{query}"))
    for name in ("connection_class", "host", "path"):
        given.pop(name, None)
    for name in _SSL_FILES:
        if name in given and not Path(given[name]).exists():
            raise ValueError(f"{name} names {given[name]!r}, which does not exist")
    for name in given:
        is_known = name.startswith("ssl_") or (kind == "sentinel" and name in _SENTINEL_LOGIN)
        if kind and not is_known:
            raise ValueError(f"{name} is not an option of {base}+{kind}://")
        if kind and name.startswith("ssl_") and base != "rediss":
            raise ValueError(f"{name} needs rediss+{kind}://")
    return given


def _connect_cluster(rest: str, options: dict[str, Any]) -> RedisCluster:
    login, hosts, _ = _split_address(rest)
    options = {**options, **login}
    nodes = [ClusterNode(host, port or 6379) for host, port in hosts]
    options.pop("retry")  # the cluster client follows redirections by it
    # Slots that moved are learnt one by one: else the client closes all connections now and then, also those in use.
    return RedisCluster(startup_nodes=nodes, reinitialize_steps=0, **options)


def _connect_sentinel(rest: str, options: dict[str, Any], given: dict[str, Any], *, is_tls: bool) -> Any:
    """Return a client that asks Sentinels for the primary; their own login is in `sentinel_password` of the query."""
    own = {name: given.pop(f"sentinel_{name}") for name in ("username", "password") if f"sentinel_{name}" in given}
    login, hosts, path = _split_address(rest)
    service, _, database = path.partition("/")
    if not service:
        raise ValueError("the name of the service is missing after the hosts")
    addresses = [(host, port or _DEFAULT_SENTINEL_PORT) for host, port in hosts]
    tls = {**given, "ssl": True} if is_tls else {}
    sentinel: Any = Sentinel(  # type: ignore[no-untyped-call]  # redis-py has no annotations here
        addresses, sentinel_kwargs={**options, **tls, **own}, **login, **options, **tls
    )
    return sentinel.master_for(service, db=int(database or 0))


def _split_address(rest: str) -> tuple[dict[str, str], list[tuple[str, int | None]], str]:
    """Return login, hosts with ports, and path of `user:password@host:1,host:2/path`."""
    credentials, _, address = rest.partition("?")[0].rpartition("@")
    names, _, path = address.partition("/")
    user, _, password = credentials.partition(":")
    pairs = {"username": unquote(user), "password": unquote(password)}
    hosts = []
    for name in names.split(","):
        parts = urlsplit(f"//{name}")
        if not parts.hostname:
            raise ValueError(f"{names!r} names no host")
        hosts.append((parts.hostname, parts.port))
    return {key: value for key, value in pairs.items() if value}, hosts, path
