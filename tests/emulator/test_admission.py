"""Who may use the platform: by which name it is reached, and from which pages."""

from __future__ import annotations

import pytest

from flashkit.emulator.admission import Admission
from flashkit.emulator.answers import ForeignHost
from flashkit.emulator.server import Emulator


@pytest.fixture(scope="module")
async def emulator(tmp_path_factory, make_endpoint, worker_environ):
    async with Emulator(
        [make_endpoint("quiet", "silent")],
        state_dir=tmp_path_factory.mktemp("state"),
        environ=worker_environ,
        allowed_hosts=["Dev.Example"],
        shutdown_grace=1.0,
    ) as emulator:
        yield emulator


def scope(host):
    return {"type": "http", "headers": [] if host is None else [(b"host", host)]}


@pytest.mark.parametrize(
    "host",
    [b"127.0.0.1:8484", b"localhost", b"LOCALHOST:1", b"agent.localhost:8484", b"[::1]:8484", b"127.9.9.9",
     b"host.docker.internal:8484", b"dev.example:80", None],
)  # fmt: skip
def test_names_of_this_machine_are_fine(host):
    admission = Admission(allowed_hosts=["Dev.Example"])
    admission.check_host(scope(host))
    admission.check_host(scope(host))


@pytest.mark.parametrize(
    "host",
    [b"evil.example", b"evil.example:8484", b"127.0.0.1.evil.example", b"localhost.evil.example", b"10.0.0.5",
     b"169.254.169.254", b"", b"[::1", b"\xff\xfe", b"user@localhost.evil", b"notlocalhost"],
)  # fmt: skip
def test_other_names_are_refused(host):
    with pytest.raises(ForeignHost, match="is not reached as"):
        Admission().check_host(scope(host))


def test_the_address_that_was_bound_is_fine():
    Admission(bound_host="192.168.1.5").check_host(scope(b"192.168.1.5:8484"))
    everywhere = Admission(bound_host="0.0.0.0")
    everywhere.check_host(scope(b"192.168.1.5:8484"))
    with pytest.raises(ForeignHost):
        everywhere.check_host(scope(b"evil.example"))


async def test_every_route_refuses_a_rebound_name(http, emulator):
    """A page whose name was made to lead here has that name in its requests."""
    worker_route = "/v2/quiet/job-take/some-worker?gpu=x&job_in_progress=0"
    for method, path in (
        ("GET", "/"), ("GET", "/dashboard"), ("POST", "/v2/quiet/run"), ("GET", worker_route), ("GET", "/_/events"),
        ("PUT", "/_/faults"), ("POST", "/_/endpoints/quiet/cold"), ("GET", "/no/such/route"),
    ):  # fmt: skip
        answer = await http(method, f"{emulator.url}{path}", headers={"host": "evil.example"}, json={"input": 1})
        assert answer.status == 403, path
        assert answer.error["code"] == "host_refused"
    assert not emulator.platform.jobs("quiet")


async def test_an_allowed_name_is_served(http, emulator):
    assert (await http("GET", f"{emulator.url}/", headers={"host": "dev.example:8484"})).status == 200


@pytest.mark.parametrize(
    "headers",
    [{"origin": "http://localhost:3000"}, {"sec-fetch-site": "same-site"}, {"sec-fetch-site": "cross-site"},
     {"origin": "null"}, {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}],
)  # fmt: skip
async def test_pages_of_other_origins_change_nothing(http, emulator, headers):
    for path in ("endpoints/quiet/restart", "endpoints/quiet/cold", "workers/w/kill", "clock"):
        answer = await http("POST", f"{emulator.url}/_/{path}", headers=headers, json={"advance": 1})
        assert answer.status == 403, path
        assert answer.error["code"] == "origin_refused"


async def test_the_pages_own_requests_are_served(http, emulator):
    headers = {"origin": emulator.url, "sec-fetch-site": "same-origin"}
    assert (await http("POST", f"{emulator.url}/_/endpoints/quiet/cold", headers=headers)).status == 200
