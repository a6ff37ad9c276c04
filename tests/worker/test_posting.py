"""Posts on kept connections, against servers that answer in every way there is, byte for byte."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flashkit.worker import posting
from flashkit.worker.posting import KeptConnections, Redirected
from tests.certificates import make_certificate

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class Server:
    """Answers the requests of each connection with the next of its answers; after None it closes without one."""

    answers: list[bytes | None]
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    closes_after_answers: bool = False
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/job-done/1?gpu=x"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"Content-Length: (\d+)", head)
                assert length is not None
                self.requests.append(head + await reader.readexactly(int(length[1])))
                answer = self.answers.pop(0) if self.answers else OK
                if answer is None:
                    break
                writer.write(answer)
                if self.closes_after_answers:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


Start = Callable[..., Awaitable[Server]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    servers = []

    async def run(*answers: bytes | None, tls: ssl.SSLContext | None = None, **options: bool) -> Server:
        server = Server(list(answers), **options)
        servers.append(await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls))
        server.port = servers[-1].sockets[0].getsockname()[1]
        return server

    yield run
    for each in servers:
        each.close()
        await each.wait_closed()


@pytest.fixture
async def kept() -> AsyncIterator[KeptConnections]:
    connections = KeptConnections({"Authorization": "secret", "charset": "utf-8"})
    yield connections
    connections.close()
    await asyncio.sleep(0)  # a closed transport lets go in the loop's next round


async def test_a_request_is_what_a_server_expects(start: Start, kept: KeptConnections) -> None:
    server = await start()

    assert await kept.post(server.url, b'{"output":1}') == 200

    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert body == b'{"output":1}'
    assert head.split(b"\r\n") == [
        b"POST /job-done/1?gpu=x HTTP/1.1",
        b"Host: 127.0.0.1:%d" % server.port,
        b"Content-Length: 12",
        b"Authorization: secret",
        b"charset: utf-8",
    ]


async def test_posts_one_after_the_other_share_a_connection_and_others_do_not(
    start: Start, kept: KeptConnections
) -> None:
    server = await start()
    for _ in range(3):
        await kept.post(server.url, b"x")
    assert server.connections == 1
    assert await asyncio.gather(*(kept.post(server.url, b"x") for _ in range(5))) == [200] * 5
    assert server.connections == 5


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK,
        b"HTTP/1.1 413 Too Large\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000,
    ],
)
async def test_answers_of_all_shapes_give_their_status(start: Start, kept: KeptConnections, answer: bytes) -> None:
    server = await start(answer)
    expected = int(re.findall(rb"HTTP/1.1 (\d+)", answer)[-1])
    assert await kept.post(server.url, b"x") == expected
    assert await kept.post(server.url, b"x") == 200
    assert server.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\n\r\nup to the end of the connection",
    ],
)
async def test_a_connection_that_the_server_ends_is_not_used_again(
    start: Start, kept: KeptConnections, answer: bytes
) -> None:
    server = await start(answer, closes_after_answers=True)
    assert await kept.post(server.url, b"x") == 200
    assert await kept.post(server.url, b"x") == 200
    assert server.connections == 2


async def test_a_connection_that_ends_as_it_is_used_again_is_replaced(start: Start, kept: KeptConnections) -> None:
    server = await start(OK, None)
    await kept.post(server.url, b"first")
    assert await kept.post(server.url, b"second") == 200
    assert [request.rpartition(b"\r\n")[2] for request in server.requests] == [b"first", b"second", b"second"]


async def test_a_new_connection_that_ends_without_an_answer_is_an_error(start: Start, kept: KeptConnections) -> None:
    server = await start(None)
    with pytest.raises(ConnectionResetError, match="without an answer"):
        await kept.post(server.url, b"x")


async def test_an_answer_that_ends_half_way_is_not_asked_for_again(start: Start, kept: KeptConnections) -> None:
    server = await start(OK, b"HTTP/1.1 2")
    await kept.post(server.url, b"x")
    server.closes_after_answers = True
    with pytest.raises(ConnectionResetError, match="without an answer"):
        await kept.post(server.url, b"x")
    assert len(server.requests) == 2


async def test_an_answer_that_is_no_http_is_an_error(start: Start, kept: KeptConnections) -> None:
    server = await start(b"SSH-2.0-OpenSSH_9.2\r\n")
    with pytest.raises(ConnectionError, match="no HTTP"):
        await kept.post(server.url, b"x")
    assert await kept.post(server.url, b"x") == 200


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_redirections_are_told(start: Start, kept: KeptConnections, status: int) -> None:
    server = await start(b"HTTP/1.1 %d Moved\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n" % status)
    with pytest.raises(Redirected):
        await kept.post(server.url, b"x")


async def test_nobody_there_and_no_address_are_errors_of_the_connection(
    kept: KeptConnections, unused_tcp_port: int
) -> None:
    with pytest.raises(ConnectionRefusedError):
        await kept.post(f"http://127.0.0.1:{unused_tcp_port}/", b"x")
    for url in ("ftp://127.0.0.1/", "127.0.0.1/x", "http:///x"):
        with pytest.raises(OSError, match="no web server's address"):
            await kept.post(url, b"x")


async def test_a_server_that_says_nothing_is_given_up(
    start: Start, kept: KeptConnections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posting, "ANSWER_SECONDS", 0.1)
    server = await start(b"HTTP/1.1 100 Continue\r\n\r\n")
    with pytest.raises(TimeoutError):
        await kept.post(server.url, b"x")
    monkeypatch.undo()
    assert await kept.post(server.url, b"x") == 200
    assert server.connections == 2, "the answer to the first request might still have come on that connection"


async def test_old_connections_are_not_used(
    start: Start, kept: KeptConnections, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start()
    await asyncio.gather(*(kept.post(server.url, b"x") for _ in range(3)))
    monkeypatch.setattr(posting, "IDLE_SECONDS", 0.0)
    assert await kept.post(server.url, b"x") == 200
    assert server.connections == 4


async def test_words_that_nobody_asked_for_end_a_connection(start: Start, kept: KeptConnections) -> None:
    server = await start(OK + b"HTTP/1.1 408 Timeout\r\nContent-Length: 0\r\n\r\n")
    assert await kept.post(server.url, b"x") == 200
    await asyncio.sleep(0.05)
    assert await kept.post(server.url, b"x") == 200


async def test_a_large_body_arrives_whole(start: Start, kept: KeptConnections) -> None:
    server = await start()
    body = bytes(range(256)) * 40_000
    assert await kept.post(server.url, body) == 200
    assert server.requests[0].endswith(body)


async def test_no_value_begins_another_header(start: Start) -> None:
    kept = KeptConnections({"Authorization": "key\r\nX-Other: 1\n"})
    server = await start()
    await kept.post(server.url, b"")
    assert b"Authorization: key X-Other: 1\r\n" in server.requests[0]
    kept.close()
    await asyncio.sleep(0)


async def test_tls_is_spoken_and_the_certificate_is_checked(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_certificate(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    server = await start(tls=tls)
    url = server.url.replace("http:", "https:")

    with pytest.raises(ssl.SSLCertVerificationError):
        await KeptConnections({}).post(url, b"x")

    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    kept = KeptConnections({})
    assert [await kept.post(url, b"x") for _ in range(2)] == [200, 200]
    kept.close()
    await asyncio.sleep(0)
