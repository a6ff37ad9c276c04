"""Errors as REST v2 answers them: RFC 9457, `{title, status, detail, errors}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from starlette.responses import Response

from flashkit.emulator.bodies import encode_json

PROBLEM_TYPE: Final = "application/problem+json"


class Problem(Exception):
    """A request that is refused: the status, and what a person reads."""

    def __init__(self, status: int, detail: str, *, errors: Sequence[str] = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = tuple(errors)

    def to_dict(self) -> dict[str, Any]:
        """Return the body."""
        body: dict[str, Any] = {
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        return {**body, "errors": list(self.errors)} if self.errors else body

    def response(self, headers: Mapping[str, str] | None = None) -> Response:
        """Return the answer."""
        body = encode_json(self.to_dict())
        return Response(body, status_code=self.status, headers=dict(headers or {}), media_type=PROBLEM_TYPE)


def bad_request(detail: str) -> Problem:
    """Return the problem of a request whose parts contradict each other, or what is there."""
    return Problem(400, detail)


def not_found(what: str) -> Problem:
    """Return the problem of a request for something that is not there."""
    return Problem(404, f"{what} not found")


def invalid(errors: Sequence[str]) -> Problem:
    """Return the problem of a body that does not fit the schema."""
    return Problem(422, "Request validation failed.", errors=errors)
