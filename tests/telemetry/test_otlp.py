"""OTLP as others send it: read within bounds, whatever it holds."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashkit.telemetry.otlp import ATTRIBUTE_LIMIT, TEXT_LIMIT, decode, encode, record_of
from flashkit.telemetry.spans import Op, Span
from tests.telemetry.records import TRACE, record


def request(*spans, resource=()):
    return json.dumps(
        {"resourceSpans": [{"resource": {"attributes": list(resource)}, "scopeSpans": [{"spans": list(spans)}]}]}
    ).encode()


def a_span(**changes):
    span = {
        "traceId": TRACE,
        "spanId": "b7ad6b7169203331",
        "name": "x",
        "startTimeUnixNano": "1",
        "endTimeUnixNano": "2",
    }
    return {**span, **changes}


def text(key, value):
    return {"key": key, "value": {"stringValue": value}}


def test_what_is_written_is_read():
    records = [record("a", end=None), record("b", below="a", error="no", x=1, y=[1.5, True, "z"])]
    told = decode(encode(records, {"service.name": "test", "service.instance.id": "w1"}), is_json=True)
    assert told == records


def test_protobuf_is_read_too():
    pytest.importorskip("opentelemetry.proto")
    import base64

    from google.protobuf.json_format import Parse
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    body = json.loads(request(a_span(attributes=[text("gen_ai.operation.name", "chat")])))
    for span in body["resourceSpans"][0]["scopeSpans"][0]["spans"]:
        span["traceId"] = base64.b64encode(bytes.fromhex(span["traceId"])).decode()
        span["spanId"] = base64.b64encode(bytes.fromhex(span["spanId"])).decode()
    message = Parse(json.dumps(body), ExportTraceServiceRequest())
    (told,) = decode(message.SerializeToString(), is_json=False)
    assert (told.trace_id, told.span_id, told.op) == (TRACE, "b7ad6b7169203331", "llm")


@pytest.mark.parametrize(("body", "is_json"), [(b"\xff\xff\xff", False), (b"{", True), (b"[]", True), (b"7", True)])
def test_what_is_no_request_is_refused(body, is_json):
    with pytest.raises(ValueError, match=r"."):
        decode(body, is_json=is_json)


@pytest.mark.parametrize(
    "changes",
    [
        {"traceId": "short"}, {"traceId": "0" * 32}, {"spanId": "z" * 16}, {"spanId": None}, {"startTimeUnixNano": "x"},
        {"startTimeUnixNano": "0"}, {"startTimeUnixNano": str(2**63)}, {"endTimeUnixNano": "-1"},
        {"parentSpanId": "no"},
    ],
)  # fmt: skip
def test_a_span_that_makes_no_sense_is_left_out_and_the_others_stay(changes):
    good = a_span(spanId="c7ad6b7169203331")
    assert [each.span_id for each in decode(request(a_span(**changes), good), is_json=True)] == ["c7ad6b7169203331"]


def test_huge_spans_are_cut():
    many = [text(f"k{number}", "v") for number in range(1_000)]
    huge = a_span(
        name="n" * 100_000, attributes=[text("k", "x" * 100_000), *many], status={"code": 2, "message": "e" * 9_999}
    )
    (told,) = decode(request(huge), is_json=True)
    assert len(told.attributes) <= ATTRIBUTE_LIMIT
    assert len(told.attributes["k"]) == TEXT_LIMIT
    assert told.attributes["k"].endswith("… (cut)")
    assert (len(told.name) <= 200, len(told.error) <= TEXT_LIMIT) == (True, True)


def test_halves_of_surrogates_do_not_stop_a_batch():
    span = Span(None, Op.STEP, "a\ud800", {"text": "\ud83d"}, trace_id=TRACE, parent_id=None, is_sampled=True)
    span.fail("\udfff")
    body = encode([record_of(span, service="test", worker_id="w1")], {})
    assert [each.name for each in decode(body, is_json=True)] == ["a?"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(
            ["resourceSpans", "scopeSpans", "spans", "attributes", "resource", "key", "value", "stringValue",
             "intValue", "arrayValue", "values", "status", "traceId", "spanId", "startTimeUnixNano"]
        ), inner, max_size=6,
    ),
    max_leaves=30,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["resourceSpans", "x"]), JSON))
def test_whatever_json_comes_nothing_breaks(data):
    decode(json.dumps(data).encode(), is_json=True)


@given(JSON)
def test_whatever_a_span_holds_nothing_breaks(value):
    decode(request(a_span(attributes=value, status=value, name=value, parentSpanId=value)), is_json=True)
