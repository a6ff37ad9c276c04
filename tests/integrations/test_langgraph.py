"""LangGraph's checkpoints in a plain redis-server: LangGraph's own suite, real graphs, and two runs at once."""

import asyncio
import contextlib
import importlib.util
import operator
import pickle
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, TypedDict

import pytest
import redis.asyncio

from flashkit.errors import ConfigurationError, InputError, PayloadTooLarge, RecordCorrupt, SessionBusy
from tests.ports import free_port
from tests.sessions.servers import RedisServer, require_binary

HAS_LANGGRAPH = importlib.util.find_spec("langgraph") is not None
if HAS_LANGGRAPH:
    from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
    from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
    from langgraph.graph import END, START, StateGraph
    from langgraph.graph.message import add_messages
    from langgraph.types import Command, Send, interrupt

    from flashkit.integrations.langgraph import FlashkitSaver, PlainValues, StaleWriter
else:
    AnyMessage, add_messages = Any, operator.add

pytestmark = pytest.mark.filterwarnings("default")  # the packages under test have warnings of their own


@pytest.fixture(autouse=True)
def _packages(require):
    require(HAS_LANGGRAPH, "the package langgraph")


@pytest.fixture
async def saver(url):
    async with FlashkitSaver(url, budget_s=5) as saver:
        yield saver


class Counted(TypedDict):
    log: Annotated[list[str], operator.add]


class Chat(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


def thread(name: str = "t1", **more: str) -> dict[str, Any]:
    return {"configurable": {"thread_id": name, **more}}


def chain(saver, *names: str, gates: dict[str, asyncio.Event] | None = None):
    """Build a graph whose nodes add their names to the log, waiting at their gates."""
    builder = StateGraph(Counted)
    gates = gates or {}

    def make(name: str):
        async def node(state: Counted) -> Counted:
            del state
            if name in gates:
                await gates[name].wait()
            return {"log": [name]}

        return node

    previous = START
    for name in names:
        builder.add_node(name, make(name))
        builder.add_edge(previous, name)
        previous = name
    builder.add_edge(previous, END)
    return builder.compile(checkpointer=saver)


async def test_langgraphs_own_suite_is_green_in_all_eight_capabilities(url):
    conformance = pytest.importorskip("langgraph.checkpoint.conformance")

    @conformance.checkpointer_test(name="FlashkitSaver")
    async def checkpointer():
        async with FlashkitSaver(url, budget_s=5) as saver:
            yield saver

    report = await conformance.validate(checkpointer)
    assert {name: result.failures for name, result in report.results.items()} == {name: [] for name in report.results}
    assert len(report.results) == 8
    assert all(result.passed for result in report.results.values())
    assert sum(result.tests_passed for result in report.results.values()) >= 80


async def test_a_graph_goes_on_in_another_process_from_its_last_step(url):
    async with FlashkitSaver(url) as first:
        await chain(first, "a", "b").ainvoke({"log": ["in"]}, thread())
    async with FlashkitSaver(url) as second:
        graph = chain(second, "a", "b")
        assert (await graph.aget_state(thread())).values == {"log": ["in", "a", "b"]}
        assert await graph.ainvoke({"log": ["again"]}, thread()) == {"log": ["in", "a", "b", "again", "a", "b"]}


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_every_durability_of_langgraph_works(saver, durability):
    graph = chain(saver, "a", "b", "c")
    await graph.ainvoke({"log": []}, thread(), durability=durability)
    result = await graph.ainvoke({"log": []}, thread(), durability=durability)
    assert result == {"log": ["a", "b", "c", "a", "b", "c"]}


async def test_an_interrupt_waits_for_its_answer_and_messages_come_back_as_messages(saver):
    call = {"name": "search", "args": {"q": "x"}, "id": "c1", "type": "tool_call"}

    def ask(state: Chat):
        answer = interrupt({"question": "go on?", "amount": Decimal("1.50")})
        return {"messages": [AIMessage(answer, tool_calls=[call]), ToolMessage("found", tool_call_id="c1")]}

    graph = StateGraph(Chat).add_node("ask", ask).add_edge(START, "ask").compile(checkpointer=saver)
    paused = await graph.ainvoke({"messages": [HumanMessage("hello")]}, thread())
    assert paused["__interrupt__"][0].value["amount"] == Decimal("1.50")
    result = await graph.ainvoke(Command(resume="yes"), thread())
    assert [type(message) for message in result["messages"]] == [HumanMessage, AIMessage, ToolMessage]
    stored = (await graph.aget_state(thread())).values["messages"]
    assert stored == result["messages"]


async def test_a_map_over_items_keeps_what_each_branch_sent(saver):
    builder = StateGraph(Counted)
    builder.add_node("work", lambda item: {"log": [f"did {item['n']}"]})
    builder.add_conditional_edges(START, lambda state: [Send("work", {"n": n}) for n in range(3)], ["work"])
    graph = builder.compile(checkpointer=saver)
    assert await graph.ainvoke({"log": []}, thread()) == {"log": ["did 0", "did 1", "did 2"]}
    assert len([item async for item in graph.aget_state_history(thread())]) == 3


async def test_time_travel_branches_off_on_purpose(saver):
    graph = chain(saver, "a", "b")
    await graph.ainvoke({"log": []}, thread())
    history = [item async for item in graph.aget_state_history(thread())]
    before_b = next(item for item in history if item.next == ("b",))
    assert await graph.ainvoke(None, before_b.config) == {"log": ["a", "b"]}
    edited = await graph.aupdate_state(before_b.config, {"log": ["edited"]})
    assert await graph.ainvoke(None, edited) == {"log": ["a", "edited", "b"]}
    assert (await graph.aget_state(thread())).values == {"log": ["a", "edited", "b"]}


async def test_of_two_runs_on_one_thread_the_slower_one_is_refused(url):
    gate = asyncio.Event()
    async with FlashkitSaver(url) as one, FlashkitSaver(url) as two:
        await chain(one, "a").ainvoke({"log": ["begin"]}, thread())
        slow = asyncio.create_task(
            chain(one, "a", "b", gates={"a": gate}).ainvoke({"log": ["slow"]}, thread(), durability="sync")
        )
        while (await chain(two, "a", "b").aget_state(thread())).next != ("a",):
            await asyncio.sleep(0.01)
        await chain(two, "a", "b").ainvoke({"log": ["fast"]}, thread(), durability="sync")
        gate.set()
        with pytest.raises(StaleWriter, match="another run wrote to it") as refused:
            await slow
        assert refused.value.report.details["thread_id"] == "t1"
        state = (await chain(two, "a", "b").aget_state(thread())).values["log"]
        assert state[-3:] == ["fast", "a", "b"]


async def test_of_two_runs_that_begin_one_thread_only_one_does(saver):
    gate = asyncio.Event()
    runs = [
        chain(saver, "a", gates={"a": gate}).ainvoke({"log": [name]}, thread(), durability="exit")
        for name in ("one", "two")
    ]
    asyncio.get_running_loop().call_later(0.1, gate.set)
    results = await asyncio.gather(*runs, return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["StaleWriter", "dict"]
    winner = next(result for result in results if isinstance(result, dict))
    assert (await saver.aget_tuple(thread())).checkpoint["channel_values"]["log"] == winner["log"]


async def test_two_updates_of_one_state_at_once_do_not_fork_it(saver):
    graph = chain(saver, "a")
    await graph.ainvoke({"log": []}, thread())
    await asyncio.gather(
        *(graph.aupdate_state(thread(), {"log": [f"u{n}"]}, as_node="a") for n in range(8)), return_exceptions=True
    )
    tuples = [item async for item in saver.alist(thread())]
    parents = [item.parent_config["configurable"]["checkpoint_id"] for item in tuples if item.parent_config]
    assert len(parents) == len(set(parents))


async def test_a_run_on_a_deleted_thread_does_not_bring_half_of_it_back(saver):
    gate = asyncio.Event()
    graph = chain(saver, "a", "b", gates={"b": gate})
    run = asyncio.create_task(graph.ainvoke({"log": []}, thread(), durability="sync"))
    while (await graph.aget_state(thread())).next != ("b",):
        await asyncio.sleep(0.01)
    await saver.adelete_thread("t1")
    gate.set()
    with pytest.raises(StaleWriter, match="deleted or has expired"):
        await run
    assert (await graph.aget_state(thread())).values == {}


async def test_a_step_that_is_sent_twice_is_stored_once(saver):
    """What happens when the server's answer is lost and the call is repeated."""
    await chain(saver, "a").ainvoke({"log": []}, thread())
    latest = await saver.aget_tuple(thread())
    again = (latest.parent_config, latest.checkpoint, latest.metadata, latest.checkpoint["channel_versions"])
    assert await saver.aput(*again) == latest.config
    assert await saver.aget_tuple(thread()) == latest
    await chain(saver, "a").ainvoke({"log": []}, thread())
    with pytest.raises(StaleWriter):
        await saver.aput(*again)


async def test_a_subgraph_with_memory_of_its_own_goes_on_where_it_was(saver):
    inner = StateGraph(Counted).add_node("in", lambda state: {"log": ["in"]}).add_edge(START, "in")
    builder = StateGraph(Counted).add_node("sub", inner.compile(checkpointer=True)).add_edge(START, "sub")
    graph = builder.compile(checkpointer=saver)
    await graph.ainvoke({"log": []}, thread())
    result = await graph.ainvoke({"log": ["x"]}, thread())
    spaces = {item.config["configurable"]["checkpoint_ns"] async for item in saver.alist(thread())}
    assert spaces == {"", "sub"}
    history = [item async for item in graph.aget_state_history(thread())]
    before_sub = next(item for item in history if item.next == ("sub",))
    assert await graph.ainvoke(None, before_sub.config) == result


async def test_it_works_in_a_cluster(tmp_path_factory):
    options = {"cluster_enabled": "yes", "cluster_port": str(free_port())}
    server = RedisServer(tmp_path_factory.mktemp("cluster"), require_binary("redis"), **options).start()
    try:
        await open_cluster(server.port)
        async with FlashkitSaver(f"redis+cluster://127.0.0.1:{server.port}", budget_s=5) as saver:
            for name in ("t1", "t2", "t3"):
                await chain(saver, "a").ainvoke({"log": [name]}, thread(name, run_id="r"))
            await saver.acopy_thread("t1", "t4")
            await saver.aprune(["t1"])
            assert len([item async for item in saver.alist(None)]) == 10
            await saver.adelete_for_runs(["r"])
            assert [item async for item in saver.alist(None)] == []
    finally:
        server.kill()


async def open_cluster(port: int) -> None:
    """Give all slots to the only node, and wait until it is ready."""
    async with redis.asyncio.Redis(port=port, retry=None) as client:
        for _ in range(200):
            with contextlib.suppress(redis.RedisError):
                if (await client.execute_command("CLUSTER INFO"))["cluster_state"] == "ok":
                    return
                await client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
            await asyncio.sleep(0.05)
    raise AssertionError("the cluster does not come up")


async def test_a_channel_that_does_not_change_is_stored_once(saver, server):
    class Wide(TypedDict):
        document: str
        log: Annotated[list[str], operator.add]

    builder = StateGraph(Wide)
    names = [f"n{index}" for index in range(10)]
    for before, name in zip([START, *names], names, strict=False):
        builder.add_node(name, lambda state: {"log": ["x"]})
        builder.add_edge(before, name)
    graph = builder.compile(checkpointer=saver)
    await graph.ainvoke({"document": "d" * 100_000, "log": []}, thread())
    (key,) = server.client.keys("fk1:*:g")
    # LangGraph hands over the input three times: as __start__, as the input's write, as the channel; not 12 times.
    assert server.client.memory_usage(key, samples=0) < 4 * 100_000


async def test_every_key_has_a_lifetime_and_a_thread_is_in_one_slot(saver, server):
    config = thread(run_id="r1")
    await chain(saver, "a", "b").ainvoke({"log": []}, config)
    await saver.acopy_thread("t1", "t2")
    keys = server.client.keys("*")
    assert len(keys) == 4
    assert all(server.client.ttl(key) > 6 * 86_400 for key in keys)
    assert {key for key in keys if key.endswith(b"}:g")} == {b"fk1:{default:t1}:g", b"fk1:{default:t2}:g"}


async def test_thread_names_cannot_leave_their_namespace(url, server):
    async with FlashkitSaver(url, namespace="a") as one, FlashkitSaver(url, namespace="b") as other:
        for name in ("}:x{", "%7D", "a b\n*", "ö"):
            await chain(one, "a").ainvoke({"log": [name]}, thread(name))
            assert await other.aget_tuple(thread(name)) is None
            assert (await one.aget_tuple(thread(name))).checkpoint["channel_values"]["log"] == [name, "a"]
        assert len([item async for item in one.alist(None)]) == 12
        assert [item async for item in other.alist(None)] == []
        with pytest.raises(InputError, match="NUL"):
            await one.aget_tuple(thread("a\0b"))
    assert all(key.startswith(b"fk1:{a") for key in server.client.keys("*"))


async def test_pruning_frees_what_only_old_checkpoints_need(saver, server):
    graph = chain(saver, *"abcdefgh")
    await graph.ainvoke({"log": ["x" * 10_000]}, thread())
    before = server.client.memory_usage("fk1:{default:t1}:g", samples=0)
    await saver.aprune(["t1"])
    assert server.client.memory_usage("fk1:{default:t1}:g", samples=0) < before / 5
    assert (await graph.ainvoke({"log": ["more"]}, thread()))["log"][-9:] == ["more", *"abcdefgh"]
    with pytest.raises(InputError, match="keep_latest"):
        await saver.aprune(["t1"], strategy="newest")


async def test_pruning_keeps_what_a_delta_channel_is_rebuilt_from(saver):
    channels = pytest.importorskip("langgraph.channels.delta")

    def extend(value: list[str] | None, writes: list[list[str]]) -> list[str]:
        return [*(value or []), *(item for write in writes for item in write)]

    class Delta(TypedDict):
        log: Annotated[list[str], channels.DeltaChannel(extend)]

    builder = StateGraph(Delta)
    for before, name in ((START, "a"), ("a", "b"), ("b", "c")):
        builder.add_node(name, lambda state, name=name: {"log": [name]})
        builder.add_edge(before, name)
    graph = builder.compile(checkpointer=saver)
    await graph.ainvoke({"log": ["in"]}, thread())
    await graph.ainvoke({"log": ["more"]}, thread())
    expected = (await graph.aget_state(thread())).values
    assert expected == {"log": ["in", "a", "b", "c", "more", "a", "b", "c"]}
    await saver.aprune(["t1"])
    assert (await graph.aget_state(thread())).values == expected


async def test_a_copy_never_overwrites_a_thread(saver):
    graph = chain(saver, "a")
    for name in ("t1", "t2"):
        await graph.ainvoke({"log": [name]}, thread(name))
    with pytest.raises(SessionBusy, match="has checkpoints already"):
        await saver.acopy_thread("t1", "t2")
    assert (await graph.aget_state(thread("t2"))).values["log"][0] == "t2"


def test_sync_methods_work_without_an_event_loop(url):
    builder = StateGraph(Counted).add_node("a", lambda state: {"log": ["a"]}).add_edge(START, "a")
    saver = FlashkitSaver(url)
    graph = builder.compile(checkpointer=saver)
    assert graph.invoke({"log": ["in"]}, thread()) == {"log": ["in", "a"]}
    assert [item.metadata["step"] for item in saver.list(thread())] == [1, 0, -1]
    saver.copy_thread("t1", "t2")
    saver.prune(["t2"])
    assert len(list(saver.list(thread("t2")))) == 1
    saver.delete_for_runs(["none"])
    saver.delete_thread("t1")
    assert saver.get_tuple(thread()) is None
    asyncio.run(saver.aclose())


async def test_sync_methods_in_an_event_loop_say_what_to_use_instead(saver):
    with pytest.raises(ConfigurationError, match="ainvoke"):
        saver.get_tuple(thread())


@dataclass
class Plan:
    steps: list[Any]


@dataclass
class Unnamed:
    text: str


async def test_a_class_is_stored_only_when_the_program_names_it(url):
    class State(TypedDict):
        value: Any

    def graph_with(saver):
        return StateGraph(State).add_node("a", lambda s: {}).add_edge(START, "a").compile(checkpointer=saver)

    async with FlashkitSaver(url, types=[Plan]) as saver:
        await graph_with(saver).ainvoke({"value": Plan([HumanMessage("hi", id="1")])}, thread())
        assert (await saver.aget_tuple(thread())).checkpoint["channel_values"]["value"].steps[0].text == "hi"
        with pytest.raises(InputError, match=r"types=\[Unnamed\]"):
            await graph_with(saver).ainvoke({"value": {"deep": [Unnamed("x")]}}, thread("t2"))
    async with FlashkitSaver(url) as stranger:
        with pytest.raises(RecordCorrupt, match="'Plan', which this program does not name"):
            await stranger.aget_tuple(thread())


@pytest.mark.parametrize("kind", ["pickle", "msgpack", "json"])
def test_bytes_that_name_code_are_not_read(kind):
    stored = pickle.dumps(print) if kind == "pickle" else JsonPlusSerializer().dumps_typed(Unnamed("x"))[1]
    with pytest.raises(RecordCorrupt, match="never writes"):
        PlainValues().loads_typed((kind, stored))


def test_langgraphs_own_bytes_rebuild_no_class_here():
    with pytest.raises(RecordCorrupt, match="extension 2"):
        PlainValues().loads_typed(("fk1", JsonPlusSerializer().dumps_typed([Unnamed("x")])[1]))


async def test_a_cipher_hides_all_values(url, server):
    class Mirror:
        def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
            return "mirror", bytes(255 - byte for byte in plaintext)

        def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
            assert ciphername == "mirror"
            return bytes(255 - byte for byte in ciphertext)

    async with FlashkitSaver(url, cipher=Mirror()) as saver:
        await chain(saver, "a").ainvoke({"log": ["secret"]}, thread())
        assert (await saver.aget_tuple(thread())).checkpoint["channel_values"]["log"] == ["secret", "a"]
    values = b"".join(server.client.hvals("fk1:{default:t1}:g"))
    assert b"secret" not in values


async def test_a_value_over_the_limit_is_refused_before_it_is_sent(saver):
    with pytest.raises(PayloadTooLarge, match="channel 'log'"):
        await chain(saver, "a").aupdate_state(thread(), {"log": ["x" * (9 << 20)]}, as_node="a")
    assert await saver.aget_tuple(thread()) is None


async def test_damaged_bytes_are_an_error_of_ours(saver, server):
    await chain(saver, "a").ainvoke({"log": ["x" * 500]}, thread())
    key = "fk1:{default:t1}:g"
    damaged = 0
    for field, value in server.client.hgetall(key).items():
        if field[:1] in b"cbwd" and field[1:2] == b"\0":
            server.client.hset(key, field, value[:-3])
            with pytest.raises(RecordCorrupt):
                _ = [item async for item in saver.alist(thread())]
            server.client.hset(key, field, value)
            damaged += 1
    assert damaged > 10


async def test_what_a_task_wrote_and_what_its_channel_holds_are_stored_once(saver, server):
    class Notes(TypedDict):
        note: str

    builder = StateGraph(Notes).add_node("write", lambda state: {"note": "n" * 50_000}).add_edge(START, "write")
    await builder.compile(checkpointer=saver).ainvoke({"note": ""}, thread())
    assert server.client.memory_usage("fk1:{default:t1}:g", samples=0) < 2 * 50_000
    await saver.aprune(["t1"])
    await saver.adelete_for_runs(["none"])
    assert (await saver.aget_tuple(thread())).checkpoint["channel_values"]["note"] == "n" * 50_000


async def test_it_uses_the_connections_and_namespace_of_a_store_of_sessions(url, server):
    from flashkit.worker.sessions.store import open_store

    store = open_store(url, namespace="shop")
    saver = FlashkitSaver(store)
    await chain(saver, "a").ainvoke({"log": []}, thread())
    await saver.aclose()
    await store.check()  # closing the saver left the store's connections open
    await store.close()
    assert server.client.exists("fk1:{shop:t1}:g")


def test_a_wrong_url_is_refused_at_once():
    with pytest.raises(ConfigurationError, match="not a store"):
        FlashkitSaver("http://localhost")
