"""The two ways to a receiver: our own JSON to `flashkit dev`, OpenTelemetry's exporter to any collector.

Both run in an exporter's thread. OpenTelemetry's packages are imported there, when the first span is sent, so that no
start waits for them. Where they are not installed, collectors get OTLP in JSON too.
"""

from __future__ import annotations

import http.client
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from flashkit.telemetry.exporter import Delivery, Sender
from flashkit.telemetry.otlp import Redact, SpanRecord, encode, kind_number, record_of
from flashkit.telemetry.spans import Span

log = logging.getLogger(__name__)

_TIMEOUT_SECONDS: Final = 5.0
_OPEN_SECONDS: Final = 0.05
_LONG_OPEN_SECONDS: Final = 5.0
"""Collectors know no open spans: one that is open for longer than this gets a mark that has ended."""
_LATER: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


class JsonSender:
    """Sends OTLP in JSON over one kept connection, with nothing but Python's own library."""

    tells_open_after_s = _OPEN_SECONDS

    def __init__(
        self,
        url: str,
        *,
        service: str,
        worker_id: str,
        headers: Mapping[str, str] | None = None,
        redact: Redact | None = None,
        knows_open: bool = True,
    ) -> None:
        self.name = url.partition("?")[0]
        if not knows_open:
            self.tells_open_after_s = _LONG_OPEN_SECONDS
        self._knows_open = knows_open
        self._url = urlsplit(url)
        self._headers = {"Content-Type": "application/json", **(headers or {})}
        self._service, self._worker_id, self._redact = service, worker_id, redact
        self._connection: http.client.HTTPConnection | None = None

    def send(self, spans: Sequence[Span]) -> Delivery:
        """Send spans, open ones too."""
        records = [
            record_of(span, service=self._service, worker_id=self._worker_id, redact=self._redact) for span in spans
        ]
        if not self._knows_open:
            records = [record if record.end_ns else mark_of(record) for record in records]
        body = encode(records, {"service.name": self._service, "service.instance.id": self._worker_id})
        for is_second_try in (False, True):
            try:
                return self._post(body)
            except (OSError, http.client.HTTPException):  # a kept connection may have been closed meanwhile
                had_one = self._connection is not None
                self.close()
                if is_second_try or not had_one:
                    break
        return Delivery.LATER

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _post(self, body: bytes) -> Delivery:
        connection = self._connection or self._connect()
        self._connection = connection
        path = (self._url.path or "/") + (f"?{self._url.query}" if self._url.query else "")
        connection.request("POST", path, body, self._headers)
        response = connection.getresponse()
        response.read()
        if response.status < 300:  # noqa: PLR2004 - any 2xx is success
            return Delivery.SENT
        return Delivery.LATER if response.status in _LATER else Delivery.REFUSED

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        return kind(self._url.hostname or "", self._url.port, timeout=_TIMEOUT_SECONDS)


class CollectorSender:
    """Sends to a collector with OpenTelemetry's own exporter, which reads its variables itself."""

    tells_open_after_s = _LONG_OPEN_SECONDS

    def __init__(self, endpoint: str, *, service: str, worker_id: str, redact: Redact | None = None) -> None:
        self.name = endpoint
        self._endpoint = endpoint
        self._service, self._worker_id, self._redact = service, worker_id, redact
        self._sender: Any = None

    def send(self, spans: Sequence[Span]) -> Delivery:
        """Send spans; of open ones a mark."""
        if self._sender is None:
            self._sender = self._open()
        if isinstance(self._sender, JsonSender):
            return self._sender.send(spans)
        records = [
            record_of(span, service=self._service, worker_id=self._worker_id, redact=self._redact) for span in spans
        ]
        return self._sender.send([record if record.end_ns else mark_of(record) for record in records])  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close connections."""
        if self._sender is not None:
            self._sender.close()
            self._sender = None

    def _open(self) -> Any:
        try:
            from flashkit.telemetry.opentelemetry_sdk import SdkExport
        except ModuleNotFoundError as exc:
            log.warning(
                "the module %s is not installed, so %s gets spans in JSON; pip install 'flashkit-serverless[traces]'",
                exc.name,
                self.name,
            )
            return self._plain_sender()
        return SdkExport(service=self._service, worker_id=self._worker_id)

    def _plain_sender(self) -> Sender:
        import os

        headers = parse_headers(os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", ""))
        return JsonSender(
            self._endpoint,
            service=self._service,
            worker_id=self._worker_id,
            headers=headers,
            redact=self._redact,
            knows_open=False,
        )


def mark_of(record: SpanRecord) -> SpanRecord:
    """Return what a collector that knows no open spans is told of one: a moment in it, that has ended."""
    from random import getrandbits

    return SpanRecord(
        record.trace_id, f"{getrandbits(64):016x}", record.span_id, f"{record.name} (open)", record.op,
        record.start_ns, record.start_ns + 1, record.error, record.service, record.worker_id,
        {**record.attributes, "flashkit.open": True},
    )  # fmt: skip


def parse_headers(text: str) -> dict[str, str]:
    """Return the headers that OTEL_EXPORTER_OTLP_HEADERS names: `name=value,name=value`, URL-encoded."""
    from urllib.parse import unquote

    pairs = (item.partition("=") for item in text.split(",") if "=" in item)
    return {name.strip(): unquote(value.strip()) for name, _, value in pairs if name.strip()}


__all__ = ["CollectorSender", "JsonSender", "kind_number", "mark_of", "parse_headers"]
