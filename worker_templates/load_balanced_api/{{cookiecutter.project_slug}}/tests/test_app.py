"""The routes as functions, and as requests on the local platform."""

import json
import urllib.error
import urllib.request
from typing import Any

import pytest

from app import Text, api, count

NAME = api.spec.name


def request(platform: Any, path: str, body: Any = None) -> str:
    """Return the text that the API answers."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    call = urllib.request.Request(f"{platform.url}/lb/{NAME}{path}", data, headers)
    with urllib.request.urlopen(call, timeout=60) as answer:
        return answer.read().decode()


async def test_a_route_is_a_function():
    assert await count(Text("to be or not to be"), most=1) == {"to": 2}


def test_words_are_counted(platform):
    answer = request(platform, "/count?most=2", {"text": "to be or not to be"})
    assert json.loads(answer) == {"to": 2, "be": 2}


def test_a_stream_comes_letter_by_letter(platform):
    lines = request(platform, "/spell/flash").splitlines()
    assert [line.removeprefix("data: ") for line in lines if line] == [f'"{letter}"' for letter in "flash"]


@pytest.mark.parametrize(("path", "body"), [("/count?most=0", {"text": "a"}), ("/count", {"words": "a"})])
def test_a_wrong_request_is_refused(platform, path: str, body: Any):
    with pytest.raises(urllib.error.HTTPError) as refusal:
        request(platform, path, body)
    assert refusal.value.code in (400, 422)
