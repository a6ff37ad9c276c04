"""Lifespans of mounted applications, good and bad ones."""

import logging

import pytest

from flashkit.worker.http.lifespan import Lifespan


def app(*, at_start="lifespan.startup.complete", at_end="lifespan.shutdown.complete", log=None, **more):
    """Return an application whose lifespan answers so; None ends it without an answer."""

    async def serve(scope, receive, send):
        if scope["type"] != "lifespan":
            log.append(dict(scope["state"]))
            scope["state"]["own"] = 1
            return
        assert (await receive())["type"] == "lifespan.startup"
        scope["state"]["shared"] = "value"
        if at_start is None:
            return
        await send({"type": at_start, **more})
        assert (await receive())["type"] == "lifespan.shutdown"
        if at_end is None:
            raise OSError("in the way")
        await send({"type": at_end, "message": "not well"})

    return serve


async def test_each_request_gets_a_copy_of_the_state():
    log = []
    lifespan = Lifespan(app(log=log))
    await lifespan.start()
    for _ in range(2):
        await lifespan({"type": "http"}, None, None)
    await lifespan.stop()
    assert log == [{"shared": "value"}] * 2


async def test_an_application_that_cannot_start_says_why():
    with pytest.raises(RuntimeError, match="did not start: no database"):
        await Lifespan(app(at_start="lifespan.startup.failed", message="no database")).start()
    with pytest.raises(RuntimeError, match="it did not say why"):
        await Lifespan(app(at_start="lifespan.startup.failed")).start()


async def test_an_application_that_knows_no_lifespan_needs_none():
    async def ignorant(scope, receive, send):
        raise AssertionError("what is this?")

    for application in (ignorant, app(at_start=None)):
        lifespan = Lifespan(application)
        await lifespan.start()
        await lifespan.stop()


async def test_an_end_that_fails_is_logged_and_no_more(caplog):
    for at_end in ("lifespan.shutdown.failed", None):
        lifespan = Lifespan(app(at_end=at_end))
        await lifespan.start()
        with caplog.at_level(logging.ERROR):
            await lifespan.stop()
    assert [record.message for record in caplog.records] == ["the mounted application did not end well: not well"]


async def test_to_stop_what_did_not_start_does_nothing():
    await Lifespan(app()).stop()
