"""Networks that break, busy platforms, wrong keys: what is told, and that the same command goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from flashkit.deploy.api import ManagementApi
from flashkit.deploy.credentials import AccountKey, check_address, find_key, require_key
from flashkit.deploy.failures import DeployRefused, DeployStopped, DeployUnreachable, KeyRefused, NotThere
from flashkit.emulator.management.quota import Window
from flashkit.emulator.management.service import ManagementOptions
from flashkit.errors import ConfigurationError, PlatformError, RateLimited
from flashkit.spec import WorkerBounds
from flashkit.transport import RetryPolicy
from tests.deploy.conftest import Lab, MakeLab
from tests.deploy.proxy import once
from tests.deploy.test_deploying import APP, CALLS, MODEL, TOOL
from tests.ports import free_port

NAMES = ["shop-production-agent", "shop-production-model", "shop-production-tool", "shop-production-web"]


@pytest.mark.parametrize("what", ["before", "after"])
@pytest.mark.parametrize(("method", "path"), [
    ("POST", "/serverless"), ("POST", "/network-volumes"), ("POST", "/templates"), ("PATCH", "/serverless"),
    ("GET", "/serverless"), ("GET", "/catalog"), ("GET", "/releases"),
])  # fmt: skip
async def test_a_request_that_gets_lost_is_sent_once_more_and_nothing_is_made_twice(
    lab: Lab, method: str, path: str, what: str
):
    lab.proxy.faults.append(once(method, path, what))
    await lab.deploy(APP, calls=CALLS)
    assert [line.split()[:2] for line in lab.proxy.lost] == [[what, method]]
    assert sorted(await lab.endpoints()) == NAMES
    async with lab.api() as api:
        assert len(await api.list("/network-volumes", "networkVolumes")) == 1
        assert len(await api.list("/templates", "templates")) == 1
    assert (await lab.plan(APP, calls=CALLS))[0].is_empty
    lab.proxy.check_all()


@pytest.mark.parametrize("what", ["before", "after"])
async def test_a_save_by_graphql_that_gets_lost_makes_one_endpoint(lab: Lab, what: str):
    lab.proxy.faults.append(once("POST", "/graphql", what))
    await lab.deploy([replace(TOOL, cpu="cpu3c-1-2")])
    assert list(await lab.endpoints()) == ["shop-production-tool"]


@pytest.mark.parametrize("what", ["before", "after"])
async def test_a_secret_whose_storing_gets_lost_is_stored_once(lab: Lab, what: str):
    lab.proxy.faults.append(once("POST", "/graphql", what))
    outcome = await lab.deploy([TOOL], secrets={"hf": "the-value-of-it"}, asks_secrets=False)
    assert [step.kind for step in outcome.steps] == ["secret", "endpoint"]


async def test_a_deletion_that_gets_lost_is_a_deletion(lab: Lab):
    await lab.deploy([TOOL])
    lab.proxy.faults.append(once("DELETE", "/serverless", "after"))
    await lab.undeploy()
    assert await lab.endpoints() == {}


async def test_before_something_is_made_again_one_looks_for_it_twice(lab: Lab):
    lab.proxy.faults.append(once("POST", "/serverless", "before"))
    await lab.deploy([TOOL])
    assert lab.waits == [1.0, 3.0]


async def test_a_network_that_stays_broken_stops_and_says_what_was_made_and_what_is_left(lab: Lab):
    lab.api_options = {"retry": RetryPolicy(tries=2)}
    lab.proxy.faults.append(
        lambda method, path: "before" if method == "POST" and "/serverless" in path and lab_has(lab, 1) else None
    )
    with pytest.raises(DeployStopped) as caught:
        await lab.deploy(APP, calls=CALLS)
    details = caught.value.report.details
    assert [line.partition(" (")[0] for line in details["done"]] == ["created volume weights", "created endpoint tool"]
    assert details["failed"] == "create endpoint model"
    assert details["left"] == ["create endpoint agent", "create endpoint web"]
    assert caught.value.report.message.startswith("could not create endpoint model: the connection to ")
    assert "created endpoint tool" in str(caught.value.report.hint)
    assert "goes on from here" in str(caught.value.report.hint)

    lab.proxy.faults.clear()
    lab.proxy.forget()
    outcome = await lab.deploy(APP, calls=CALLS)
    assert [step.name for step in outcome.steps] == ["model", "agent", "web", "agent"]
    assert sorted(await lab.endpoints()) == NAMES
    assert (await lab.plan(APP, calls=CALLS))[0].is_empty


def lab_has(lab: Lab, count: int) -> bool:
    made = [item for item in lab.proxy.exchanges if (item.method, item.path) == ("POST", "/v2/serverless")]
    return len(made) >= count


@pytest.mark.parametrize("requests", range(1, 24, 2))
async def test_wherever_a_deployment_stops_the_same_command_finishes_it(lab: Lab, requests: int):
    lab.api_options = {"retry": RetryPolicy(tries=1)}
    lab.proxy.faults.append(lambda method, path: "before" if len(lab.proxy.exchanges) >= requests else None)
    with contextlib.suppress(PlatformError):
        await lab.deploy(APP, calls=CALLS)
    lab.proxy.faults.clear()
    await lab.deploy(APP, calls=CALLS)
    assert sorted(await lab.endpoints()) == NAMES
    assert (await lab.plan(APP, calls=CALLS))[0].is_empty


async def test_a_record_that_cannot_be_written_is_told_and_the_endpoints_are_there(lab: Lab):
    lab.api_options = {"retry": RetryPolicy(tries=1)}
    lab.proxy.faults.append(once("POST", "/templates", "before", times=9))
    outcome = await lab.deploy([TOOL])
    assert outcome.deployment is None
    assert outcome.warning.startswith("this deployment could not be written down")
    assert list(await lab.endpoints()) == ["shop-production-tool"]


async def test_a_refusal_half_way_names_the_rule(make_lab: MakeLab):
    """The plan was made for one state of the platform; meanwhile somebody deleted the volume."""
    lab = await make_lab()
    await lab.deploy([MODEL])
    plan, actual = await lab.plan([replace(MODEL, name="other")])
    await lab.undeploy()
    async with lab.api() as api:
        for volume in await api.list("/network-volumes", "networkVolumes"):
            await api.remove(f"/network-volumes/{volume['id']}")
        from flashkit.deploy.applying import apply_plan

        with pytest.raises(DeployStopped, match="network volume not found"):
            await apply_plan(api, plan, actual)


async def test_an_endpoint_that_vanished_meanwhile_is_told(lab: Lab):
    await lab.deploy([TOOL])
    plan, actual = await lab.plan([replace(TOOL, workers=WorkerBounds(0, 9))])
    await lab.undeploy()
    from flashkit.deploy.applying import apply_plan

    async with lab.api() as api:
        with pytest.raises(DeployStopped, match="404") as caught:
            await apply_plan(api, plan, actual)
    assert "somebody may have deleted it" in str(caught.value.report.hint)


# ---------------------------------------------------------------------- rate limits


async def test_rate_limits_are_waited_for(make_lab: MakeLab):
    lab = await make_lab(ManagementOptions(windows=(Window("minute", 14, 2),)))

    async with lab.api() as api:
        real = ManagementApi(api.root, None, say=lab.said.append)
    async with real:
        for _ in range(15):
            await real.get("/catalog/cpus")
    assert real.traffic.waited_seconds >= 1
    assert lab.said[0].startswith("rate limit: waiting ")
    assert '"minute";r=0' in lab.said[0]


async def test_patience_with_rate_limits_ends(make_lab: MakeLab):
    lab = await make_lab(ManagementOptions(windows=(Window("hour", 2, 3600),)))
    lab.api_options = {"patience_seconds": 60}
    async with lab.api() as api:
        await api.get("/catalog/cpus")
        await api.get("/catalog/cpus")
        with pytest.raises(RateLimited) as caught:
            await api.get("/catalog/cpus")
    assert caught.value.report.message.startswith("the platform takes no more requests for 36")
    assert "--patience" in str(caught.value.report.hint)
    assert lab.waits == []


# ---------------------------------------------------------------------- other answers


@contextlib.asynccontextmanager
async def answering(status: int, body: str, **headers: str) -> AsyncIterator[str]:
    """A server that answers everything alike."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status, text=body, content_type="application/problem+json", headers=headers)

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def nothing(seconds: float) -> None:
    await asyncio.sleep(0)


def api_at(root: str, key: AccountKey | None = None, **options: Any) -> ManagementApi:
    return ManagementApi(root, key, sleep=nothing, **options)


async def test_a_wrong_key_is_told_with_where_it_was_found_and_not_shown():
    async with (
        answering(401, '{"title":"Unauthorized","status":401,"detail":"no rpa_secret here"}') as root,
        api_at(root, AccountKey("rpa_secret", "~/.runpod/config.toml")) as api,
    ):
        with pytest.raises(KeyRefused) as caught:
            await api.get("/serverless")
    assert "~/.runpod/config.toml" in caught.value.report.message
    assert "RUNPOD_API_KEY" in str(caught.value.report.hint)
    assert "rpa_secret" not in str(caught.value.report)
    assert "rpa_secret" not in repr(AccountKey("rpa_secret", "somewhere"))


async def test_a_key_that_may_not_do_it_is_told():
    async with (
        answering(403, '{"detail":"access denied to rpa_secret"}') as root,
        api_at(root, AccountKey("rpa_secret", "RUNPOD_API_KEY")) as api,
    ):
        with pytest.raises(KeyRefused, match="may not do this") as caught:
            await api.change("/serverless/x", {})
    assert "access denied to •••" in caught.value.report.message


async def test_a_refusal_has_the_platforms_words_and_errors():
    async with (
        answering(422, '{"title":"x","status":422,"detail":"no","errors":["$.a: bad", "$.b: bad"]}') as root,
        api_at(root) as api,
    ):
        with pytest.raises(DeployRefused) as caught:
            await api.create("/serverless", {})
    assert caught.value.report.message == "POST /v2/serverless was answered 422: no: $.a: bad; $.b: bad"
    assert caught.value.report.details["errors"] == ["$.a: bad", "$.b: bad"]


async def test_something_else_at_the_address_is_told():
    async with answering(404, "<html>nothing</html>") as root, api_at(root) as api:
        with pytest.raises(NotThere, match="404"):
            await api.list("/serverless", "endpoints")
    async with answering(200, "[1]") as root, api_at(root) as api:
        with pytest.raises(PlatformError, match="not a JSON object"):
            await api.get("/serverless")
    async with answering(200, "{}") as root, api_at(root) as api:
        with pytest.raises(PlatformError, match="has no list of endpoints"):
            await api.list("/serverless", "endpoints")


async def test_a_platform_that_is_down_is_told_after_some_tries():
    async with answering(503, "upstream is gone") as root:
        said: list[str] = []
        async with api_at(root, say=said.append, retry=RetryPolicy(tries=3)) as api:
            with pytest.raises(DeployRefused, match="503"):
                await api.get("/serverless")
        assert len(said) == 2


async def test_nobody_at_the_address_is_told():
    async with api_at(f"http://127.0.0.1:{free_port()}", retry=RetryPolicy(tries=2)) as api:
        with pytest.raises(DeployUnreachable, match="cannot be reached"):
            await api.create("/serverless", {})


async def test_an_address_that_is_none_is_told():
    with pytest.raises(ConfigurationError, match="is no address"):
        api_at("http://[nonsense")
    async with api_at("http://no host", retry=RetryPolicy(tries=9)) as api:
        with pytest.raises(DeployUnreachable, match="cannot be reached"):
            await api.get("/serverless")


async def test_graphql_errors_are_told_without_what_is_secret():
    async with answering(200, '{"errors":[{"message":"bad value hunter2"}],"data":null}') as root, api_at(root) as api:
        api.confidential.add("hunter2")
        with pytest.raises(DeployRefused, match="GraphQL refused") as caught:
            await api.mutate("mutation { x }", {}, is_repeatable=False)
    assert "hunter2" not in str(caught.value.report)


async def test_lists_are_read_page_by_page():
    pages = [
        {"things": [{"n": 1}], "pagination": {"hasNextPage": True, "nextCursor": "c1"}},
        {"things": [{"n": 2}], "pagination": {"hasNextPage": False}},
    ]
    cursors: list[str | None] = []

    async def answer(request: web.Request) -> web.Response:
        cursors.append(request.query.get("cursor"))
        return web.json_response(pages[len(cursors) - 1])

    application = web.Application()
    application.router.add_get("/v2/things", answer)
    runner = web.AppRunner(application, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with api_at(f"http://127.0.0.1:{runner.addresses[0][1]}") as api:
        assert await api.list("/things", "things") == [{"n": 1}, {"n": 2}]
    assert cursors == [None, "c1"]
    await runner.cleanup()


async def test_an_api_outside_its_block_is_a_mistake():
    with pytest.raises(RuntimeError, match="outside its block"):
        await api_at("http://127.0.0.1:1").get("/serverless")


# ---------------------------------------------------------------------- keys


def test_the_environment_goes_before_the_file(tmp_path: Path):
    file = tmp_path / "config.toml"
    file.write_text('[default]\napi_key = "rpa_file"\n')
    found = find_key("rpa_env", file)
    assert found is not None
    assert (found.value, found.source) == ("rpa_env", "RUNPOD_API_KEY")
    found = find_key(None, file)
    assert found is not None
    assert (found.value, found.source) == ("rpa_file", str(file))


@pytest.mark.parametrize("text", ["", "[default]\n", "[default]\napi_key = 3\n", 'default = "x"\n', "[other]\n"])
def test_a_file_without_a_key_has_none(tmp_path: Path, text: str):
    (tmp_path / "config.toml").write_text(text)
    assert find_key(None, tmp_path / "config.toml") is None


def test_a_file_that_cannot_be_read_does_not_show_what_is_in_it(tmp_path: Path):
    file = tmp_path / "config.toml"
    file.write_text('[default]\napi_key = "rpa_half\n')
    with pytest.raises(ConfigurationError, match="cannot be read as TOML") as caught:
        find_key(None, file)
    assert "rpa_half" not in str(caught.value.report)
    assert caught.value.__cause__ is None


def test_no_key_is_told_with_three_ways_out(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="there is no Runpod API key") as caught:
        require_key(None, tmp_path / "config.toml")
    for way in ("RUNPOD_API_KEY", "config.toml", "--plan --target local"):
        assert way in str(caught.value.report.hint)


def test_a_key_goes_over_no_open_connection():
    key = AccountKey("rpa_x", "RUNPOD_API_KEY")
    check_address("https://api.runpod.io", key)
    check_address("http://127.0.0.1:8484/_/management", key)
    check_address("http://runpod.example", None)
    with pytest.raises(ConfigurationError, match="not encrypted"):
        check_address("http://runpod.example", key)
