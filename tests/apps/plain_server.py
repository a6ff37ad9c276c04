"""A server that knows nothing of flashkit: any framework will do, as long as it listens on PORT."""

from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


async def up(request):
    return Response()


async def hello(request):
    return JSONResponse({"hello": "from a plain server"})


async def headers(request):
    return JSONResponse(dict(request.headers))


async def large(request):
    size = int(request.query_params["bytes"])
    if "streamed" not in request.query_params:
        return Response(b" " * size)

    async def parts():
        for _ in range(size // 1000):
            yield b" " * 1000

    return StreamingResponse(parts())


app = Starlette(
    routes=[
        Route("/up", up),
        Route("/ping", up),
        Route("/hello", hello),
        Route("/headers", headers),
        Route("/large", large),
    ]
)
