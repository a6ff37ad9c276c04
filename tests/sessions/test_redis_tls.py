"""TLS to real servers: what is wrong for good is told at once and not tried again as an outage (row 20a)."""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path

import orjson
import pytest
import redis.asyncio as aioredis

from flashkit.errors import ConfigurationError, StoreMisconfigured, StoreUnavailable
from flashkit.worker.sessions.records import Kind, Record
from flashkit.worker.sessions.store import open_store, without_password
from tests.certificates import make_certificate
from tests.ports import free_port

LONG_S = 30.0
"""A budget that a test would not survive if the error were taken for an outage."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """A folder with `cert.pem`, which signs itself for 127.0.0.1, and its `key.pem`."""
    folder: Path = tmp_path_factory.mktemp("tls")
    make_certificate(folder)
    return folder


@pytest.fixture
def tls_redis(own_redis, certificate):
    """Start a Redis that speaks TLS on a second port, and return it with that port."""

    def start(**options):
        port = free_port()
        files = {"tls_cert_file": "cert.pem", "tls_key_file": "key.pem", "tls_ca_cert_file": "cert.pem"}
        paths = {name: str(certificate / file) for name, file in files.items()}
        return own_redis(**{"tls_port": str(port), "tls_auth_clients": "no", **paths, **options}), port

    return start


async def can_be_used(store) -> bool:
    await store.check()
    lease = await store.commit(await store.acquire("s", "w"), [Record(Kind.RESULT, "a")])
    return lease.seq == 1


async def is_told_at_once(store, match) -> str:
    started = time.monotonic()
    with pytest.raises(StoreMisconfigured, match=match) as caught:
        await store.check(budget_s=LONG_S)
    with pytest.raises(StoreMisconfigured, match=match):
        await store.acquire("s", "w")
    assert time.monotonic() - started < LONG_S / 2
    return caught.value.report.hint


async def test_a_store_behind_tls_is_used_by_a_user_of_its_own(tls_redis, make_store, certificate):
    server, port = tls_redis()
    async with aioredis.from_url(server.url) as client:
        allowed = {"categories": ["+@all", "-@dangerous"], "commands": ["+info"], "keys": ["fk1:*"]}
        await client.acl_setuser("agents", enabled=True, passwords="+p/w", **allowed)
    query = f"ssl_ca_certs={certificate}/cert.pem"
    assert await can_be_used(make_store(f"rediss://agents:p%2Fw@127.0.0.1:{port}/0?{query}"))
    wrong = make_store(f"rediss://agents:other@127.0.0.1:{port}/0?{query}", budget_s=LONG_S)
    assert "user and password" in await is_told_at_once(wrong, "refused a command")


async def test_answers_that_come_in_several_parts_are_read_whole(own_redis, make_store, certificate):
    """Several records of TLS that are there at once are read one after the other into one buffer."""
    server = own_redis()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", server.port)
        asking = asyncio.create_task(forward(reader, there_writer))
        while data := await there_reader.read(65536):
            for part in (data[:1], data[1:2], data[2:]):
                writer.write(part)  # each is a record of its own
        asking.cancel()
        writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    listener = await asyncio.start_server(relay, "127.0.0.1", 0, ssl=context)
    port = listener.sockets[0].getsockname()[1]
    try:
        store = make_store(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}/cert.pem", budget_s=5)
        lease = await store.acquire("s", "w")
        for number in range(20):
            lease = await store.commit(lease, [Record(Kind.RESULT, f"step{number}", orjson.dumps("x" * number))])
        image = await store.load("s")
        assert [record.key for record in image.records] == [f"step{number}" for number in range(20)]
        await store.close()
    finally:
        listener.close()


async def test_a_certificate_that_nobody_vouches_for_is_no_outage(tls_redis, make_store):
    _, port = tls_redis()
    hint = await is_told_at_once(make_store(f"rediss://127.0.0.1:{port}/0", budget_s=LONG_S), "CERTIFICATE_VERIFY")
    assert "ssl_ca_certs" in hint


async def test_a_port_without_tls_is_thought_of(own_redis, make_store):
    url = own_redis().url.replace("redis://", "rediss://")  # where a server waits for the rest of a line
    with pytest.raises(StoreUnavailable) as caught:
        await make_store(url, budget_s=1).acquire("s", "w")
    assert "does this port speak TLS" in caught.value.report.hint


async def test_a_server_that_wants_a_certificate_says_so(tls_redis, make_store, certificate):
    _, port = tls_redis(tls_auth_clients="yes")
    url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}/cert.pem"
    with_own = f"{url}&ssl_certfile={certificate}/cert.pem&ssl_keyfile={certificate}/key.pem"
    assert await can_be_used(make_store(with_own))
    assert "ssl_certfile" in await is_told_at_once(make_store(url, budget_s=LONG_S), "by TLS")


async def test_a_cluster_is_spoken_to_by_tls(tls_redis, make_store, certificate):
    server, port = tls_redis(cluster_enabled="yes", cluster_port=str(free_port()), tls_cluster="yes")
    async with aioredis.from_url(server.url) as client:
        await client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        async with asyncio.timeout(30):
            while b"cluster_state:ok" not in await client.execute_command("CLUSTER", "INFO", NEVER_DECODE=True):
                await asyncio.sleep(0.02)
    url = f"rediss+cluster://127.0.0.1:{port}"
    assert await can_be_used(make_store(f"{url}?ssl_ca_certs={certificate}/cert.pem", budget_s=20))
    assert "ssl_ca_certs" in await is_told_at_once(make_store(url, budget_s=LONG_S), "CERTIFICATE_VERIFY")


async def test_sentinels_have_tls_and_a_password_of_their_own(tls_redis, make_store, certificate, tmp_path):
    server, tls_port = tls_redis(requirepass="data")
    port, conf = free_port(), tmp_path / "sentinel.conf"
    conf.write_text(
        f"port 0\ntls-port {port}\ntls-replication yes\ntls-auth-clients no\nbind 127.0.0.1\ndir {tmp_path}\n"
        f"tls-cert-file {certificate}/cert.pem\ntls-key-file {certificate}/key.pem\n"
        f"tls-ca-cert-file {certificate}/cert.pem\nrequirepass watch\n"
        f"sentinel monitor main 127.0.0.1 {tls_port} 1\nsentinel auth-pass main data\n"
    )
    process = await asyncio.create_subprocess_exec(
        str(server.binary.path), str(conf), "--sentinel", stdout=asyncio.subprocess.DEVNULL
    )
    try:
        url = f"rediss+sentinel://:data@127.0.0.1:{port}/main?ssl_ca_certs={certificate}/cert.pem"
        assert await can_be_used(make_store(f"{url}&sentinel_password=watch", budget_s=20))
        hint = await is_told_at_once(make_store(url, budget_s=LONG_S), "Sentinels of service 'main'")
        assert "sentinel_password" in hint
    finally:
        process.kill()
        await process.wait()


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("rediss+cluster://h:1/?ssl_ca_certs=/nope", "ssl_ca_certs names '/nope'"),
        ("rediss://h:1/?ssl_ca_certs=/nope", "ssl_ca_certs names '/nope'"),
        ("redis+cluster://h:1?socket_timeout=3", "socket_timeout is not an option"),
        ("rediss+cluster://h:1?sentinel_password=s3cret", "sentinel_password is not an option"),
        ("redis+sentinel://h:1/main?ssl_check_hostname=no", r"needs rediss\+sentinel://"),
        ("redis://user:s3/cret@h:1/0", "write / "),
        ("redis+cluster://user:s3/cret@h:1/0", "write / "),
    ],
)
def test_options_that_would_be_lost_are_refused(url, match):
    with pytest.raises(ConfigurationError, match=match) as caught:
        open_store(url)
    assert "s3" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["rdis://user:s3cret@h:6379/0", "redis//user:s3cret@h", "user:s3cret@h", "redis:user:s3cret@h", "redis://u:s3cret?x@h",
     "http://h/?password=s3cret", "sqlite://x?key=s3cret", "redis://u:p@s3cret@h:port/0"],
)  # fmt: skip
def test_no_wrong_address_shows_its_password(url):
    assert "s3cret" not in without_password(url)
    with pytest.raises(ConfigurationError) as caught:
        open_store(url)
    assert "s3cret" not in str(caught.value)


async def test_a_cluster_that_is_not_there_is_unavailable_within_the_budget(make_store):
    with pytest.raises(StoreUnavailable):
        await make_store("redis+cluster://127.0.0.1:1", budget_s=0.3).acquire("s", "w")
