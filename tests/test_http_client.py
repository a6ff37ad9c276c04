"""What answers of load-balanced endpoints mean to those who ask for their errors."""

import pytest

from flashkit import FlashkitError, HandlerError, InputError, PlatformError
from flashkit.errors import RateLimited
from flashkit.http_client import HttpAnswer


def answer(status, body=b"", **headers):
    return HttpAnswer(status, headers, body)


def test_an_answer_that_is_none_of_an_error_is_given_back():
    assert answer(200, b"{}").raise_for_status().json() == {}
    assert answer(302).raise_for_status().status == 302


@pytest.mark.parametrize(
    ("status", "family"),
    [(400, InputError), (404, InputError), (429, RateLimited), (500, HandlerError), (502, PlatformError)],
)
def test_the_status_decides_what_the_caller_does_next(status, family):
    with pytest.raises(FlashkitError) as caught:
        answer(status, b'{"error": {"code": "x", "message": "went wrong", "hint": "try this"}}').raise_for_status()
    assert type(caught.value) is family
    assert (caught.value.report.message, caught.value.report.hint) == ("went wrong", "try this")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": "no workers available"}', "the endpoint answered 400: no workers available"),
        (b"<html>oops</html>", "the endpoint answered 400: <html>oops</html>"),
        (b"[1]", "the endpoint answered 400: [1]"),
        (b"", "the endpoint answered 400"),
    ],
)
def test_bodies_of_others_are_read_as_far_as_possible(body, message):
    with pytest.raises(InputError) as caught:
        answer(400, body).raise_for_status()
    assert caught.value.report.message == message


def test_what_is_not_json_is_told():
    with pytest.raises(PlatformError, match="the answer 200 is not JSON: 'plain'"):
        answer(200, b"plain").json()


def test_an_answer_knows_its_worker():
    assert answer(200).worker_id is None
