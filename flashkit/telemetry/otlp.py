"""Spans as OTLP has them, in JSON: what is sent to a receiver and what a receiver reads.

What comes in was written by anybody: sizes are bounded here, on both ways, so that no span is larger than a page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from flashkit.telemetry.spans import Op, Span

CONTENT_KEYS: Final = frozenset(
    {"gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.tool.call.arguments", "gen_ai.tool.call.result"}
)
"""Attributes that hold what people and models wrote."""
TEXT_LIMIT: Final = 2_000
CONTENT_LIMIT: Final = 32_000
"""Characters of an attribute; the rest is cut off."""
NAME_LIMIT: Final = 200
ATTRIBUTE_LIMIT: Final = 64
LIST_LIMIT: Final = 100
OP_KEY: Final = "flashkit.op"
_CUT: Final = "… (cut)"
_ERROR: Final = 2
_INTERNAL, _SERVER, _CLIENT, _CONSUMER = 1, 2, 3, 5
_KINDS: Final = {
    **dict.fromkeys((Op.CALL.value, Op.TOOL.value, Op.LLM.value, Op.EMBEDDING.value), _CLIENT),
    Op.JOB.value: _CONSUMER,
    Op.REQUEST.value: _SERVER,
}

Redact = Callable[[str, str], str]
"""Gets the name and the value of a text in a span, and returns what may be told of it."""


@dataclass(frozen=True, slots=True)
class SpanRecord:
    """A span as it is kept and shown."""

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    op: str
    start_ns: int
    end_ns: int
    """0 for one that was open when its process last spoke of it."""
    error: str = ""
    service: str = ""
    worker_id: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def job_id(self) -> str:
        """The job it is the span of; empty for any other span."""
        is_of_job = self.op in (Op.JOB, Op.PLATFORM, Op.REQUEST)
        return str(self.attributes.get("flashkit.job.id", "")) if is_of_job else ""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON shows it."""
        return {name: getattr(self, name) for name in self.__slots__} | {"attributes": dict(self.attributes)}


def cut(text: str, limit: int) -> str:
    """Return a text of at most so many characters."""
    short = text if len(text) <= limit else text[: limit - len(_CUT)] + _CUT
    return short if short.isascii() else short.encode("utf-8", "replace").decode()  # half a surrogate has no JSON form


def record_of(span: Span, *, service: str, worker_id: str, redact: Redact | None = None) -> SpanRecord:
    """Return a span as it is told, open ones too: bounded, and redacted."""
    told = {key: _tell(key, value, redact) for key, value in list(span.attributes.items())[:ATTRIBUTE_LIMIT]}
    error = redact("error", span.error) if redact and span.error else span.error
    return SpanRecord(
        span.trace_id, span.span_id, span.parent_id, cut(span.name, NAME_LIMIT), span.op.value,
        span.start_ns, span.end_ns, cut(error, TEXT_LIMIT), service, worker_id, told,
    )  # fmt: skip


def _tell(key: str, value: Any, redact: Redact | None) -> Any:
    if isinstance(value, str):
        return cut(redact(key, value) if redact else value, CONTENT_LIMIT if key in CONTENT_KEYS else TEXT_LIMIT)
    if isinstance(value, list | tuple):
        return [_tell(key, item, redact) for item in value[:LIST_LIMIT]]
    return value if isinstance(value, bool | int | float) else cut(str(value), TEXT_LIMIT)


def encode(records: Sequence[SpanRecord], resource: Mapping[str, Any]) -> bytes:
    """Return the body of a request that tells of spans."""
    import orjson

    spans = [_encode_span(record) for record in records]
    scopes = [{"scope": {"name": "flashkit"}, "spans": spans}]
    return orjson.dumps(
        {"resourceSpans": [{"resource": {"attributes": _encode_attributes(resource)}, "scopeSpans": scopes}]}
    )


def _encode_span(record: SpanRecord) -> dict[str, Any]:
    span: dict[str, Any] = {
        "traceId": record.trace_id,
        "spanId": record.span_id,
        "name": record.name,
        "kind": kind_number(record.op),
        "startTimeUnixNano": str(record.start_ns),
        "endTimeUnixNano": str(record.end_ns),
        "attributes": _encode_attributes({OP_KEY: record.op, **record.attributes}),
    }
    if record.parent_id:
        span["parentSpanId"] = record.parent_id
    if record.error:
        span["status"] = {"code": _ERROR, "message": record.error}
    return span


def kind_number(op: str) -> int:
    """Return the number that OTLP has for the kind of a span."""
    return _KINDS.get(op, _INTERNAL)


def _encode_attributes(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _encode_value(value)} for key, value in attributes.items()]


def _encode_value(value: Any) -> dict[str, Any]:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
        case list() | tuple():
            return {"arrayValue": {"values": [_encode_value(item) for item in value]}}
        case _:
            return {"stringValue": str(value)}


def decode(body: bytes, *, is_json: bool) -> list[SpanRecord]:
    """Return the spans of a request, whoever sent it; what is no span in it is left out.

    Raises:
        ValueError: It is no such request.
        ModuleNotFoundError: It is in protobuf's form, and OpenTelemetry's package for that is not installed.
    """
    import orjson

    data = orjson.loads(body) if is_json else _read_protobuf(body)
    if not isinstance(data, dict):
        raise ValueError("the body is not a JSON object")  # noqa: TRY004 - of a wrong value, not of a wrong argument
    return [record for record in _decode_all(data) if record is not None]


def _read_protobuf(body: bytes) -> Any:
    from google.protobuf.json_format import MessageToDict
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    try:
        request = ExportTraceServiceRequest.FromString(body)
    except DecodeError as exc:
        raise ValueError(f"the body is no OTLP request: {exc}") from exc
    data = MessageToDict(request)
    for span in _spans_in(data):  # ids are bytes there, which this form has as base64
        for key in ("traceId", "spanId", "parentSpanId"):
            if key in span:
                span[key] = _hex_of(span[key])
    return data


def _hex_of(text: str) -> str:
    import base64

    return base64.b64decode(text).hex()


def _spans_in(data: Any) -> Iterator[dict[str, Any]]:
    for group in _list(data, "resourceSpans"):
        for scope in _list(group, "scopeSpans"):
            yield from (span for span in _list(scope, "spans") if isinstance(span, dict))


def _list(data: Any, key: str) -> list[Any]:
    value = data.get(key) if isinstance(data, dict) else None
    return value if isinstance(value, list) else []


def _decode_all(data: Any) -> Iterator[SpanRecord | None]:
    for group in _list(data, "resourceSpans"):
        resource = _decode_attributes(_list(group.get("resource") if isinstance(group, dict) else None, "attributes"))
        for span in _spans_in({"resourceSpans": [group]}):
            yield _decode_span(span, resource)


def _decode_span(span: dict[str, Any], resource: Mapping[str, Any]) -> SpanRecord | None:
    try:
        trace_id, span_id = _read_id(span["traceId"], 32), _read_id(span["spanId"], 16)
        parent_id = _read_id(span["parentSpanId"], 16) if span.get("parentSpanId") else None
        start_ns, end_ns = int(span["startTimeUnixNano"]), int(span.get("endTimeUnixNano") or 0)
    except (KeyError, ValueError, TypeError, OverflowError):
        return None
    if not 0 < start_ns < 2**63 or not 0 <= end_ns < 2**63:
        return None
    attributes = _decode_attributes(_list(span, "attributes"))
    op = str(attributes.pop(OP_KEY, "")) or _guess_op(attributes)
    status = span.get("status") if isinstance(span.get("status"), dict) else {}
    is_error = str((status or {}).get("code", "")) in (str(_ERROR), "STATUS_CODE_ERROR")
    error = str((status or {}).get("message") or "error") if is_error else ""
    return SpanRecord(
        trace_id, span_id, parent_id, cut(str(span.get("name", "")), NAME_LIMIT),
        cut(op, NAME_LIMIT), start_ns, end_ns, cut(error, TEXT_LIMIT),
        cut(str(resource.get("service.name", "")), NAME_LIMIT),
        cut(str(resource.get("service.instance.id", "")), NAME_LIMIT), attributes,
    )  # fmt: skip


def _guess_op(attributes: Mapping[str, Any]) -> str:
    """Return what a span of somebody else's is of, by the conventions for generative AI."""
    match attributes.get("gen_ai.operation.name"):
        case "chat" | "text_completion" | "generate_content":
            return Op.LLM.value
        case "embeddings":
            return Op.EMBEDDING.value
        case "execute_tool":
            return Op.TOOL.value
        case _:
            return ""


def _read_id(value: Any, digits: int) -> str:
    text = str(value).lower()
    if len(text) != digits or int(text, 16) == 0:
        raise ValueError(text)
    return text


def _decode_attributes(items: list[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items[:ATTRIBUTE_LIMIT]:
        if isinstance(item, dict) and isinstance(item.get("key"), str):
            key = cut(item["key"], NAME_LIMIT)
            found[key] = _decode_value(item.get("value"), CONTENT_LIMIT if key in CONTENT_KEYS else TEXT_LIMIT)
    return found


def _decode_value(value: Any, limit: int, depth: int = 0) -> Any:
    if not isinstance(value, dict) or depth > 2:  # noqa: PLR2004 - lists in lists are nobody's attribute
        return ""
    if "stringValue" in value:
        return cut(str(value["stringValue"]), limit)
    if "boolValue" in value:
        return bool(value["boolValue"])
    try:
        if "intValue" in value:
            number = int(value["intValue"])
            return number if -(2**63) <= number < 2**63 else cut(str(number), limit)
        if "doubleValue" in value:
            return float(value["doubleValue"])
    except (ValueError, TypeError, OverflowError):
        return ""
    if "arrayValue" in value:
        return [_decode_value(item, limit, depth + 1) for item in _list(value["arrayValue"], "values")[:LIST_LIMIT]]
    return cut(str(value), limit)
