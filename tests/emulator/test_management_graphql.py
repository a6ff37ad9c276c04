"""The GraphQL part of the local management API: its documents, its rules, and the vendor's unmodified SDKs on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from flashkit.emulator.management.graphql import Field, GraphqlError, parse, select
from flashkit.emulator.management.service import PREFIX
from flashkit.emulator.server import Emulator

ROOT = Path(__file__).parents[2]
NEW_SDK = ROOT / ".venv-sdks" / "2.0.0rc2" / "bin" / "python"
SAVE = "mutation save($input: EndpointInput!) { saveEndpoint(input: $input) { id name gpuIds instanceIds } }"
ENDPOINT: dict[str, Any] = {
    "name": "tool",
    "instanceIds": ["cpu3c-1-2"],
    "workersMax": 2,
    "template": {"name": "tool", "imageName": "i:1", "env": [{"key": "A", "value": "1"}]},
}


# ---------------------------------------------------------------------- documents


def test_a_document_is_read_with_its_variables():
    operation = parse(
        'query all($id: ID!) { one: thing(id: $id, list: [1, -2.5, "x\\n", true, null, KIND], '
        "in: {a: {b: 1}}) { id } }",
        {"id": "abc"},
    )
    arguments = {"id": "abc", "list": [1, -2.5, "x\n", True, None, "KIND"], "in": {"a": {"b": 1}}}
    assert operation.fields == (Field("thing", "one", arguments, (Field("id", "id", {}, ()),)),)


def test_a_document_without_a_kind_is_a_query():
    assert parse("# comment\n{ myself { id } }", {}).kind == "query"


@pytest.mark.parametrize(("document", "words"), [
    ("", "ends too early"), ("query {", "ends too early"), ("{ a } { b }", "after the operation"),
    ("{ a(b: $c) }", "variable $c is not given"), ("{ a(b 1) }", "expected ':'"), ("{ 1 }", "expected a name"),
    ("{ a ¬ }", "unexpected character"), ("{" + "a {" * 30, "nested too deeply"),
    ("{ a(b: " + "[" * 30, "nested too deeply"), ('{ a(b: "\\q") }', "is not a value"),
])  # fmt: skip
def test_a_document_that_cannot_be_read_says_why(document: str, words: str):
    with pytest.raises(GraphqlError, match=words.replace("$", r"\$").replace("(", r"\(")):
        parse(document, {})


def test_an_answer_is_cut_down_to_what_was_asked_for():
    selection = parse("{ things { n: name parts { id } } }", {}).fields[0].selection
    value = [{"name": "x", "secret": 1, "parts": [{"id": 1, "size": 2}]}, {"name": "y", "parts": None}]
    assert select(value, selection) == [{"n": "x", "parts": [{"id": 1}]}, {"n": "y", "parts": None}]
    with pytest.raises(GraphqlError, match="cannot query field 'name'"):
        select({"id": 1}, selection)


# ---------------------------------------------------------------------- operations


class Graphql:
    def __init__(self, emulator: Emulator, session: aiohttp.ClientSession) -> None:
        self.root = emulator.url + PREFIX
        self.session = session

    async def ask(self, query: str, **variables: Any) -> Any:
        body = {"query": query, "variables": variables}
        async with self.session.post(f"{self.root}/graphql", json=body) as response:
            assert response.status == 200
            return await response.json()

    async def data(self, query: str, **variables: Any) -> Any:
        answer = await self.ask(query, **variables)
        assert "errors" not in answer, answer
        return answer["data"]

    async def refusal(self, query: str, **variables: Any) -> str:
        return (await self.ask(query, **variables))["errors"][0]["message"]

    async def save(self, **given: Any) -> Any:
        return (await self.data(SAVE, input={**ENDPOINT, **given}))["saveEndpoint"]

    async def rest(self, endpoint_id: str) -> Any:
        async with self.session.get(f"{self.root}/v2/serverless/{endpoint_id}") as response:
            return await response.json()


@pytest.fixture
async def graphql(tmp_path: Path) -> AsyncIterator[Graphql]:
    async with Emulator([], state_dir=tmp_path) as emulator, aiohttp.ClientSession() as session:
        yield Graphql(emulator, session)


async def test_one_vcpu_is_made_by_graphql_alone_and_rest_does_not_show_it(graphql: Graphql):
    made = await graphql.save()
    assert made["instanceIds"] == ["cpu3c-1-2"]
    shown = await graphql.rest(made["id"])
    assert (shown["image"], shown["env"], shown["workers"]["max"]) == ("i:1", {"A": "1"}, 2)
    assert "cpu" not in shown
    assert "gpu" not in shown


async def test_gpus_are_pools_and_exclusions_in_one_text(graphql: Graphql):
    made = await graphql.save(instanceIds=[], gpuIds="AMPERE_24,-NVIDIA L4", gpuCount=2, modelReferences=["a/b:main"])
    assert made["gpuIds"] == "AMPERE_24,-NVIDIA L4"
    shown = await graphql.rest(made["id"])
    assert shown["gpu"]["excludedTypes"] == ["NVIDIA L4"]
    query = "{ myself { endpoints { id modelReferences gpuCount version template { imageName } } } }"
    listed = (await graphql.data(query))["myself"]["endpoints"]
    facts = {"modelReferences": ["a/b:main"], "gpuCount": 2, "version": 1, "template": {"imageName": "i:1"}}
    assert listed == [{"id": made["id"], **facts}]


async def test_a_save_replaces_everything_that_it_leaves_out(graphql: Graphql):
    made = await graphql.save(idleTimeout=99, locations="US-KS-2", flashBootType="FLASHBOOT")
    await graphql.save(id=made["id"], workersMax=5)
    shown = await graphql.rest(made["id"])
    assert (shown["workers"], shown["dataCenterIds"], shown["flashboot"]) == (
        {"min": 0, "max": 5, "idleTimeout": 10}, [], "OFF",
    )  # fmt: skip


async def test_a_save_without_a_template_keeps_the_container(graphql: Graphql):
    made = await graphql.save()
    query = "mutation($input: EndpointInput!) { saveEndpoint(input: $input) { env { key value } } }"
    kept = await graphql.data(query, input={"id": made["id"], "name": "tool", "instanceIds": ["cpu3c-2-4"]})
    assert kept["saveEndpoint"]["env"] == [{"key": "A", "value": "1"}]


async def test_an_endpoint_with_workers_is_not_deleted(graphql: Graphql):
    made = await graphql.save()
    delete = "mutation($id: String!) { deleteEndpoint(id: $id) }"
    assert "workersMin and workersMax are 0" in await graphql.refusal(delete, id=made["id"])
    await graphql.save(id=made["id"], workersMax=0)
    assert (await graphql.data(delete, id=made["id"]))["deleteEndpoint"] is None
    assert (await graphql.rest(made["id"]))["status"] == 404


async def test_secrets_have_names_that_are_shown_and_values_that_are_not(graphql: Graphql, tmp_path: Path):
    create = "mutation($input: SecretCreateInput!) { secretCreate(input: $input) { id name } }"
    made = await graphql.data(create, input={"name": "hf", "value": "hunter2-hunter2", "description": "of the hub"})
    listed = await graphql.data("{ myself { secrets { id name description } } }")
    assert listed["myself"]["secrets"] == [{**made["secretCreate"], "description": "of the hub"}]
    assert "hunter2" not in (tmp_path / "management.json").read_text()
    assert "exists already" in await graphql.refusal(create, input={"name": "hf", "value": "x"})
    assert "needs a value" in await graphql.refusal(create, input={"name": "hf token", "value": "x"})
    delete = "mutation($id: ID!) { secretDelete(id: $id) }"
    assert (await graphql.data(delete, id=made["secretCreate"]["id"]))["secretDelete"] is True
    assert "not found" in await graphql.refusal(delete, id="nope")


@pytest.mark.parametrize(("given", "words"), [
    ({"workerMax": 3}, "field 'workerMax' is not defined"), ({"name": ""}, "name is required"),
    ({"instanceIds": []}, "gpuIds or instanceIds is required"), ({"instanceIds": ["big"]}, "which is no instance"),
    ({"template": None}, "template or templateId is required"), ({"templateId": "x", "template": None}, "not found"),
    ({"networkVolumeIds": [{"networkVolumeId": "x"}]}, "network volume not found"), ({"id": "x"}, "not found"),
    ({"instanceIds": ["cpu9z-2-4"]}, "not a flavor"),
])  # fmt: skip
async def test_a_save_is_refused_with(graphql: Graphql, given: dict[str, Any], words: str):
    assert words in await graphql.refusal(SAVE, input={**ENDPOINT, **given})


async def test_unknown_operations_are_refused(graphql: Graphql):
    assert "cannot query field 'fly'" in await graphql.refusal("mutation { fly { id } }")
    assert "cannot query field 'wings'" in await graphql.refusal("{ myself { wings } }")
    assert "argument 'input' is required" in await graphql.refusal("mutation { saveEndpoint { id } }")
    async with graphql.session.post(f"{graphql.root}/graphql", json={"no": 1}) as response:
        assert response.status == 400


# ---------------------------------------------------------------------- the vendor's SDKs


OLD_CLIENT = """
import json, os, runpod
runpod.api_key = os.environ["RUNPOD_API_KEY"]
template = runpod.create_template("base", "registry.example/app:1", env={"A": "1"}, is_serverless=True)
made = runpod.create_endpoint("from-sdk", template["id"], gpu_ids="AMPERE_24,ADA_24", workers_max=2, flashboot=True)
other = runpod.create_template("other", "registry.example/app:2", is_serverless=True)
runpod.update_endpoint_template(made["id"], other["id"])
print(json.dumps([template, made, runpod.get_endpoints()]))
"""
NEW_CLIENT = """
import asyncio, json, runpod
from runpod.apps.api import AppsApiClient
template = runpod.create_template("base", "registry.example/app:1", env={"A": "1"}, is_serverless=True)
made = runpod.create_endpoint("from-sdk", template["id"], gpu_ids="AMPERE_24,-NVIDIA L4", workers_max=2)

async def more():
    client = AppsApiClient()
    volume = await client.create_network_volume("weights", 20, "US-KS-2")
    cached = await client.save_endpoint({
        "name": "cached", "gpuIds": "AMPERE_24", "workersMax": 1, "scalerType": "QUEUE_DELAY", "scalerValue": 4,
        "modelReferences": ["org/name"], "template": {"imageName": "i:1", "env": []},
        "networkVolumeIds": [{"networkVolumeId": volume["id"]}],
    })
    small = await client.save_endpoint({
        "name": "small", "instanceIds": ["cpu3c-1-2"], "workersMax": 1, "scalerType": "QUEUE_DELAY", "scalerValue": 4,
        "template": {"imageName": "i:1", "env": []},
    })
    await client.create_secret("hf", "value-of-it")
    stock = await client.gpu_stock_status("NVIDIA L4", "US-KS-2")
    volumes = await client.list_network_volumes()
    await client.delete_endpoint(small["id"])
    return [cached["id"], stock, [volume["name"] for volume in volumes], await client.list_secrets()]

print(json.dumps([made, asyncio.run(more()), runpod.get_endpoints(), runpod.get_gpu("NVIDIA L4")]))
"""


def run_client(python: str | Path, program: str, root: str, home: Path) -> Any:
    env = {
        "PATH": os.environ["PATH"], "HOME": str(home), "RUNPOD_API_KEY": "rpa_local", "RUNPOD_API_BASE_URL": root,
    }  # fmt: skip
    done = subprocess.run(
        [str(python), "-W", "ignore", "-c", program], env=env, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
async def free_root(tmp_path: Path) -> AsyncIterator[str]:
    async with Emulator([], state_dir=tmp_path) as emulator:
        yield emulator.url + PREFIX


async def test_the_unmodified_sdk_1_12_makes_endpoints_by_graphql(free_root: str, tmp_path: Path):
    import asyncio

    template, made, endpoints = await asyncio.to_thread(run_client, sys.executable, OLD_CLIENT, free_root, tmp_path)
    assert (template["imageName"], template["isServerless"]) == ("registry.example/app:1", True)
    assert (made["gpuIds"], made["workersMax"], made["flashBootType"]) == ("AMPERE_24,ADA_24", 2, "FLASHBOOT")
    assert [item["name"] for item in endpoints] == ["from-sdk"]
    assert endpoints[0]["version"] == 2


async def test_the_unmodified_sdk_2_0_makes_endpoints_by_rest_and_what_rest_cannot_by_graphql(
    free_root: str, tmp_path: Path
):
    import asyncio

    if not NEW_SDK.exists():
        if os.environ.get("FLASHKIT_REQUIRE_EVERYTHING"):
            pytest.fail("runpod 2.0.0rc2 is not installed: scripts/setup --sdks")
        pytest.skip("runpod 2.0.0rc2 is not installed: scripts/setup --sdks")
    made, (cached, stock, volumes, secrets), endpoints, gpu = await asyncio.to_thread(
        run_client, NEW_SDK, NEW_CLIENT, free_root, tmp_path
    )
    assert made["gpu"]["excludedTypes"] == ["NVIDIA L4"]
    assert (stock, volumes, [secret["name"] for secret in secrets]) == ("HIGH", ["weights"], ["hf"])
    assert {item["id"] for item in endpoints} == {made["id"], cached}
    assert gpu["pool"] == "AMPERE_24"
