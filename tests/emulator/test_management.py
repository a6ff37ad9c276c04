"""The local management API, REST v2: the vendor's documented rules, each exchange checked with the vendor's schema."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from flashkit.emulator.management.quota import Quota, Window
from flashkit.emulator.management.service import PREFIX, ManagementOptions
from flashkit.emulator.server import Emulator
from tests.deploy.openapi import Exchange, check

QUEUE: dict[str, Any] = {
    "name": "notes",
    "image": "registry.example/app:1",
    "type": "QUEUE",
    "cpu": [{"id": "cpu3c", "vcpuCount": 2}],
    "scaling": {"type": "QUEUE_DELAY", "queueDelay": 4},
}
GPU: dict[str, Any] = {**{key: value for key, value in QUEUE.items() if key != "cpu"}, "gpu": {"pools": ["AMPERE_24"]}}
BALANCED: dict[str, Any] = {**QUEUE, "type": "LOAD_BALANCER", "scaling": {"type": "REQUEST_COUNT", "requestCount": 4}}


class Account:
    """A management API, every exchange with which is checked."""

    def __init__(self, url: str, session: aiohttp.ClientSession, key: str | None = None) -> None:
        self.url = url + PREFIX
        self.session = session
        self.key = key

    async def send(self, method: str, path: str, body: Any = None, **headers: str) -> Exchange:
        route, _, query = path.partition("?")
        if self.key is not None:
            headers = {"Authorization": f"Bearer {self.key}", **headers}
        async with self.session.request(method, f"{self.url}/v2{path}", json=body, headers=headers) as answer:
            text = await answer.read()
            pairs = dict(pair.split("=") for pair in query.split("&") if pair)
            value = json.loads(text) if text else None
            exchange = Exchange(method, f"/v2{route}", pairs, body, answer.status, answer.headers, value)
        if answer.status not in (404, 405, 413) and (body is None or isinstance(body, dict)):
            check(exchange)
        return exchange

    async def create(self, body: dict[str, Any]) -> dict[str, Any]:
        answer = await self.send("POST", "/serverless", body)
        assert answer.status == 201, answer.received
        return answer.received

    async def change(self, endpoint: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
        answer = await self.send("PATCH", f"/serverless/{endpoint['id']}", body)
        assert answer.status == 200, answer.received
        return answer.received

    async def refusal(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        answer = await self.send(method, path, body)
        return answer.status, "; ".join([answer.received["detail"], *answer.received.get("errors", ())])


@pytest.fixture(scope="module")
async def account(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Account]:
    folder = tmp_path_factory.mktemp("account")
    async with Emulator([], state_dir=folder) as emulator, aiohttp.ClientSession() as session:
        yield Account(emulator.url, session)


async def test_an_endpoint_has_the_documented_defaults(account: Account):
    made = await account.create(QUEUE)
    assert made["workers"] == {"min": 0, "max": 3, "idleTimeout": 10}
    assert (made["timeout"], made["flashboot"], made["env"], made["dataCenterIds"]) == (300_000, "OFF", {}, [])
    assert made["cpu"] == [{"id": "cpu3c", "vcpuCount": 2, "memory": 4}]
    assert "gpu" not in made
    assert made["requestUrls"]["runSync"].endswith(f"/v2/{made['id']}/runsync")
    assert (await account.send("GET", f"/serverless/{made['id']}")).received == made
    assert made in (await account.send("GET", "/serverless")).received["endpoints"]


async def test_a_gpu_endpoint_shows_no_cpu_and_no_empty_exclusions(account: Account):
    made = await account.create({**GPU, "gpu": {"pools": ["ADA_24"], "minCudaVersion": "12.4"}})
    assert made["gpu"] == {"pools": ["ADA_24"], "count": 1, "allowedCudaVersions": [], "minCudaVersion": "12.4"}
    assert "cpu" not in made


async def test_a_load_balanced_endpoint_gets_its_ports_from_the_platform_once(account: Account):
    made = await account.create({**BALANCED, "env": {"MINE": "1"}})
    assert made["env"] == {"PORT": "80", "PORT_HEALTH": "80", "MINE": "1"}
    assert made["requestUrls"]["health"].endswith(f"/lb/{made['id']}/ping")
    changed = await account.change(made, {"env": {"MINE": "2"}})
    assert changed["env"] == {"MINE": "2"}, "a PATCH replaces the environment, what the platform put there included"


REFUSALS: list[tuple[str, int, dict[str, Any], str]] = [
    ("an unknown field", 422, {**QUEUE, "minWorkers": 1}, "additional properties 'minWorkers' not allowed"),
    ("an unknown field inside", 422, {**GPU, "gpu": {"pools": ["ADA_24"], "kind": "x"}}, "$.gpu: additional"),
    ("no image and no template", 422, {key: QUEUE[key] for key in QUEUE if key != "image"}, "missing property 'image'"),
    ("no scaling", 422, {key: QUEUE[key] for key in QUEUE if key != "scaling"}, "missing property 'scaling'"),
    ("a name that is empty", 422, {**QUEUE, "name": ""}, "$.name: does not satisfy minLength 1"),
    ("a name that is too long", 400, {**QUEUE, "name": "n" * 192}, "more than 191 characters"),
    ("neither GPU nor CPU", 400, {key: QUEUE[key] for key in QUEUE if key != "cpu"}, "exactly one of gpu or cpu"),
    ("GPU and CPU", 400, {**QUEUE, "gpu": {"pools": ["ADA_24"]}}, "exactly one of gpu or cpu"),
    ("one vCPU", 422, {**QUEUE, "cpu": [{"id": "cpu3c", "vcpuCount": 1}]}, "minimum 2"),
    ("three vCPUs", 400, {**QUEUE, "cpu": [{"id": "cpu3c", "vcpuCount": 3}]}, "must be one of 1, 2, 4, 8"),
    ("an unknown flavour", 400, {**QUEUE, "cpu": [{"id": "cpu9z", "vcpuCount": 2}]}, "not a flavor"),
    ("an unknown pool", 400, {**GPU, "gpu": {"pools": ["ADA_25"]}}, "unknown pools: ADA_25"),
    ("an exclusion of another pool", 400, {**GPU, "gpu": {"pools": ["ADA_24"], "excludedTypes": ["NVIDIA L4"]}},
     "in none of the pools: NVIDIA L4"),
    ("a selection that leaves none", 400,
     {**GPU, "gpu": {"pools": ["ADA_24"], "excludedTypes": ["NVIDIA GeForce RTX 4090"]}}, "leaves no type"),
    ("two CUDA limits", 400, {**GPU, "gpu": {"pools": ["ADA_24"], "minCudaVersion": "12.1",
                                             "allowedCudaVersions": ["12.8"]}}, "exclude each other"),
    ("a load balancer that scales on delay", 422, {**BALANCED, "scaling": QUEUE["scaling"]}, "$.scaling"),
    ("an idle timeout that does nothing", 400,
     {**QUEUE, "scaling": BALANCED["scaling"], "workers": {"idleTimeout": 5}}, "does not apply"),
    ("a delay that is too short", 422, {**QUEUE, "scaling": {"type": "QUEUE_DELAY", "queueDelay": 0.1}}, "$.scaling"),
    ("min above max", 400, {**QUEUE, "workers": {"min": 4, "max": 3}}, "above workers.max"),
    ("workers as text", 422, {**QUEUE, "workers": {"max": "3"}}, "$.workers.max: does not satisfy type"),
    ("an idle timeout of two hours", 422, {**QUEUE, "workers": {"idleTimeout": 7200}}, "maximum 3600"),
    ("an unknown data centre", 400, {**QUEUE, "dataCenterIds": ["MARS-1"]}, "unknown data centers: MARS-1"),
    ("an unknown volume", 404, {**QUEUE, "networkVolumes": ["nope"]}, "network volume not found"),
    ("an unknown registry", 400, {**QUEUE, "registry": "nope"}, "not one of the account's credentials"),
    ("an unknown template", 404, {**QUEUE, "templateId": "nope"}, "template not found"),
    ("an environment that is no text", 422, {**QUEUE, "env": {"A": 1}}, "$.env.A: does not satisfy type"),
    ("a negative timeout", 400, {**QUEUE, "timeout": -1}, "must not be negative"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "words"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS])
async def test_an_endpoint_is_not_made_with(account: Account, status: int, body: dict[str, Any], words: str):
    before = (await account.send("GET", "/serverless")).received
    found, said = await account.refusal("POST", "/serverless", body)
    assert found == status, said
    assert words in said
    assert (await account.send("GET", "/serverless")).received == before


async def test_problems_never_repeat_values(account: Account):
    _, said = await account.refusal("POST", "/serverless", {**QUEUE, "env": {"TOKEN": ["hunter2-hunter2"]}})
    assert "hunter2" not in said


async def test_a_patch_changes_what_it_names_and_nothing_else(account: Account):
    made = await account.create({**GPU, "env": {"A": "1"}, "workers": {"min": 1, "max": 2}})
    changed = await account.change(made, {"workers": {"max": 5}, "timeout": 60_000})
    assert changed == {**made, "workers": {**made["workers"], "max": 5}, "timeout": 60_000}


async def test_naming_pools_clears_exclusions_and_other_gpu_settings_stay(account: Account):
    made = await account.create({**GPU, "gpu": {"pools": ["AMPERE_24"], "excludedTypes": ["NVIDIA L4"], "count": 2}})
    kept = await account.change(made, {"gpu": {"minCudaVersion": "12.1"}})
    assert kept["gpu"]["excludedTypes"] == ["NVIDIA L4"]
    changed = await account.change(made, {"gpu": {"pools": ["AMPERE_24", "ADA_24"], "minCudaVersion": ""}})
    assert "excludedTypes" not in changed["gpu"]
    assert (changed["gpu"]["count"], changed["gpu"]["minCudaVersion"]) == (2, None)
    status, said = await account.refusal(
        "PATCH", f"/serverless/{made['id']}", {"gpu": {"excludedTypes": ["NVIDIA L4"]}}
    )
    assert (status, "needs 'pools'" in said) == (422, True)


async def test_compute_family_and_type_stay(account: Account):
    made = await account.create(QUEUE)
    status, said = await account.refusal("PATCH", f"/serverless/{made['id']}", {"gpu": {"pools": ["ADA_24"]}})
    assert (status, said) == (400, "the compute family of an endpoint cannot be changed")
    status, said = await account.refusal("PATCH", f"/serverless/{made['id']}", {"type": "LOAD_BALANCER"})
    assert (status, "'type' not allowed" in said) == (422, True)


async def test_scaling_on_requests_has_no_idle_timeout_and_gets_it_back(account: Account):
    made = await account.create({**QUEUE, "workers": {"idleTimeout": 77}})
    counted = await account.change(made, {"scaling": BALANCED["scaling"]})
    assert counted["workers"] == {"min": 0, "max": 3}
    delayed = await account.change(made, {"scaling": QUEUE["scaling"]})
    assert delayed["workers"]["idleTimeout"] == 77


async def test_each_change_makes_a_release_and_a_patch_that_changes_nothing_makes_none(account: Account):
    made = await account.create(QUEUE)
    await account.change(made, {"workers": {"max": 5}})
    await account.change(made, {"workers": {"max": 5}})
    await account.change(made, {"image": "registry.example/app:2", "env": {"A": "b"}})
    answer = (await account.send("GET", f"/serverless/{made['id']}/releases")).received
    assert answer["endpointVersion"] == 3
    assert [release["version"] for release in answer["releases"]] == [3, 2, 1]
    assert answer["releases"][1]["diff"] == [{"field": "workersMax", "old": 3, "new": 5}]
    assert [item["field"] for item in answer["releases"][0]["diff"]] == ["template.imageName", "template.env"]
    assert answer["releases"][2]["diff"] == []


async def test_a_deleted_endpoint_is_gone(account: Account):
    made = await account.create(QUEUE)
    assert (await account.send("DELETE", f"/serverless/{made['id']}")).status == 204
    for path in ("", "/workers", "/releases", "/workers/w1/logs"):
        assert (await account.send("GET", f"/serverless/{made['id']}{path}")).status == 404
    assert (await account.send("DELETE", f"/serverless/{made['id']}")).status == 404


async def test_an_endpoint_without_a_local_one_has_no_workers(account: Account):
    made = await account.create(QUEUE)
    answer = (await account.send("GET", f"/serverless/{made['id']}/workers")).received
    assert (answer["workers"], answer["summary"]["total"], answer["endpointVersion"]) == ([], 0, 1)
    status, said = await account.refusal("GET", f"/serverless/{made['id']}/workers/nobody/logs")
    assert (status, said) == (404, "worker not found")


async def test_templates_give_endpoints_their_container_once(account: Account):
    body = {"name": "base", "image": "registry.example/base:1", "serverless": True, "env": {"A": "1", "B": "1"}}
    template = (await account.send("POST", "/templates", body)).received
    assert (template["disk"], template["startJupyter"], template["category"]) == (50, True, "NVIDIA")
    wanted = {key: GPU[key] for key in GPU if key != "image"} | {"templateId": template["id"], "env": {"B": "2"}}
    made = await account.create(wanted)
    assert (made["image"], made["env"]) == ("registry.example/base:1", {"A": "1", "B": "2"})
    changed = await account.send("PATCH", f"/templates/{template['id']}", {"image": "registry.example/base:2"})
    assert changed.received["image"] == "registry.example/base:2"
    assert (await account.send("GET", f"/serverless/{made['id']}")).received["image"] == "registry.example/base:1"
    applied = await account.change(made, {"templateId": template["id"]})
    assert (applied["image"], applied["env"]) == ("registry.example/base:2", {"A": "1", "B": "1"})


async def test_rules_of_templates(account: Account):
    body = {"name": "pods", "image": "registry.example/pod:1", "allowedCudaVersions": ["12.8"]}
    template = (await account.send("POST", "/templates", body)).received
    status, said = await account.refusal("POST", "/serverless", {**QUEUE, "templateId": template["id"]})
    assert (status, "not a serverless template" in said) == (422, True)
    status, said = await account.refusal("POST", "/templates", body)
    assert (status, "exists already" in said) == (400, True)
    found = (await account.send("GET", "/templates")).received["templates"]
    assert template in found
    assert (await account.send("GET", f"/templates/{template['id']}")).received == template
    assert (await account.send("DELETE", f"/templates/{template['id']}")).status == 204
    assert (await account.send("GET", f"/templates/{template['id']}")).status == 404


async def test_a_template_seeds_cuda_versions_unless_a_floor_is_given(account: Account):
    body = {"name": "cuda", "image": "i:1", "serverless": True, "allowedCudaVersions": ["12.8"]}
    template = (await account.send("POST", "/templates", body)).received
    seeded = await account.create({**GPU, "templateId": template["id"]})
    assert seeded["gpu"]["allowedCudaVersions"] == ["12.8"]
    floored = await account.create(
        {**GPU, "gpu": {"pools": ["ADA_24"], "minCudaVersion": "12.1"}, "templateId": template["id"]}
    )
    assert floored["gpu"]["allowedCudaVersions"] == []


async def test_volumes_grow_and_are_not_deleted_while_an_endpoint_has_them(account: Account):
    body = {"name": "weights", "size": 50, "dataCenter": "US-KS-2"}
    volume = (await account.send("POST", "/network-volumes", body)).received
    assert volume == {**body, "id": volume["id"], "type": "STANDARD"}
    path = f"/network-volumes/{volume['id']}"
    assert (await account.send("PATCH", path, {"size": 60})).received["size"] == 60
    status, said = await account.refusal("PATCH", path, {"size": 50})
    assert (status, "only grow" in said) == (400, True)
    assert (await account.refusal("PATCH", path, {}))[0] == 422
    made = await account.create({**QUEUE, "name": "user", "networkVolumes": [volume["id"]]})
    status, said = await account.refusal("DELETE", path)
    assert (status, said) == (400, "network volume is in use by endpoints: user")
    await account.send("DELETE", f"/serverless/{made['id']}")
    assert (await account.send("DELETE", path)).status == 204
    assert (await account.send("GET", path)).status == 404


async def test_volumes_and_endpoints_are_in_one_place(account: Account):
    first, second = [
        (await account.send("POST", "/network-volumes", {"name": "v", "size": 10, "dataCenter": place})).received["id"]
        for place in ("US-KS-2", "US-KS-2")
    ]
    status, said = await account.refusal("POST", "/serverless", {**QUEUE, "networkVolumes": [first, second]})
    assert (status, "more than one volume" in said) == (400, True)
    status, said = await account.refusal(
        "POST", "/serverless", {**QUEUE, "networkVolumes": [first], "dataCenterIds": ["EU-RO-1"]}
    )
    assert (status, "not among dataCenterIds" in said) == (400, True)
    status, said = await account.refusal("POST", "/network-volumes", {"name": "v", "size": 10, "dataCenter": "MARS"})
    assert (status, "unknown" in said) == (400, True)
    listed = (await account.send("GET", "/network-volumes")).received
    assert {first, second} <= {item["id"] for item in listed["networkVolumes"]}
    assert listed["pagination"]["hasNextPage"] is False


async def test_passwords_of_registries_are_taken_and_forgotten(account: Account, tmp_path: Path):
    body = {"name": "hub", "username": "me", "password": "pass-word-1234"}
    registry = (await account.send("POST", "/registries", body)).received
    assert registry == {"id": registry["id"], "name": "hub"}
    used = await account.create({**QUEUE, "registry": registry["id"]})
    assert used["registry"] == registry["id"]
    assert registry in (await account.send("GET", "/registries")).received["registries"]
    assert (await account.send("GET", f"/registries/{registry['id']}")).received == registry
    assert (await account.send("DELETE", f"/registries/{registry['id']}")).status == 204
    assert (await account.send("GET", f"/registries/{registry['id']}")).status == 404


async def test_templates_lose_a_deleted_registry_silently(account: Account):
    body = {"name": "other", "username": "me", "password": "x"}
    registry = (await account.send("POST", "/registries", body)).received["id"]
    made = {"name": "with-registry", "image": "i:1", "registry": registry}
    template = (await account.send("POST", "/templates", made)).received
    await account.send("DELETE", f"/registries/{registry}")
    assert (await account.send("GET", f"/templates/{template['id']}")).received["registry"] is None
    status, _ = await account.refusal("POST", "/templates", {**made, "name": "again"})
    assert status == 400


async def test_the_catalogue_has_what_flashkit_knows(account: Account):
    gpus = {item["id"]: item for item in (await account.send("GET", "/catalog/gpus")).received["gpus"]}
    assert (gpus["NVIDIA L40S"]["pool"], gpus["NVIDIA L40S"]["memory"]) == ("ADA_48_PRO", 48)
    assert gpus["NVIDIA L40S"]["price"]["serverless"] == pytest.approx(0.00053 * 3600)
    assert "serverless" not in gpus["NVIDIA GeForce RTX 5090"]["price"], "no source gives its price"
    cpus = {item["id"]: item for item in (await account.send("GET", "/catalog/cpus")).received["cpus"]}
    assert (cpus["cpu5c"]["ramGbPerVcpu"], cpus["cpu3g"]["ramGbPerVcpu"]) == (2, 4)
    one = await account.send("GET", "/catalog/gpus/NVIDIA%20L4?include=AVAILABILITY&product=SERVERLESS")
    assert one.received["availability"] == "HIGH"
    cpu = await account.send("GET", "/catalog/cpus/cpu5c?include=AVAILABILITY&product=SERVERLESS")
    assert [item["id"] for item in cpu.received["dataCenters"]] == ["EU-RO-1"]
    place = await account.send("GET", "/catalog/datacenters/US-KS-2?include=GPU_AVAILABILITY,CPU_AVAILABILITY")
    assert [item["id"] for item in place.received["cpuAvailability"]] == ["cpu3g", "cpu3c"]


@pytest.mark.parametrize("path", [
    "/catalog/gpus?include=AVAILABILITY", "/catalog/gpus?product=POD", "/catalog/cpus?include=STOCK",
    "/catalog/cpus?include=AVAILABILITY&product=CLUSTER", "/catalog/datacenters?include=EVERYTHING",
])  # fmt: skip
async def test_the_catalogue_refuses_a_query_that_makes_no_sense(account: Account, path: str):
    assert (await account.refusal("GET", path))[0] == 400


@pytest.mark.parametrize("path", ["/catalog/gpus/GTX", "/catalog/cpus/cpu9", "/catalog/datacenters/MARS-1"])
async def test_the_catalogue_has_no_unknown_things(account: Account, path: str):
    assert (await account.send("GET", path)).status == 404


async def test_stock_can_be_changed(tmp_path: Path):
    options = ManagementOptions(stock={("US-KS-2", "NVIDIA L4"): "NONE", ("EU-RO-1", "NVIDIA L4"): "LOW"})
    async with (
        Emulator([], state_dir=tmp_path, management=options) as emulator,
        aiohttp.ClientSession() as session,
    ):
        account = Account(emulator.url, session)
        answer = await account.send("GET", "/catalog/gpus/NVIDIA%20L4?include=AVAILABILITY&product=SERVERLESS")
        levels = {item["id"]: item["availability"] for item in answer.received["dataCenters"]}
        assert (levels["US-KS-2"], levels["EU-RO-1"], levels["US-CA-2"]) == ("NONE", "LOW", "HIGH")


async def test_unknown_routes_methods_and_bodies_are_problems(account: Account):
    for method, path, status in (("GET", "/nothing", 404), ("PUT", "/serverless", 405), ("PATCH", "/templates", 405)):
        answer = await account.send(method, path)
        assert (answer.status, answer.received["status"]) == (status, status)
        assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["Allow"]
    async with account.session.post(f"{account.url}/v2/serverless", data=b"{not json") as response:
        assert (response.status, (await response.json(content_type=None))["detail"]) == (400, "the body is not JSON")
    async with account.session.post(f"{account.url}/v2/serverless", data=io.BytesIO(b"[" * 6_000_000)) as response:
        assert response.status == 413
    assert (await account.send("POST", "/serverless", [1])).status == 422


async def test_a_platform_with_a_key_lets_nobody_else_in(tmp_path: Path):
    async with (
        Emulator([], state_dir=tmp_path, api_key="rpa_right") as emulator,
        aiohttp.ClientSession() as session,
    ):
        for key in (None, "rpa_wrong"):
            answer = await Account(emulator.url, session, key).send("GET", "/serverless")
            assert (answer.status, answer.received["title"]) == (401, "Unauthorized")
            assert "rpa" not in json.dumps(answer.received)
        assert (await Account(emulator.url, session, "rpa_right").send("GET", "/serverless")).status == 200


async def test_pages_of_other_machines_are_refused(account: Account):
    answer = await account.send("GET", "/serverless", Origin="https://evil.example")
    assert (answer.status, answer.received["title"]) == (403, "Forbidden")


async def test_who_asks_too_often_is_told_when_to_come_back(tmp_path: Path):
    windows = (Window("minute", 3, 60), Window("hour", 100, 3600))
    async with (
        Emulator([], state_dir=tmp_path, management=ManagementOptions(windows=windows)) as emulator,
        aiohttp.ClientSession() as session,
    ):
        account = Account(emulator.url, session)
        for left in (2, 1, 0):
            answer = await account.send("GET", "/serverless")
            assert answer.headers["RateLimit"].startswith(f'"minute";r={left};t=')
        assert answer.headers["RateLimit-Policy"] == '"minute";q=3;w=60, "hour";q=100;w=3600'
        refused = await account.send("GET", "/serverless")
        assert (refused.status, refused.received["detail"]) == (429, "rate limit exceeded for the minute window")
        assert 0 < int(refused.headers["Retry-After"]) <= 60


def test_a_quota_is_whole_again_when_its_window_is_over():
    quota = Quota([Window("minute", 1, 60)])
    assert quota.take(100.0) is None
    assert quota.take(159.9) == Window("minute", 1, 60)
    assert quota.seconds_to_reset(Window("minute", 1, 60), 159.9) == 1
    assert quota.take(160.0) is None
    assert Quota().headers(0) == {}


async def test_records_outlive_the_platform_and_are_shared_by_two(tmp_path: Path):
    async with Emulator([], state_dir=tmp_path) as emulator, aiohttp.ClientSession() as session:
        made = await Account(emulator.url, session).create(QUEUE)
        async with Emulator([], state_dir=tmp_path) as other:
            second = Account(other.url, session)
            assert [item["id"] for item in (await second.send("GET", "/serverless")).received["endpoints"]] == [
                made["id"]
            ]
            await second.change(made, {"workers": {"max": 9}})
        again = await Account(emulator.url, session).send("GET", f"/serverless/{made['id']}")
        assert again.received["workers"]["max"] == 9
    assert (tmp_path / "management.json").stat().st_mode & 0o077 == 0
    async with Emulator([], state_dir=tmp_path) as emulator, aiohttp.ClientSession() as session:
        answer = await Account(emulator.url, session).send("GET", f"/serverless/{made['id']}/releases")
        assert len(answer.received["releases"]) == 2


async def test_a_damaged_file_is_named_and_jobs_go_on(tmp_path: Path):
    (tmp_path / "management.json").write_text("{")
    async with Emulator([], state_dir=tmp_path) as emulator, aiohttp.ClientSession() as session:
        answer = await Account(emulator.url, session).send("GET", "/serverless")
        assert answer.status == 500
        assert "management.json" in answer.received["detail"]
        async with session.get(f"{emulator.url}/v2/unknown/health") as response:
            assert response.status == 404
