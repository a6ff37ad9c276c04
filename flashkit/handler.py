"""The user's function or class seen as a handler: its parameters, its kind, its typed input and output.

`Definition` is what a decorator produces at import time, without pydantic: it refuses what can never
work. `Contract` is built where jobs are made or run, with pydantic: it turns a job's `input` into
arguments and results into JSON text. JSON is produced once, as bytes, and never re-encoded.

Input shapes: `{"name": value, ...}` with the parameter names, or, for a handler whose only parameter
is a pydantic model, dataclass or TypedDict, that object itself. Bytes travel as base64 text, NaN and
infinities as null; numpy arrays and tensors as nested lists.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flashkit.catalog import nearest_names
from flashkit.engines.requests import EXAMPLES, answer_request
from flashkit.errors import DefinitionError, InputError, OutputError
from flashkit.spec import EndpointSpec, Kind

LIFECYCLE_METHODS = ("setup", "warmup", "teardown")
_EXAMPLE_DEPTH = 5
"""Types that contain themselves have no complete example."""

_GENERATOR_ORIGINS = (
    collections.abc.Iterator,
    collections.abc.Iterable,
    collections.abc.Generator,
    collections.abc.AsyncIterator,
    collections.abc.AsyncIterable,
    collections.abc.AsyncGenerator,
)


@dataclass(frozen=True, slots=True)
class Definition:
    """One decorated function or class, analysed without running it."""

    spec: EndpointSpec
    target: Callable[..., Any]
    """What the user wrote: the function, or the class."""
    function: Callable[..., Any]
    """The function that handles a job; a plain (unbound) method for classes."""
    where: str
    """Place of the definition, as `app.py:12`."""
    method: str | None = None
    """Name of the method that handles a job, for classes."""
    supplied: frozenset[str] = frozenset()
    """More parameters that the worker fills in: the request itself, say."""

    @property
    def is_class(self) -> bool:
        """True when the handler is a method of a class that is built once per worker."""
        return inspect.isclass(self.target)

    @property
    def streams(self) -> bool:
        """True when the handler yields partial outputs, itself or through decorators that use `functools.wraps`."""
        if inspect.iscoroutinefunction(self.function):
            return False
        function = inspect.unwrap(self.function)
        return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)

    @property
    def is_engine(self) -> bool:
        """True when there is no handler of the user's: the engine answers the jobs."""
        return self.function is answer_request

    @property
    def injected(self) -> str | None:
        """Name of the parameter that the worker fills in, if the handler has it: `session`, `embed` or `engine`."""
        name = injected_name(self.spec)
        return name if name in inspect.signature(self.function).parameters else None

    @property
    def parameters(self) -> tuple[inspect.Parameter, ...]:
        """The parameters that a caller sends, in order."""
        listed = list(inspect.signature(self.function).parameters.values())
        if self.method and not isinstance(inspect.getattr_static(self.target, self.method), staticmethod):
            listed = listed[1:]
        filled_in = {*self.supplied, self.injected}
        return tuple(parameter for parameter in listed if parameter.name not in filled_in)

    @property
    def signature(self) -> str:
        """The parameters as the user wrote them, for messages and listings."""
        if self.is_engine:
            return "(messages | prompt | input | route, body | openai_route, openai_input)"
        return str(inspect.Signature(self.parameters)).replace("'", "")

    @property
    def description(self) -> str:
        """The user's docstring, of the method or else of its class; empty without one."""
        return inspect.getdoc(self.function) or (inspect.cleandoc(self.target.__doc__ or "") if self.is_class else "")

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments by parameter name, as a call would bind them.

        Raises:
            InputError: They do not fit the handler's parameters.
        """
        try:
            bound = inspect.Signature(self.parameters).bind(*args, **kwargs)
        except TypeError as exc:
            raise InputError(
                f"endpoint {self.spec.name!r}: {exc}", hint=f"it takes {self.signature}", where=self.where
            ) from exc
        arguments = dict(bound.arguments)
        for parameter in self.parameters:
            if parameter.kind is parameter.VAR_KEYWORD:
                arguments.update(arguments.pop(parameter.name, {}))
        return arguments


def injected_name(spec: EndpointSpec) -> str | None:
    """Return the parameter that workers of such an endpoint fill in; callers never send it."""
    if spec.kind is Kind.ORCHESTRATOR:
        return "session"
    if spec.engine is None:
        return None
    return "embed" if spec.engine.type == "embedding" else "engine"


def define(target: Callable[..., Any], spec: EndpointSpec) -> Definition:
    """Return the checked definition of a function or class.

    Raises:
        DefinitionError: It cannot handle jobs, with the reason.
    """
    if not callable(target):
        raise DefinitionError(f"{target!r} is not a function or class", hint="decorate a function or class")
    method = _handler_method(target, spec.name) if inspect.isclass(target) else None
    function = _plain_function(target, method)
    code = getattr(inspect.unwrap(function), "__code__", None)
    where = f"{Path(code.co_filename).name}:{code.co_firstlineno}" if code else str(target)
    definition = Definition(spec=spec, target=target, function=function, where=where, method=method)
    for parameter in _require_parameters(definition):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
            raise DefinitionError(
                f"parameter {parameter.name!r} of endpoint {spec.name!r} has no name that a caller could send",
                hint="job inputs are JSON objects: use ordinary named parameters",
                where=where,
            )
    return definition


def _require_parameters(definition: Definition) -> tuple[inspect.Parameter, ...]:
    try:
        return definition.parameters
    except (TypeError, ValueError) as exc:  # builtins, for example, have none that Python knows
        raise DefinitionError(
            f"the parameters of endpoint {definition.spec.name!r} cannot be found out: {exc}",
            hint="decorate an ordinary function that calls it",
        ) from exc


def _handler_method(cls: type, endpoint: str) -> str:
    if inspect.isroutine(getattr(cls, "run", None)):
        return "run"
    public = [
        name
        for name, _ in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_") and name not in LIFECYCLE_METHODS
    ]
    if len(public) != 1:
        found = f"has {', '.join(public)}" if public else "has no public method"
        raise DefinitionError(
            f"class {cls.__name__} of endpoint {endpoint!r} {found}, so it is not clear what handles a job",
            hint="name the method that handles a job `run`",
        )
    return public[0]


def _plain_function(target: Callable[..., Any], method: str | None) -> Callable[..., Any]:
    if method is None:
        return target
    member = inspect.getattr_static(target, method)
    return getattr(member, "__func__", member)  # type: ignore[no-any-return]  # static and class methods wrap it


class Contract:
    """Typed input and output of one handler: arguments from JSON, JSON from results."""

    def __init__(self, definition: Definition) -> None:
        self._definition = definition

    def prepare(self) -> None:
        """Build the validators now, so that the first job does not pay for it.

        Raises:
            DefinitionError: A parameter or the result has a type that pydantic cannot check.
        """
        self._input_adapter  # noqa: B018 - built on first use
        self._output_adapter  # noqa: B018

    def parse_input(self, data: Any) -> dict[str, Any]:
        """Return keyword arguments for the handler from a job's `input`.

        Raises:
            InputError: Missing, unknown or ill-typed values; `details["errors"]` lists them all.
        """
        from pydantic import ValidationError

        sole = self._sole_model
        if sole and sole.default is not sole.empty and not data:
            return {}
        try:
            value = self._input_adapter.validate_json(encode_json(data))
        except ValidationError as exc:
            raise self._input_error(exc, data) from None
        except (TypeError, ValueError) as exc:
            raise InputError(f"`input` of endpoint {self._definition.spec.name!r} cannot be read: {exc}") from exc
        return {sole.name: value} if sole else value

    def encode_output(self, value: Any) -> bytes:
        """Return a result, or one yielded chunk, as JSON text.

        Raises:
            OutputError: It is not of the declared type, or has no JSON form.
        """
        from pydantic import ValidationError

        adapter = self._output_adapter
        try:
            if adapter is None:
                return encode_json(value)
            checked = adapter.validate_python(value)
            return bytes(adapter.dump_json(checked, fallback=_encode_other))
        except ValidationError as exc:
            raise self._output_error(exc) from None
        except (TypeError, ValueError) as exc:
            raise OutputError(
                f"endpoint {self._definition.spec.name!r} returned a {type(value).__name__}, "
                f"which has no JSON form: {exc}",
                hint="return plain values, dataclasses, pydantic models, bytes or arrays",
                where=self._definition.where,
            ) from exc

    def decode_output(self, data: Any) -> Any:
        """Return a result that came as JSON in the type that the handler declares.

        A result that does not fit (an older version of the worker, say) comes back as plain JSON values.
        """
        if self._definition.streams and isinstance(data, list):
            return [self.decode_chunk(chunk) for chunk in data]
        return self.decode_chunk(data)

    def decode_chunk(self, data: Any) -> Any:
        """Return one partial output in the declared type, like `decode_output`."""
        return decode_json(data, self._output_adapter)

    def make_input(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return the JSON `input` for a call with these arguments.

        Raises:
            InputError: The arguments do not fit, or one has no JSON form.
        """
        arguments = self._definition.bind(args, kwargs)
        data = arguments.get(self._sole_model.name, {}) if self._sole_model else arguments
        try:
            return parse_json(encode_json(data))
        except (TypeError, ValueError) as exc:
            raise InputError(
                f"an argument of endpoint {self._definition.spec.name!r} has no JSON form: {exc}",
                hint="send plain values, dataclasses, pydantic models, bytes or arrays",
            ) from exc

    def example_input(self) -> Any:
        """Return an `input` that has the right shape, made from the required parameters."""
        from pydantic.errors import PydanticInvalidForJsonSchema

        engine = self._definition.spec.engine
        if self._definition.is_engine and engine is not None:
            return dict(EXAMPLES.get(engine.type, {}))
        try:
            schema = self._input_adapter.json_schema()
        except PydanticInvalidForJsonSchema:
            return {}
        return _example(schema, schema.get("$defs", {}))

    def input_schema(self) -> dict[str, Any]:
        """Return the JSON schema of a job's `input`: always of an object, open where nothing is known."""
        from pydantic.errors import PydanticInvalidForJsonSchema

        try:
            schema = dict(self._input_adapter.json_schema())
        except PydanticInvalidForJsonSchema:
            schema = {}
        fields = schema.get("properties", {})
        for parameter in self._definition.parameters if not self._sole_model else ():
            if parameter.name in fields and _is_plain(parameter.default):
                fields[parameter.name].setdefault("default", parameter.default)
        schema.pop("title", None)  # a name of ours, or of a class that callers do not know
        return {"type": "object", **schema}

    @property
    def annotations(self) -> Mapping[str, Any]:
        """The types of parameters and of the result, as far as the user wrote them.

        Raises:
            DefinitionError: One is not defined where the function is.
        """
        return self._hints

    @cached_property
    def _hints(self) -> dict[str, Any]:
        try:
            return typing.get_type_hints(self._definition.function, include_extras=True)
        except NameError as exc:
            raise DefinitionError(
                f"endpoint {self._definition.spec.name!r} is annotated with {exc.name!r}, which is not defined",
                hint="import the types of parameters and results at run time, not under TYPE_CHECKING",
                where=self._definition.where,
            ) from exc
        except TypeError:
            return {}  # a functools.partial or a callable object

    @cached_property
    def _sole_model(self) -> inspect.Parameter | None:
        parameters = self._definition.parameters
        if len(parameters) != 1 or parameters[0].kind is inspect.Parameter.VAR_KEYWORD:
            return None
        annotation = self._hints.get(parameters[0].name)
        return parameters[0] if is_model(annotation) else None

    @cached_property
    def _input_adapter(self) -> Any:
        from typing import NotRequired

        from pydantic import ConfigDict
        from typing_extensions import TypedDict

        if self._sole_model:
            config = ConfigDict(extra="forbid", populate_by_name=True, val_json_bytes="base64")
            return self._build_adapter(self._hints[self._sole_model.name], config)
        fields: dict[str, Any] = {}
        open_ended = False
        for parameter in self._definition.parameters:
            if parameter.kind is parameter.VAR_KEYWORD:
                open_ended = True
                continue
            annotation = self._hints.get(parameter.name, Any)
            required = parameter.default is parameter.empty
            fields[parameter.name] = annotation if required else NotRequired[annotation]
        make_shape: Any = TypedDict  # built from values, which type checkers do not follow
        shape = make_shape("Input", fields)
        extra: Any = "allow" if open_ended else "forbid"
        config = ConfigDict(extra=extra, populate_by_name=True, val_json_bytes="base64")
        return self._build_adapter(shape, config)

    @cached_property
    def _output_adapter(self) -> Any:
        annotation = self._hints.get("return", Any)
        if self._definition.streams:
            annotation = _yielded_type(annotation)
        return None if annotation is Any else self._build_adapter(annotation, _output_config())

    def _build_adapter(self, annotation: Any, config: Any) -> Any:
        from pydantic import PydanticUserError

        try:
            return _adapter(annotation, config)
        except PydanticUserError as exc:
            reason = str(exc).partition("\n")[0]
            raise DefinitionError(
                f"endpoint {self._definition.spec.name!r} has a type that cannot be checked: {reason}",
                hint="annotate with plain types, dataclasses or pydantic models, or leave it out",
                where=self._definition.where,
            ) from exc

    def _input_error(self, exc: Any, data: Any) -> InputError:
        if not isinstance(data, Mapping) and not exc.errors()[0]["loc"]:
            return InputError(
                f"`input` of endpoint {self._definition.spec.name!r} must be a JSON object, not {_describe(data)}",
                hint=f"it takes {self._definition.signature}",
            )
        errors = [self._field_error(item) for item in exc.errors(include_url=False)]
        misspelt = (item["message"] for item in errors if "did you mean" in item["message"])
        first = next(misspelt, errors[0]["message"])  # a misspelt name is why another one is missing
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        return InputError(
            f"endpoint {self._definition.spec.name!r}: {first}{more}",
            hint=f"it takes {self._definition.signature}",
            details={"errors": errors},
        )

    def _field_error(self, item: Mapping[str, Any]) -> dict[str, Any]:
        field = ".".join(str(part) for part in item["loc"]) or "input"
        if item["type"] == "missing":
            message = f"`{field}` is missing"
        elif item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            near = nearest_names(field, self._field_names, limit=1)
            message = f"`{field}` is not a parameter" + (f"; did you mean `{near[0]}`?" if near else "")
        else:
            reason = item["msg"][:1].lower() + item["msg"][1:]
            message = f"`{field}` is {_describe(item['input'])}: {reason}"
        return {"field": field, "message": message}

    @property
    def _field_names(self) -> list[str]:
        if self._sole_model:
            return list(typing.get_type_hints(self._hints[self._sole_model.name]))
        return [parameter.name for parameter in self._definition.parameters]

    def _output_error(self, exc: Any) -> OutputError:
        first = exc.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"]) or "the result"
        return OutputError(
            f"endpoint {self._definition.spec.name!r} returned something else than it declares: "
            f"{path} is {_describe(first['input'])}: {first['msg']}",
            hint="correct the result or the return annotation",
            where=self._definition.where,
        )


def encode_json(value: Any) -> bytes:
    """Return any value that has a JSON form as JSON text; bytes as base64, NaN as null."""
    from pydantic_core import to_json

    return to_json(value, bytes_mode="base64", inf_nan_mode="null", fallback=_encode_other)


def plain_values(value: Any) -> Any:
    """Return a value as plain JSON values, the ones that `encode_json` writes."""
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(value, bytes_mode="base64", inf_nan_mode="null", fallback=_encode_other)


def parse_json(text: bytes) -> Any:
    """Return the values of a JSON text; unlike orjson's, its integers may be of any size."""
    from pydantic_core import from_json

    return from_json(text)


def decode_json(data: Any, adapter: Any) -> Any:
    """Return plain JSON values as the adapter's type; as they are where there is none or they do not fit."""
    from pydantic import ValidationError

    if adapter is None or data is None:
        return data
    try:
        return adapter.validate_json(encode_json(data))
    except ValidationError:
        return data


def output_adapter(annotation: Any) -> Any:
    """Return the pydantic adapter for a return annotation; None where it says nothing that can be checked."""
    from pydantic import PydanticUserError

    try:
        return None if annotation is Any else _adapter(annotation, _output_config())
    except PydanticUserError:
        return None


def _output_config() -> Any:
    from pydantic import ConfigDict

    return ConfigDict(arbitrary_types_allowed=True, ser_json_bytes="base64", val_json_bytes="base64")


def _adapter(annotation: Any, config: Any) -> Any:
    """Return an adapter that uses `config` for the type and, unless it has its own, for what is in it."""
    from pydantic import TypeAdapter
    from typing_extensions import TypeAliasType

    if is_model(annotation):  # pydantic takes a config for dataclasses and TypedDicts only behind another name
        annotation = TypeAliasType("Value", annotation)  # type: ignore[misc]  # built from a value
    return TypeAdapter(annotation, config=config)


def _yielded_type(annotation: Any) -> Any:
    """Return what a generator with this annotation yields; Any where it does not say."""
    if annotation in _GENERATOR_ORIGINS:
        return Any
    if typing.get_origin(annotation) not in _GENERATOR_ORIGINS:
        return annotation
    return next(iter(typing.get_args(annotation)), Any)


def _encode_other(value: Any) -> Any:
    """Encode what pydantic does not know: numpy arrays and scalars, tensors, anything with tolist()."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is not JSON")


def is_model(annotation: Any) -> bool:
    """True for types whose JSON form is one object with named fields."""
    return inspect.isclass(annotation) and (
        hasattr(annotation, "__pydantic_validator__")
        or dataclasses.is_dataclass(annotation)
        or typing.is_typeddict(annotation)
        or hasattr(annotation, "__total__")
    )


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, bool))


def _describe(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"  # noqa: PLR2004 - one line of a terminal


def _example(schema: Mapping[str, Any], definitions: Mapping[str, Any], depth: int = 0) -> Any:
    """Return the simplest value that a JSON schema accepts, as far as its types say."""
    if depth > _EXAMPLE_DEPTH:
        return None
    if "$ref" in schema:
        return _example(definitions[schema["$ref"].rpartition("/")[2]], definitions, depth + 1)
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return _example(schema[key][0], definitions, depth + 1)
    for key in ("default", "const"):
        if key in schema:
            return schema[key]
    if schema.get("enum"):
        return schema["enum"][0]
    if schema.get("type") == "array":
        item = _example(schema.get("items", {}), definitions, depth + 1)
        return [] if item is None else [item]
    if schema.get("type") == "object":
        fields = schema.get("properties", {})
        return {name: _example(fields[name], definitions, depth + 1) for name in schema.get("required", ())}
    return {"string": "text", "integer": 1, "number": 1.0, "boolean": True}.get(str(schema.get("type")))
