"""LangGraph's checkpoints in plain Redis or Valkey: no modules, no forks by accident, no growth by copies.

    from flashkit.integrations.langgraph import FlashkitSaver

    async with FlashkitSaver("redis://localhost:6379/0") as saver:
        graph = builder.compile(checkpointer=saver)

What it promises beyond LangGraph's own contract:

- A run that built on a checkpoint which is no longer the thread's latest is refused (`StaleWriter`): of two
  runs on one thread, one wins and the other one stops at its next step. Going on from an older checkpoint is
  possible for whoever asked for it by its id, as time travel does.
- A channel's value is stored once for each version, not with every checkpoint; `aprune` removes what only old
  checkpoints need.
- All of a thread is one key with a lifetime, which each write starts anew.
- Stored bytes never name code; see `langgraph_values`.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Coroutine, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar, cast

from flashkit.errors import ConfigurationError, InputError, RecordCorrupt

try:
    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import (
        WRITES_IDX_MAP,
        BaseCheckpointSaver,
        ChannelVersions,
        Checkpoint,
        CheckpointMetadata,
        CheckpointTuple,
        get_checkpoint_id,
        get_checkpoint_metadata,
        writes_sort_key,
    )
    from langgraph.checkpoint.serde.base import CipherProtocol
    from langgraph.checkpoint.serde.encrypted import EncryptedSerializer

    from flashkit.integrations.langgraph_values import PlainValues
except ImportError as exc:
    raise ConfigurationError(
        f"LangGraph's checkpoints need the package {exc.name}, which is not installed",
        hint="pip install 'flashkit-serverless[langgraph]'",
    ) from exc

import ormsgpack

from flashkit.integrations.checkpoint_threads import (
    Place,
    Record,
    StaleWriter,
    Stored,
    Threads,
    Write,
    require_plain,
    value_name,
)
from flashkit.worker.sessions.redis_client import RedisClient
from flashkit.worker.sessions.redis_store import RedisStore
from flashkit.worker.sessions.store import DAY_S

__all__ = ["FlashkitSaver", "PlainValues", "StaleWriter"]

T = TypeVar("T")

_BRANCH: Final = "__flashkit_branch"
"""In the configuration that a read returns: this checkpoint was asked for by its id and was not the latest.
LangGraph carries the configuration through the run, so the run's first checkpoint may stand on it."""
_READ_AT_ONCE: Final = 16
_REMEMBERED: Final = 10_000


class FlashkitSaver(BaseCheckpointSaver[str]):  # type: ignore[misc]  # LangGraph is optional, so it is Any here
    """A checkpointer on plain Redis. Use it as an async context manager, or call `aclose`.

    Sync methods work too, outside of event loops: they run on a thread of the saver's own.

    Args:
        url_or_store: `redis://`, `rediss://`, `unix://`, `redis+cluster://`, `redis+sentinel://`, the same with
            `valkey`, or the store of an app's sessions, whose connections and namespace are used then.
        namespace: Separates apps and tenants that share a server.
        retain_s: How long a thread is kept after its last change.
        types: Dataclasses and pydantic models that may be in the graph's state.
        cipher: Encrypts all values; ids, channel names and the order of things stay readable.
        budget_s: How long one call retries while the server is away.
    """

    serde: Any

    def __init__(
        self,
        url_or_store: str | RedisStore,
        *,
        namespace: str = "default",
        retain_s: float = 7 * DAY_S,
        types: Iterable[type] = (),
        cipher: CipherProtocol | None = None,
        budget_s: float = 30.0,
    ) -> None:
        values = PlainValues(types)
        super().__init__(serde=EncryptedSerializer(cipher, values) if cipher else values)
        self._where = url_or_store
        self._namespace = namespace if isinstance(url_or_store, str) else url_or_store.namespace
        self._retain_s = retain_s
        self._budget_s = budget_s
        self._threads_of_loops: dict[asyncio.AbstractEventLoop, Threads] = {}
        self._seen_empty: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._sync_loop = _SyncLoop()
        self._open()  # a wrong URL is an error here, not in the first run

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close this event loop's connections, and those of the sync methods."""
        threads = self._threads_of_loops.pop(asyncio.get_running_loop(), None)
        if threads is not None and isinstance(self._where, str):
            await threads.close()
        await asyncio.to_thread(self._sync_loop.stop, self.aclose)

    # ------------------------------------------------------------------ LangGraph's contract

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return the checkpoint of the configuration, the latest one where it names none."""
        thread, ns = _address(config)
        asked = str(get_checkpoint_id(config) or "")
        stored = await self._threads.get(thread, ns, asked)
        if stored is None:
            if not asked:
                self._remember_empty(thread, ns)
            return None
        return self._to_tuple(thread, ns, stored, may_branch=bool(asked) and not stored.is_head)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - LangGraph's word
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Yield checkpoints, newest first within a namespace; without a configuration those of all threads."""
        wanted = filter or {}
        left = -1 if limit is None else limit
        async for item in self._checkpoints(config, before):
            if left == 0:
                return
            if all(item.metadata.get(key) == value for key, value in wanted.items()):
                left -= 1
                yield item

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint, and the channels' values of new versions.

        Raises:
            StaleWriter: Another run wrote to the thread since this one read it; nothing was stored.
            InputError: The state holds a value that cannot be stored.
        """
        thread, ns = _address(config)
        parent = str(get_checkpoint_id(config) or "")
        full_metadata = cast("dict[str, Any]", get_checkpoint_metadata(config, metadata))
        values = checkpoint["channel_values"]
        delta_channels = full_metadata.get("counters_since_delta_snapshot") or {}
        record = Record(
            parent=parent,
            body=self._dump({key: value for key, value in checkpoint.items() if key != "channel_values"}),
            metadata=self._dump(full_metadata),
            values=tuple(value_name(*item) for item in checkpoint["channel_versions"].items()),
            run=str(full_metadata.get("run_id") or ""),
            must_trace=tuple(channel for channel in delta_channels if channel not in values),
        )
        new_values = {
            value_name(channel, version): self._dump(values[channel])
            for channel, version in new_versions.items()
            if channel in values
        }
        place = self._place(thread, ns, config, full_metadata)
        await self._threads.put(thread, ns, checkpoint["id"], record, new_values, place=place)
        return _config(thread, ns, checkpoint["id"])

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store what a task wrote on top of the configuration's checkpoint."""
        thread, ns = _address(config)
        await self._threads.put_writes(
            thread,
            ns,
            str(get_checkpoint_id(config)),
            [
                Write(task_id, task_path, WRITES_IDX_MAP.get(channel, index), channel, self._dump(value))
                for index, (channel, value) in enumerate(writes)
            ],
        )

    async def adelete_thread(self, thread_id: str) -> None:
        """Remove all of a thread."""
        await self._threads.delete(str(thread_id))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Remove the checkpoints that these runs made."""
        for run in run_ids:
            await self._threads.delete_run(str(run))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy all of a thread to a new one. Raises `SessionBusy` when the target has checkpoints."""
        await self._threads.copy(str(source_thread_id), str(target_thread_id))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Remove all checkpoints of the threads (`delete`), or all that the latest ones do not need."""
        if strategy not in ("keep_latest", "delete"):
            raise InputError(f"strategy={strategy!r} is not known", hint="it is 'keep_latest' or 'delete'")
        for thread in map(str, thread_ids):
            await (self._threads.delete(thread) if strategy == "delete" else self._threads.keep_latest(thread))

    def get_next_version(self, current: str | None, channel: None) -> str:
        """Return a version that comes after the current one, and differs from those of other branches."""
        del channel
        number = 0 if current is None else int(str(current).partition(".")[0])
        return f"{number + 1:08d}.{secrets.token_hex(4)}"

    def with_allowlist(self, extra_allowlist: Collection[tuple[str, ...]]) -> Self:
        """Return this saver: classes are named in `types`, not found by their names in data."""
        del extra_allowlist
        return self

    # ------------------------------------------------------------------ the same, for code without an event loop

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Do what `aget_tuple` does."""
        return self._sync_loop.run(self.aget_tuple(config))

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Do what `alist` does; everything is read before the first item is yielded."""

        async def collect() -> list[CheckpointTuple]:
            return [item async for item in self.alist(config, filter=filter, before=before, limit=limit)]

        yield from self._sync_loop.run(collect())

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Do what `aput` does."""
        return self._sync_loop.run(self.aput(config, checkpoint, metadata, new_versions))

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Do what `aput_writes` does."""
        self._sync_loop.run(self.aput_writes(config, writes, task_id, task_path))

    def delete_thread(self, thread_id: str) -> None:
        """Do what `adelete_thread` does."""
        self._sync_loop.run(self.adelete_thread(thread_id))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Do what `adelete_for_runs` does."""
        self._sync_loop.run(self.adelete_for_runs(run_ids))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Do what `acopy_thread` does."""
        self._sync_loop.run(self.acopy_thread(source_thread_id, target_thread_id))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Do what `aprune` does."""
        self._sync_loop.run(self.aprune(thread_ids, strategy=strategy))

    # ------------------------------------------------------------------ inside

    @property
    def _threads(self) -> Threads:
        """The threads as this event loop reaches them: connections belong to one loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._threads_of_loops:
            for ended in [other for other in self._threads_of_loops if other.is_closed()]:
                del self._threads_of_loops[ended]
            self._threads_of_loops[loop] = self._open()
        return self._threads_of_loops[loop]

    def _open(self) -> Threads:
        if isinstance(self._where, str):
            client = RedisClient(self._where, budget_s=self._budget_s)
        else:
            client = self._where._client  # noqa: SLF001 - the store's own connections are shared
        return Threads(client, namespace=self._namespace, retain_s=self._retain_s)

    def _place(self, thread: str, ns: str, config: RunnableConfig, metadata: dict[str, Any]) -> Place:
        """Return where the checkpoint may stand. `fork` is LangGraph's word for going on elsewhere on purpose."""
        parent = str(get_checkpoint_id(config) or "")
        if metadata.get("source") == "fork" or (parent and config["configurable"].get(_BRANCH) == parent):
            return Place.BRANCH
        if parent:
            return Place.HEAD
        return Place.EMPTY if (thread, ns) in self._seen_empty else Place.ANY

    def _remember_empty(self, thread: str, ns: str) -> None:
        """Note that a run may begin on an empty thread; if two do, only one may write the first checkpoint."""
        self._seen_empty[thread, ns] = None
        self._seen_empty.move_to_end((thread, ns))
        if len(self._seen_empty) > _REMEMBERED:
            self._seen_empty.popitem(last=False)

    async def _checkpoints(
        self, config: RunnableConfig | None, before: RunnableConfig | None
    ) -> AsyncIterator[CheckpointTuple]:
        configurable = config["configurable"] if config else {}
        ns = configurable.get("checkpoint_ns")
        asked = get_checkpoint_id(config) if config else None
        end = get_checkpoint_id(before) if before else None
        threads = [str(configurable["thread_id"])] if config else await self._threads.threads()
        for thread in threads:
            ids = [
                at for at in await self._threads.ids(thread, ns) if asked in (None, at[1]) and (not end or at[1] < end)
            ]
            for start in range(0, len(ids), _READ_AT_ONCE):
                part = ids[start : start + _READ_AT_ONCE]
                found = await asyncio.gather(*(self._threads.get(thread, *at) for at in part))
                for at, stored in zip(part, found, strict=True):
                    if stored is not None:
                        # A subgraph that is replayed finds its checkpoint by `before`, not by its id.
                        yield self._to_tuple(thread, at[0], stored, may_branch=before is not None)

    def _to_tuple(self, thread: str, ns: str, stored: Stored, *, may_branch: bool) -> CheckpointTuple:
        body = self._load(stored.record.body)
        values = {
            channel: self._load(stored.values[name])
            for channel, version in body["channel_versions"].items()
            if (name := value_name(channel, version)) in stored.values
        }
        writes = sorted(stored.writes, key=lambda write: writes_sort_key(write.path, write.task, write.index))
        config = _config(thread, ns, stored.id)
        if may_branch:
            config["configurable"][_BRANCH] = stored.id
        return CheckpointTuple(
            config=config,
            checkpoint={**body, "channel_values": values},
            metadata=self._load(stored.record.metadata),
            parent_config=_config(thread, ns, stored.record.parent) if stored.record.parent else None,
            pending_writes=[(write.task, write.channel, self._load(write.value)) for write in writes],
        )

    def _dump(self, value: Any) -> bytes:
        packed: bytes = ormsgpack.packb(self.serde.dumps_typed(value))
        return packed

    def _load(self, packed: bytes) -> Any:
        try:
            kind, data = ormsgpack.unpackb(packed)
        except (ValueError, TypeError) as exc:
            raise RecordCorrupt(f"a checkpoint's value is damaged: {exc}") from exc
        return self.serde.loads_typed((kind, data))


class _SyncLoop:
    """An event loop on a thread of its own, started by the first sync call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # two threads may make the first call at once
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what the coroutine returns."""
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop()
            work.close()
            raise ConfigurationError(
                "a sync method of FlashkitSaver was called in an event loop, which it would block",
                hint="use graph.ainvoke, astream and aget_state there",
            )
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="checkpoints", daemon=True)
                self._thread.start()
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def stop(self, close: Any) -> None:
        """Run the clean-up on the loop and end the thread, if it was started."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _address(config: RunnableConfig) -> tuple[str, str]:
    configurable = config["configurable"]
    thread = require_plain(str(configurable["thread_id"]))
    return thread, require_plain(configurable.get("checkpoint_ns", ""))


def _config(thread: str, ns: str, checkpoint: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread, "checkpoint_ns": ns, "checkpoint_id": checkpoint}}
