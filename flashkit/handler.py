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
from flashkit.errors import DefinitionError, InputError, OutputError
from flashkit.spec import EndpointSpec, Kind

INJECTED: Mapping[Kind, str] = {Kind.ORCHESTRATOR: "session", Kind.EMBEDDING: "embed"}
"""Parameter that the worker fills in, by kind of endpoint; callers never send it."""
LIFECYCLE_METHODS = ("setup", "warmup", "teardown")

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

    @property
    def is_class(self) -> bool:
        """True when the handler is a method of a class that is built once per worker."""
        return inspect.isclass(self.target)

    @property
    def streams(self) -> bool:
        """True when the handler yields partial outputs."""
        return inspect.isgeneratorfunction(self.function) or inspect.isasyncgenfunction(self.function)

    @property
    def is_async(self) -> bool:
        """True when the handler runs on the event loop; others run in threads."""
        return inspect.iscoroutinefunction(self.function) or inspect.isasyncgenfunction(self.function)

    @property
    def injected(self) -> str | None:
        """Name of the parameter that the worker fills in, if the handler has it."""
        name = INJECTED.get(self.spec.kind)
        return name if name in inspect.signature(self.function).parameters else None

    @property
    def parameters(self) -> tuple[inspect.Parameter, ...]:
        """The parameters that a caller sends, in order."""
        listed = list(inspect.signature(self.function).parameters.values())
        if self.is_class:
            listed = listed[1:]
        return tuple(parameter for parameter in listed if parameter.name != self.injected)

    @property
    def signature(self) -> str:
        """The parameters as the user wrote them, for messages and listings."""
        return str(inspect.Signature(self.parameters)).replace("'", "")

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


def define(target: Callable[..., Any], spec: EndpointSpec) -> Definition:
    """Return the checked definition of a function or class.

    Raises:
        DefinitionError: It cannot handle jobs, with the reason.
    """
    if not callable(target):
        raise DefinitionError(f"{target!r} is not a function or class", hint="decorate a function or class")
    function = _handler_method(target, spec.name) if inspect.isclass(target) else target
    code = inspect.unwrap(function).__code__ if hasattr(inspect.unwrap(function), "__code__") else None
    where = f"{Path(code.co_filename).name}:{code.co_firstlineno}" if code else str(target)
    definition = Definition(spec=spec, target=target, function=function, where=where)
    for parameter in definition.parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
            raise DefinitionError(
                f"parameter {parameter.name!r} of endpoint {spec.name!r} has no name that a caller could send",
                hint="job inputs are JSON objects: use ordinary named parameters",
                where=where,
            )
    return definition


def _handler_method(cls: type, endpoint: str) -> Callable[..., Any]:
    public = {
        name: member
        for name, member in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_") and name not in LIFECYCLE_METHODS
    }
    if "run" in public:
        return public["run"]
    if len(public) != 1:
        found = f"has {', '.join(sorted(public))}" if public else "has no public method"
        raise DefinitionError(
            f"class {cls.__name__} of endpoint {endpoint!r} {found}, so it is not clear what handles a job",
            hint="name the method that handles a job `run`",
        )
    return next(iter(public.values()))


class Contract:
    """Typed input and output of one handler: arguments from JSON, JSON from results."""

    def __init__(self, definition: Definition) -> None:
        self._definition = definition

    def prepare(self) -> None:
        """Build the validators now, so that the first job does not pay for it.

        Raises:
            DefinitionError: A parameter or the result has a type that pydantic cannot check.
        """
        from pydantic import PydanticSchemaGenerationError

        try:
            self._input_adapter  # noqa: B018 - built on first use
            self._output_adapter  # noqa: B018
        except PydanticSchemaGenerationError as exc:
            raise DefinitionError(
                f"endpoint {self._definition.spec.name!r} has a type that cannot be checked: {exc}",
                hint="annotate with plain types, dataclasses or pydantic models, or leave it out",
                where=self._definition.where,
            ) from exc

    def parse_input(self, data: Any) -> dict[str, Any]:
        """Return keyword arguments for the handler from a job's `input`.

        Raises:
            InputError: Missing, unknown or ill-typed values; `details["errors"]` lists them all.
        """
        import orjson
        from pydantic import ValidationError

        try:
            value = self._input_adapter.validate_json(orjson.dumps(data))
        except ValidationError as exc:
            raise self._input_error(exc, data) from None
        return {self._sole_model.name: value} if self._sole_model else value

    def encode_output(self, value: Any) -> bytes:
        """Return a result, or one yielded chunk, as JSON text.

        Raises:
            OutputError: It is not of the declared type, or has no JSON form.
        """
        from pydantic import PydanticSchemaGenerationError, ValidationError
        from pydantic_core import PydanticSerializationError

        adapter = self._output_adapter
        try:
            if adapter is None:
                return encode_json(value)
            checked = adapter.validate_python(value)
            return bytes(adapter.dump_json(checked, fallback=_encode_other))
        except ValidationError as exc:
            raise self._output_error(exc) from None
        except (PydanticSerializationError, PydanticSchemaGenerationError, TypeError, ValueError) as exc:
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
        import orjson
        from pydantic_core import PydanticSerializationError

        arguments = self._definition.bind(args, kwargs)
        data = arguments.get(self._sole_model.name) if self._sole_model else arguments
        try:
            return orjson.loads(encode_json(data))
        except (PydanticSerializationError, TypeError, ValueError) as exc:
            raise InputError(
                f"an argument of endpoint {self._definition.spec.name!r} has no JSON form: {exc}",
                hint="send plain values, dataclasses, pydantic models, bytes or arrays",
            ) from exc

    def example_input(self) -> Any:
        """Return an `input` that has the right shape, made from the required parameters."""
        schema = self._input_adapter.json_schema()
        return _example(schema, schema.get("$defs", {}))

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

    @cached_property
    def _sole_model(self) -> inspect.Parameter | None:
        parameters = self._definition.parameters
        if len(parameters) != 1 or parameters[0].kind is inspect.Parameter.VAR_KEYWORD:
            return None
        annotation = self._hints.get(parameters[0].name)
        return parameters[0] if _is_model(annotation) else None

    @cached_property
    def _input_adapter(self) -> Any:
        from typing import NotRequired

        from pydantic import ConfigDict, TypeAdapter
        from typing_extensions import TypedDict

        if self._sole_model:
            return TypeAdapter(self._hints[self._sole_model.name])
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
        shape.__pydantic_config__ = ConfigDict(
            extra="allow" if open_ended else "forbid", arbitrary_types_allowed=True, val_json_bytes="base64"
        )
        return TypeAdapter(shape)

    @cached_property
    def _output_adapter(self) -> Any:
        annotation = self._hints.get("return", Any)
        if self._definition.streams and typing.get_origin(annotation) in _GENERATOR_ORIGINS:
            annotation = typing.get_args(annotation)[0]
        return output_adapter(annotation)

    def _input_error(self, exc: Any, data: Any) -> InputError:
        if not isinstance(data, Mapping):
            return InputError(
                f"`input` of endpoint {self._definition.spec.name!r} must be a JSON object, not {_describe(data)}",
                hint=f"it takes {self._definition.signature}",
            )
        errors = [self._field_error(item) for item in exc.errors(include_url=False)]
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        return InputError(
            f"endpoint {self._definition.spec.name!r}: {errors[0]['message']}{more}",
            hint=f"it takes {self._definition.signature}",
            details={"errors": errors},
        )

    def _field_error(self, item: Mapping[str, Any]) -> dict[str, Any]:
        field = ".".join(str(part) for part in item["loc"])
        if item["type"] == "missing":
            message = f"`{field}` is missing"
        elif item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            near = nearest_names(field, [parameter.name for parameter in self._definition.parameters], limit=1)
            message = f"`{field}` is not a parameter" + (f"; did you mean `{near[0]}`?" if near else "")
        else:
            reason = item["msg"][:1].lower() + item["msg"][1:]
            message = f"`{field}` is {_describe(item['input'])}: {reason}"
        return {"field": field, "message": message}

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


def decode_json(data: Any, adapter: Any) -> Any:
    """Return plain JSON values as the adapter's type; as they are where there is none or they do not fit."""
    import orjson
    from pydantic import ValidationError

    if adapter is None or data is None:
        return data
    try:
        return adapter.validate_json(orjson.dumps(data))
    except ValidationError:
        return data


def output_adapter(annotation: Any) -> Any:
    """Return the pydantic adapter for a return annotation; None where it says nothing."""
    from pydantic import ConfigDict, TypeAdapter

    if annotation is Any:
        return None
    if _is_model(annotation):
        return TypeAdapter(annotation)
    config = ConfigDict(arbitrary_types_allowed=True, ser_json_bytes="base64", val_json_bytes="base64")
    return TypeAdapter(annotation, config=config)


def _encode_other(value: Any) -> Any:
    """Encode what pydantic does not know: numpy arrays and scalars, tensors, anything with tolist()."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is not JSON")


def _is_model(annotation: Any) -> bool:
    """True for types whose JSON form is one object with named fields."""
    return inspect.isclass(annotation) and (
        hasattr(annotation, "__pydantic_validator__")
        or dataclasses.is_dataclass(annotation)
        or typing.is_typeddict(annotation)
        or hasattr(annotation, "__total__")
    )


def _describe(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"  # noqa: PLR2004 - one line of a terminal


def _example(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Any:
    """Return the simplest value that a JSON schema accepts, as far as its types say."""
    if "$ref" in schema:
        return _example(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return _example(schema[key][0], definitions)
    for key in ("default", "const"):
        if key in schema:
            return schema[key]
    if schema.get("enum"):
        return schema["enum"][0]
    if schema.get("type") == "array":
        return [_example(schema.get("items", {}), definitions)]
    if schema.get("type") == "object":
        fields = schema.get("properties", {})
        return {name: _example(fields[name], definitions) for name in schema.get("required", ())}
    return {"string": "text", "integer": 1, "number": 1.0, "boolean": True}.get(str(schema.get("type")))
