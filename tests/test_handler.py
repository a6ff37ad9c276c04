"""Typed input and output of handlers: every annotation a user may write, and every value that comes instead."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import functools
import math
import typing
from collections.abc import AsyncIterator, Generator, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pytest
from pydantic import BaseModel, Field, RootModel
from typing_extensions import TypedDict

from flashkit import DefinitionError, InputError, OutputError, Weights, cpu_endpoint, embedding_endpoint
from flashkit.handler import encode_json, parse_json

if TYPE_CHECKING:
    from somewhere import Missing


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Node:
    value: int
    children: list[Node]


@dataclasses.dataclass
class Picture:
    pixels: bytes
    color: Color = Color.RED


class PictureShape(TypedDict):
    pixels: bytes


class Query(BaseModel):
    text: str
    limit: int = 5


class Line(BaseModel):
    """A linked list, whose type contains itself and has no end."""

    next: Line


class Opaque:
    """A type that pydantic knows nothing of."""


def _contract(function):
    return cpu_endpoint(name="tool")(function).contract


def _parse(function, data):
    return _contract(function).parse_input(data)


def _refused(function, data) -> Any:
    with pytest.raises(InputError) as caught:
        _parse(function, data)
    return caught.value.report


def _encode(function, value):
    return parse_json(_contract(function).encode_output(value))


def _round_trip(function, *args, **kwargs):
    contract = _contract(function)
    return contract.parse_input(contract.make_input(args, kwargs))


def test_input_is_an_object_of_the_parameters():
    def tool(text: str, times: int = 2): ...

    assert _parse(tool, {"text": "a"}) == {"text": "a"}
    assert _parse(tool, {"text": "a", "times": "3"}) == {"text": "a", "times": 3}


def test_a_missing_value_is_named():
    def tool(text: str, times: int): ...

    report = _refused(tool, {"text": "a"})
    assert report.message == "endpoint 'tool': `times` is missing"
    assert report.hint == "it takes (text: str, times: int)"
    assert report.details == {"errors": [{"field": "times", "message": "`times` is missing"}]}


def test_an_unknown_value_is_refused_with_the_nearest_parameter():
    def tool(text: str = ""): ...

    assert _refused(tool, {"txet": "a"}).message == "endpoint 'tool': `txet` is not a parameter; did you mean `text`?"
    assert _refused(tool, {"zzz": 1}).message == "endpoint 'tool': `zzz` is not a parameter"


def test_a_misspelt_name_is_said_before_the_one_that_is_missing_for_it():
    def tool(text: str): ...

    report = _refused(tool, {"txet": "a"})
    assert report.message == "endpoint 'tool': `txet` is not a parameter; did you mean `text`? (and 1 more)"


def test_every_problem_is_listed_and_the_first_one_said():
    def tool(a: int, b: int, c: list[int]): ...

    report = _refused(tool, {"a": "x", "c": [1, "y"], "d": 1})
    assert [item["field"] for item in report.details["errors"]] == ["a", "b", "c.1", "d"]
    assert "`a` is 'x': input should be a valid integer" in report.message
    assert report.message.endswith("(and 3 more)")


def test_a_long_value_is_cut_in_the_message():
    def tool(a: int): ...

    assert len(_refused(tool, {"a": "x" * 100_000}).message) < 300


@pytest.mark.parametrize("data", [None, [], [1], "text", 5, True])
def test_input_that_is_no_object_is_refused(data):
    def tool(text: str): ...

    assert "must be a JSON object, not" in _refused(tool, data).message


def test_a_handler_without_parameters_takes_an_empty_object_only():
    def ping(): ...

    assert _parse(ping, {}) == {}
    assert "`x` is not a parameter" in _refused(ping, {"x": 1}).message


@pytest.mark.parametrize(
    "name", ["function", "context", "self", "cls", "name", "kwargs", "args", "schema", "copy", "data", "job", "json",
             "timeout", "model_config", "input", "session", "return_", "_private"]
)  # fmt: skip
async def test_a_parameter_may_have_any_name(name):
    scope: dict[str, Any] = {}
    exec(f"def tool({name}: int): return {name}", scope)
    endpoint = cpu_endpoint()(scope["tool"])
    assert await endpoint.local(**{name: 3}) == 3
    assert await endpoint.local(4) == 4


def test_other_names_go_to_the_open_keywords():
    def tool(a: int, **kwargs): ...

    assert _round_trip(tool, 1, b="x", kwargs=3) == {"a": 1, "b": "x", "kwargs": 3}
    assert "`a` is missing" in _refused(tool, {"b": 1}).message


def test_annotations_are_understood_as_strings_and_with_every_feature():
    def tool(  # noqa: PLR0917
        plain,
        text: str | None,
        choice: Literal["a", "b"],
        color: Color,
        size: Annotated[int, Field(gt=0, le=10)],
        moment: datetime.datetime,
        price: decimal.Decimal,
        pair: tuple[int, str],
        tags: set[str],
        table: dict[str, list[int]],
        optional: typing.Optional[int] = None,  # noqa: UP045
    ): ...

    data = {
        "plain": {"any": [1]},
        "text": None,
        "choice": "b",
        "color": "blue",
        "size": 3,
        "moment": "2026-01-02T03:04:05Z",
        "price": "1.10",
        "pair": [1, "x"],
        "tags": ["a", "a"],
        "table": {"x": [1]},
    }
    parsed = _parse(tool, data)
    assert parsed["color"] is Color.BLUE
    assert parsed["moment"] == datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    assert (parsed["price"], parsed["pair"], parsed["tags"]) == (decimal.Decimal("1.10"), (1, "x"), {"a"})
    assert _round_trip(tool, **parsed) == parsed
    assert "less than or equal to 10" in _refused(tool, data | {"size": 11}).message
    assert "'a' or 'b'" in _refused(tool, data | {"choice": "c"}).message


def test_a_field_may_be_sent_by_its_name_or_its_alias():
    def tool(text: Annotated[str, Field(alias="Text")]): ...

    assert _parse(tool, {"Text": "a"}) == _parse(tool, {"text": "a"}) == {"text": "a"}


def test_a_type_that_exists_for_type_checkers_only_is_explained():
    def tool(value: Missing): ...

    with pytest.raises(DefinitionError) as caught:
        _contract(tool).prepare()
    assert "annotated with 'Missing', which is not defined" in caught.value.report.message
    assert "not under TYPE_CHECKING" in caught.value.report.hint


def test_a_parameter_that_json_cannot_hold_is_explained_before_any_job():
    def array(value: np.ndarray): ...
    def opaque(value: Opaque, other: int): ...

    for function in (array, opaque):
        with pytest.raises(DefinitionError, match="has a type that cannot be checked"):
            _contract(function).prepare()


@pytest.mark.skipif("sys.version_info >= (3, 12)", reason="from 3.12 on pydantic understands typing.TypedDict")
def test_a_typed_dict_of_the_typing_module_is_explained():
    class Shape(typing.TypedDict):
        a: int

    def tool(value): ...

    tool.__annotations__["value"] = Shape
    with pytest.raises(DefinitionError, match=r"typing_extensions\.TypedDict"):
        _contract(tool).prepare()


def test_bytes_travel_as_base64_of_either_alphabet():
    def tool(data: bytes): ...

    assert _contract(tool).make_input([b"\xff\x00"], {}) == {"data": "_wA="}
    assert _parse(tool, {"data": "_wA="}) == _parse(tool, {"data": "/wA="}) == {"data": b"\xff\x00"}
    assert "base64" in _refused(tool, {"data": "not base64"}).message


@pytest.mark.parametrize("picture", [Picture(b"\xff\x00", Color.BLUE), Picture(b"")])
def test_bytes_in_a_dataclass_survive_alone_in_lists_and_in_results(picture):
    def alone(picture: Picture) -> Picture: ...
    def several(pictures: list[Picture], extra: int = 1) -> list[Picture]: ...

    assert _round_trip(alone, picture) == {"picture": picture}
    assert _round_trip(several, [picture]) == {"pictures": [picture]}
    contract = _contract(alone)
    assert contract.decode_output(parse_json(contract.encode_output(picture))) == picture


def test_bytes_in_a_typed_dict_survive():
    def alone(picture: PictureShape) -> PictureShape: ...

    picture: PictureShape = {"pixels": b"\xff"}
    assert _round_trip(alone, picture) == {"picture": picture}
    assert _encode(alone, picture) == {"pixels": "_w=="}


@pytest.mark.parametrize("data", [{"text": "a", "limit": 2}, {"text": "a"}])
def test_a_sole_model_is_the_whole_input(data):
    def search(query: Query): ...

    assert _parse(search, data) == {"query": Query(**data)}
    assert _contract(search).make_input([Query(**data)], {}) == {"text": "a", "limit": data.get("limit", 5)}


def test_problems_of_a_sole_model_are_named_by_its_fields():
    def draw(picture: Picture): ...
    def search(query: Query): ...

    assert _refused(search, {}).message == "endpoint 'tool': `text` is missing"
    assert "did you mean `pixels`" in _refused(draw, {"pixels": "", "pixles": ""}).message
    assert "must be a JSON object" in _refused(search, ["a"]).message


def test_a_sole_model_with_a_default_may_be_left_out():
    def search(query: Query = Query(text="x")): ...  # noqa: B008

    contract = _contract(search)
    assert contract.parse_input(contract.make_input([], {})) == {}
    assert contract.parse_input(None) == {}
    assert contract.parse_input({"text": "b"}) == {"query": Query(text="b")}


def test_a_model_among_others_or_that_may_be_none_is_one_value():
    def among(query: Query, page: int = 1): ...
    def maybe(query: Query | None = None): ...

    assert _parse(among, {"query": {"text": "a"}}) == {"query": Query(text="a")}
    assert _refused(among, {"query": {}}).details["errors"][0]["field"] == "query.text"
    assert _parse(maybe, {}) == {}
    assert _parse(maybe, {"query": None}) == {"query": None}


def test_a_sole_root_model_takes_its_list():
    def add(numbers: RootModel[list[int]]): ...

    assert _parse(add, [1, 2])["numbers"].root == [1, 2]
    assert _refused(add, [1, "x"]).details["errors"][0]["field"] == "1"


def test_a_recursive_type_is_parsed_and_has_a_finite_example():
    def walk(node: Node) -> Node: ...
    def endless(line: Line): ...

    tree = Node(1, [Node(2, [])])
    assert _round_trip(walk, tree) == {"node": tree}
    assert _parse(walk, _contract(walk).example_input())
    assert _contract(endless).example_input()


@pytest.mark.parametrize("number", [2**63, 2**70 + 1, -(2**80), 0.1 + 0.2, 1e308])
def test_numbers_of_any_size_survive(number):
    def tool(value): ...

    assert _round_trip(tool, number) == {"value": number}
    assert _encode(tool, number) == number


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_becomes_null(value):
    def floats() -> list[float]: ...
    def anything(): ...

    assert _encode(floats, [value]) == _encode(anything, [value]) == [None]


def test_a_half_character_is_an_error_of_whoever_wrote_it():
    def tool(value): ...

    assert "cannot be read" in _refused(tool, {"value": "\ud800"}).message
    with pytest.raises(InputError, match="has no JSON form"):
        _contract(tool).make_input(["\ud800"], {})
    with pytest.raises(OutputError, match="has no JSON form"):
        _encode(tool, "\ud800")


def test_plain_results_of_many_types_have_a_json_form():
    def tool(): ...

    result = {
        "set": {1},
        "tuple": (1, None),
        "decimal": decimal.Decimal("1.5"),
        "date": datetime.date(2026, 1, 2),
        "bytes": b"\xff",
        "array": np.arange(4, dtype=np.float32).reshape(2, 2),
        "scalar": np.float32(1.5),
        "enum": Color.RED,
        "model": Query(text="a"),
        "dataclass": Node(1, []),
        7: "number as key",
    }
    assert _encode(tool, result) == {
        "set": [1],
        "tuple": [1, None],
        "decimal": "1.5",
        "date": "2026-01-02",
        "bytes": "_w==",
        "array": [[0.0, 1.0], [2.0, 3.0]],
        "scalar": 1.5,
        "enum": "red",
        "model": {"text": "a", "limit": 5},
        "dataclass": {"value": 1, "children": []},
        "7": "number as key",
    }


def _circle() -> list[Any]:
    circle: list[Any] = []
    circle.append(circle)
    return circle


@pytest.mark.parametrize("value", [object(), print, _circle(), {"deep": [Opaque()]}, lambda: None])
def test_a_result_without_a_json_form_names_its_type_and_the_handler(value):
    def tool(): ...

    with pytest.raises(OutputError) as caught:
        _encode(tool, value)
    report = caught.value.report
    assert f"returned a {type(value).__name__}, which has no JSON form" in report.message
    assert report.where == f"test_handler.py:{tool.__code__.co_firstlineno}"


def test_a_result_of_another_type_than_declared_says_where():
    def tool() -> dict[str, list[int]]: ...

    with pytest.raises(OutputError) as caught:
        _encode(tool, {"a": [1, "x"]})
    assert "a.1 is 'x'" in caught.value.report.message
    assert caught.value.report.hint == "correct the result or the return annotation"


def test_an_array_may_be_the_declared_result():
    def tool() -> np.ndarray: ...

    assert _encode(tool, np.arange(3)) == [0, 1, 2]
    assert _contract(tool).decode_output([0, 1, 2]) == [0, 1, 2]


def test_a_result_comes_back_in_the_declared_type():
    def tool() -> dict[str, Picture]: ...

    contract = _contract(tool)
    result = {"a": Picture(b"\xff", Color.BLUE)}
    assert contract.decode_output(parse_json(contract.encode_output(result))) == result


def test_a_result_that_does_not_fit_comes_back_as_plain_values():
    def tool() -> Node: ...

    assert _contract(tool).decode_output({"old": "form"}) == {"old": "form"}
    assert _contract(tool).decode_output(None) is None


@pytest.mark.parametrize(
    "annotation",
    [Iterator[Node], typing.Iterator[Node], Generator[Node, None, None], typing.Iterable[Node], AsyncIterator[Node]],
)
def test_chunks_are_of_the_type_in_the_generators_annotation(annotation):
    def tool():
        yield

    tool.__annotations__["return"] = annotation
    contract = _contract(tool)
    node = Node(1, [])
    assert contract.decode_output([parse_json(contract.encode_output(node))]) == [node]
    with pytest.raises(OutputError):
        contract.encode_output("x")


@pytest.mark.parametrize("annotation", [typing.Iterator, Iterator, AsyncIterator, Generator, Any])
def test_a_generator_annotation_without_a_type_allows_any_chunk(annotation):
    def tool():
        yield

    tool.__annotations__["return"] = annotation
    assert _contract(tool).decode_output([1, "x"]) == [1, "x"]
    assert _contract(tool).encode_output({"a": 1}) == b'{"a":1}'


def _passing(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


def test_a_wrapped_generator_still_streams_and_keeps_its_parameters():
    @_passing
    def letters(text: str) -> Iterator[str]:
        yield from text

    @_passing
    async def tokens(text: str) -> AsyncIterator[str]:
        yield text

    for function in (letters, tokens):
        endpoint = cpu_endpoint()(function)
        assert endpoint.definition.streams
        assert endpoint.definition.signature == "(text: str)"


def test_an_async_wrapper_that_collects_a_generator_does_not_stream():
    def letters(text: str) -> list[str]:
        yield text

    @functools.wraps(letters)
    async def collected(text):
        return list(letters(text))

    assert not cpu_endpoint()(collected).definition.streams


async def test_methods_may_be_static_class_and_wrapped_methods():
    def plain(function):
        def wrapper(self, *, text: str):
            return function(self, text)

        return wrapper

    class Static:
        @staticmethod
        def run(text: str) -> str:
            return text

    class OfClass:
        @classmethod
        def run(cls, text: str) -> str:
            return cls.__name__ + text

    class Wrapped:
        @plain
        def run(self, text):
            return type(self).__name__ + text

    class WithOddSelf:
        def run(this, text: str) -> str:  # noqa: N805
            return text

    results = [await cpu_endpoint()(cls).local(text="a") for cls in (Static, OfClass, Wrapped, WithOddSelf)]
    assert results == ["a", "OfClassa", "Wrappeda", "a"]


async def test_partials_and_callable_objects_can_be_endpoints():
    class Adder:
        def __call__(self, a: int, b: int) -> int:
            return a + b

    assert await cpu_endpoint(name="partial")(functools.partial(Adder(), 1)).local(b=2) == 3
    assert await cpu_endpoint(name="object")(Adder()).local(1, 2) == 3


def test_arguments_that_do_not_fit_are_refused_before_anything_is_sent():
    def tool(text: str): ...

    contract = _contract(tool)
    for args, kwargs in (([], {}), (["a", "b"], {}), (["a"], {"text": "b"}), (["a"], {"other": 1})):
        with pytest.raises(InputError) as caught:
            contract.make_input(args, kwargs)
        assert caught.value.report.hint == "it takes (text: str)"


def test_arrays_and_models_are_arguments_in_their_json_form():
    def tool(vectors: list[list[float]], query: Query): ...

    sent = _contract(tool).make_input([np.eye(2)], {"query": Query(text="a")})
    assert sent == {"vectors": [[1.0, 0.0], [0.0, 1.0]], "query": {"text": "a", "limit": 5}}


def test_the_model_of_an_embedding_endpoint_is_not_an_argument():
    @embedding_endpoint(gpu="L4", weights=Weights("a/b"))
    async def search(texts: list[str], embed, limit: int = 3): ...

    assert search.contract.make_input([["a"], 2], {}) == {"texts": ["a"], "limit": 2}
    with pytest.raises(InputError, match="`embed` is not a parameter"):
        search.contract.parse_input({"texts": [], "embed": 1})


@pytest.mark.parametrize(
    ("annotation", "example"),
    [(str, "text"), (int, 1), (float, 1.0), (bool, True), (list[str], ["text"]), (Color, "red"), (dict[str, int], {}),
     (Any, None), (Literal["b", "a"], "b"), (int | str, 1), (Picture, {"pixels": "text"}), (list[Node], None)],
)  # fmt: skip
def test_an_example_has_the_shape_of_the_input(annotation, example):
    def tool(value, optional: int = 5): ...

    tool.__annotations__["value"] = annotation
    value = _contract(tool).example_input()["value"]
    assert value == example or example is None


def test_json_text_keeps_what_it_was_given():
    assert encode_json({"a": [1, "ä", None]}) == '{"a":[1,"ä",null]}'.encode()
