"""The bytes of a journal: what was written comes back, and damage of any kind is seen."""

import base64
import contextlib
import re
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flashkit.worker.sessions as package
from flashkit.errors import ConfigurationError, RecordCorrupt, RecordKeyMissing, RecordTooNew
from flashkit.worker.sessions import records
from flashkit.worker.sessions.records import (
    HEADER_BYTES,
    Keyring,
    Kind,
    Opened,
    Place,
    Record,
    decode_record,
    decode_snapshot,
    encode_record,
    seal,
    split_body,
    unseal,
)

PLACE = Place("app", "s1", "0123456789abcdef")
KEYRING = Keyring({7: b"k" * 32}, active=7)
TYPED = (RecordCorrupt, RecordTooNew, RecordKeyMissing)


def reseal(data: bytes, at: int, value: int) -> bytes:
    """Return the record with one header byte changed and the checksum right again, as a newer writer would have it."""
    header = bytearray(data[: HEADER_BYTES - 4])
    header[at] = value
    return bytes(header) + struct.pack(">I", zlib.crc32(data[HEADER_BYTES:], zlib.crc32(header))) + data[HEADER_BYTES:]


@pytest.mark.parametrize("keyring", [None, KEYRING])
@given(
    body=st.binary(max_size=300),
    kind=st.sampled_from(Kind),
    seq=st.integers(0, 2**53),
    previous=st.integers(0, 2**32 - 1),
)
def test_sealed_bytes_open_to_what_was_sealed(keyring, body, kind, seq, previous):
    sealed = seal(PLACE, kind, body, seq=seq, previous=previous, keyring=keyring)
    assert unseal(PLACE, sealed.data, keyring=keyring) == Opened(kind, seq, previous, sealed.crc, body)


@given(st.builds(
    Record, kind=st.sampled_from(Kind), key=st.text(), output=st.binary(), digest=st.text(),
    blob=st.none() | st.text(min_size=1), started_ms=st.integers(0, 2**53), seconds=st.floats(0, 1e6),
    attempt=st.integers(1, 99), code=st.text(), seq=st.integers(0, 2**53),
    extra=st.dictionaries(st.text(), st.none() | st.integers(0, 9) | st.text()),
))  # fmt: skip
def test_records_come_back_as_they_were(record):
    sealed = seal(PLACE, record.kind, *encode_record(record), seq=record.seq)
    assert decode_record(unseal(PLACE, sealed.data)) == record


@pytest.mark.parametrize("keyring", [None, KEYRING])
def test_every_flipped_bit_and_every_cut_is_seen(keyring):
    data = seal(PLACE, Kind.RESULT, *encode_record(Record(Kind.RESULT, "a", b'"x"')), seq=3, keyring=keyring).data
    for at in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[at] ^= 1 << bit
            with pytest.raises(RecordCorrupt):
                unseal(PLACE, bytes(damaged), keyring=keyring)
        with pytest.raises(RecordCorrupt):
            unseal(PLACE, data[:at], keyring=keyring)
    with pytest.raises(RecordCorrupt):
        unseal(PLACE, data + b"\0", keyring=keyring)


@settings(max_examples=300)
@given(st.binary(max_size=200), st.booleans(), st.booleans())
def test_no_bytes_raise_anything_but_the_typed_errors(tail, with_header, with_crc):
    data = tail
    if with_header:
        header = (b"FK" + tail[:20].ljust(20, b"\0"))[:22]
        body = tail[20:]
        crc = zlib.crc32(body, zlib.crc32(header)) if with_crc else 0
        data = header + struct.pack(">I", crc) + body
    for keyring in (None, KEYRING):
        try:
            opened = unseal(PLACE, data, keyring=keyring)
            split_body(opened.body)
            decode_record(opened)
            decode_snapshot(opened)
        except TYPED:
            pass


@given(st.binary(max_size=100))
def test_no_body_raises_anything_but_the_typed_errors(body):
    for decode in (decode_record, decode_snapshot):
        with contextlib.suppress(*TYPED):
            decode(Opened(Kind.SNAPSHOT, 1, 0, 0, body))


@pytest.mark.parametrize("body", [b"", b"{}", b"[]\n", b"{\n", b"{}\n", b'{"k":1,"s":"x","t":0,"n":1}\n', b"nul\n1"])
def test_a_body_without_what_a_record_has_is_damage(body):
    with pytest.raises(RecordCorrupt):
        decode_record(Opened(Kind.RESULT, 1, 0, 0, body))


@pytest.mark.parametrize("at", [2, 3, 4, 5], ids=["format", "codec", "kind", "flags"])
def test_what_a_newer_flashkit_wrote_is_refused_with_advice(at):
    data = seal(PLACE, Kind.RESULT, b"{}\n", seq=1).data
    with pytest.raises(RecordTooNew, match="update this worker"):
        unseal(PLACE, reseal(data, at, 99))


def test_large_values_are_compressed_and_those_that_claim_too_much_refused():
    body = b"the same words again and again " * 5000
    data = seal(PLACE, Kind.SNAPSHOT, body).data
    assert len(data) < len(body) / 20
    assert unseal(PLACE, data).body == body
    for claimed in (len(body) - 1, len(body) + 1, 2**32 - 1):
        header = bytearray(data[: HEADER_BYTES - 4])
        header[6:10] = struct.pack(">I", claimed)
        crc = struct.pack(">I", zlib.crc32(data[HEADER_BYTES:], zlib.crc32(header)))
        with pytest.raises(RecordCorrupt):
            unseal(PLACE, bytes(header) + crc + data[HEADER_BYTES:])


def test_where_there_is_no_zstd_values_are_compressed_with_zlib_and_zstd_ones_refused_with_advice(monkeypatch):
    body = b"the same words again and again " * 5000
    with_zstd = seal(PLACE, Kind.SNAPSHOT, body).data
    monkeypatch.setattr(records, "zstd", None)
    with_zlib = seal(PLACE, Kind.SNAPSHOT, body).data
    assert len(with_zlib) < len(body) / 20
    assert unseal(PLACE, with_zlib).body == body
    if with_zstd[5] == 2:
        with pytest.raises(RecordTooNew, match="pip install"):
            unseal(PLACE, with_zstd)
    damaged = with_zlib[:HEADER_BYTES] + b"\0" + with_zlib[HEADER_BYTES + 1 :]
    with pytest.raises(RecordCorrupt, match="cannot be decompressed"):
        unseal(PLACE, reseal(damaged, 2, 1))


def test_an_encrypted_record_opens_in_its_own_place_only():
    data = seal(PLACE, Kind.RESULT, b"{}\nsecret", seq=3, keyring=KEYRING).data
    assert b"secret" not in data
    for place in (PLACE._replace(session="s2"), PLACE._replace(incarnation="x"), PLACE._replace(namespace="b")):
        with pytest.raises(RecordCorrupt, match="changed, moved, or that key is another one"):
            unseal(place, data, keyring=KEYRING)
    for at in (4, 21):  # kind, number of the one before
        with pytest.raises(RecordCorrupt):
            unseal(PLACE, reseal(data, at, 1), keyring=KEYRING)


def test_with_keys_plain_records_are_refused_unless_they_are_wanted():
    data = seal(PLACE, Kind.RESULT, b"{}\n").data
    with pytest.raises(RecordCorrupt, match="not encrypted"):
        unseal(PLACE, data, keyring=KEYRING)
    assert unseal(PLACE, data, keyring=Keyring({7: b"k" * 32}, active=7, accept_plain=True)).body == b"{}\n"


def test_keys_are_read_from_text_and_bad_ones_refused_without_being_shown():
    text = f"2:{base64.b64encode(b'b' * 32).decode()}, 1:{base64.b64encode(b'a' * 16).decode()}"
    keyring = Keyring.from_text(text)
    assert (keyring.active, keyring.keys) == (2, {2: b"b" * 32, 1: b"a" * 16})
    assert "bbb" not in repr(keyring)
    for wrong in (
        "",
        "1",
        "1:???",
        f"1:{base64.b64encode(b'short').decode()}",
        f"999:{base64.b64encode(b'b' * 32).decode()}",
    ):
        with pytest.raises(ConfigurationError) as caught:
            Keyring.from_text(wrong)
        assert wrong.partition(":")[2] not in str(caught.value) or not wrong.partition(":")[2]


def test_nothing_in_the_store_turns_data_into_code():
    """Row 20 of the test matrix: stored data never names what runs."""
    forbidden = re.compile(r"\b(pickle|marshal|dill|shelve|eval\(|exec\(|import_module|__import__)")
    for path in Path(package.__file__).parent.rglob("*.py"):
        assert not forbidden.search(path.read_text()), path.name
