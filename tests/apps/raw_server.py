"""A server that answers pings and otherwise does what broken servers do."""

import asyncio
import os

ANSWERS = {
    "/ping": b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    "/garbage": b"this is no HTTP\r\n\r\n",
    "/close": b"",
    "/half": b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this",
    "/ids": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nX-Request-Id: mine\r\nX-Runpod-Worker-Id: me\r\n"
    b"Connection: close, x-secret\r\nX-Secret: 1\r\n\r\n{}",
}


async def answer(reader, writer):
    head = await reader.readuntil(b"\r\n\r\n")
    path = head.split(b" ")[1].decode()
    writer.write(ANSWERS.get(path, b""))
    await writer.drain()
    writer.close()


async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", int(os.environ["PORT"]))
    await server.serve_forever()


asyncio.run(main())
