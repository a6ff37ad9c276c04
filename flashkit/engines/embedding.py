"""`Embedding(...)`: a sentence-embedding model or a reranker, for `embedding_endpoint`.

What is not given here is read from the model's folder in the worker: pooling, prompts, how long texts may be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Never, Self

from flashkit.catalog import nearest_names
from flashkit.errors import DefinitionError
from flashkit.spec import EngineSpec, Weights

Pooling = Literal["mean", "cls", "last", "max"]
DType = Literal["float32", "float16", "bfloat16"]

POOLINGS: Final = ("mean", "cls", "last", "max")
DTYPES: Final = ("float32", "float16", "bfloat16")
TOO_LONG: Final = ("truncate", "refuse")


@dataclass(frozen=True, slots=True)
class EmbeddingOptions:
    """The options of an `Embedding(...)`, as they travel in `EngineSpec.options`."""

    pooling: str | None = None
    normalize: bool = True
    max_batch_tokens: int | None = None
    max_queue_ms: float | None = None
    dtype: str | None = None
    max_length: int | None = None
    too_long: str = "truncate"
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Texts that go before others, by name: `query`, `document`, …"""
    matryoshka: bool | None = None
    served_model_name: tuple[str, ...] = ()
    warmup: tuple[str, ...] | None = None
    compile: bool = False
    trust_remote_code: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return what differs from the defaults, as plain JSON values."""
        changed = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != _default(f)
        }
        return {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}

    @classmethod
    def from_json(cls, options: Mapping[str, Any]) -> Self:
        """Read the options of an `EngineSpec`."""
        values = dict(options)
        for name in ("served_model_name", "warmup"):
            if values.get(name) is not None:
                values[name] = tuple(values[name])
        return cls(**values)


def Embedding(  # noqa: N802 - reads as the engine it declares
    weights: Weights,
    *,
    pooling: Pooling | None = None,
    normalize: bool = True,
    max_batch_tokens: int | None = None,
    max_queue_ms: float | None = None,
    dtype: DType | None = None,
    max_length: int | None = None,
    too_long: Literal["truncate", "refuse"] = "truncate",
    query_prompt: str | None = None,
    document_prompt: str | None = None,
    prompts: Mapping[str, str] | None = None,
    matryoshka: bool | None = None,
    served_model_name: str | Sequence[str] = (),
    warmup: Sequence[str] | None = None,
    compile: bool = False,  # noqa: A002 - what torch calls it
    trust_remote_code: bool = False,
    **unknown: Never,
) -> EngineSpec:
    """Return an embedding engine; with the weights of a cross-encoder, one that ranks documents.

    Args:
        weights: A model in the layout of sentence-transformers, or a plain encoder of transformers.
        pooling: How a text's vector is made of its tokens': `mean`, `cls` (the first), `last` or `max`. By default
            what the model's folder says, and `mean` where it says nothing.
        normalize: Give every vector the length 1.
        max_batch_tokens: Tokens of one batch, padding included; 2,048 on a CPU and 16,384 on a GPU by default.
        max_queue_ms: How long a text may be passed over for others that fit a batch better, where there is padding; by
            default as long as four batches take, or one and a half times the queue. Nothing waits while the model is
            idle.
        dtype: What the model computes in. By default half precision where the processor has instructions for it and
            this model's vectors stay the same (cosine of at least 0.9999, tried when it is loaded), else `float32`.
        max_length: Tokens of a text, at most; by default what the model was made for.
        too_long: What becomes of longer texts: `truncate`, which answers tell, or `refuse`.
        query_prompt: Goes before the texts of `embed.queries()`; by default the model's own.
        document_prompt: Goes before the texts of `embed.documents()`; by default the model's own.
        prompts: More prompts by name.
        matryoshka: The first numbers of a vector are a shorter vector, so `dimensions` may be asked for. By default
            what the model's folder says.
        served_model_name: Name or names that requests may give the model, instead of the weights' name.
        warmup: Texts that are embedded before the first job, besides short and long ones; `[]` for none at all.
        compile: Compile the model with its first batch: it starts a minute or two later, and is faster then, but on a
            CPU only where texts are padded without it, too.
        trust_remote_code: Run Python code that comes with the weights.

    Raises:
        DefinitionError: An option does not exist or cannot work.

    Example:
        >>> Embedding(Weights("BAAI/bge-small-en-v1.5"), pooling="cls", max_length=256).options
        {'pooling': 'cls', 'max_length': 256}
    """
    given = dict(locals())
    _refuse_unknown(given.pop("unknown"), given)
    if not isinstance(weights, Weights):
        raise DefinitionError(
            f"Embedding({weights!r}) names no weights", hint='write Embedding(Weights("organisation/name"))'
        )
    options = EmbeddingOptions(
        pooling=_one_of("pooling", pooling, POOLINGS),
        normalize=_flag("normalize", normalize),
        max_batch_tokens=_whole("max_batch_tokens", max_batch_tokens),
        max_queue_ms=_milliseconds("max_queue_ms", max_queue_ms),
        dtype=_one_of("dtype", dtype, DTYPES),
        max_length=_whole("max_length", max_length),
        too_long=_one_of("too_long", too_long, TOO_LONG) or "truncate",
        prompts=_prompts(prompts, {"query": query_prompt, "document": document_prompt}),
        matryoshka=None if matryoshka is None else _flag("matryoshka", matryoshka),
        served_model_name=_names(served_model_name),
        warmup=None if warmup is None else _texts("warmup", warmup),
        compile=_flag("compile", compile),
        trust_remote_code=_flag("trust_remote_code", trust_remote_code),
    )
    _check_fit(options)
    return EngineSpec("embedding", weights, options.to_json())


def _default(option: dataclasses.Field[Any]) -> Any:
    return option.default if option.default_factory is dataclasses.MISSING else option.default_factory()


def _refuse_unknown(unknown: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for option in unknown:
        near = nearest_names(option, known, limit=1)
        raise DefinitionError(
            f"Embedding has no option {option!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
            hint=f"options: {', '.join(sorted(known))}",
        )


def _check_fit(options: EmbeddingOptions) -> None:
    budget, length = options.max_batch_tokens, options.max_length
    if budget is not None and length is not None and budget < length:
        raise DefinitionError(
            f"Embedding(max_batch_tokens={budget}, max_length={length}): the longest text is in no batch",
            hint="let a batch have at least max_length tokens",
        )


def _refuse(option: str, value: Any, what: str, hint: str | None = None) -> DefinitionError:
    return DefinitionError(f"Embedding({option}={value!r}) is {what}", hint=hint)


def _one_of(option: str, value: Any, known: Sequence[str]) -> str | None:
    if value is None or (isinstance(value, str) and value in known):
        return value
    near = nearest_names(str(value), known, limit=1)
    what = "not known" + (f"; did you mean {near[0]!r}?" if near else "")
    raise _refuse(option, value, what, f"it may be {', '.join(known)}")


def _flag(option: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _refuse(option, value, "neither True nor False")
    return value


def _whole(option: str, value: Any) -> int | None:
    if value is not None and (type(value) is not int or value < 1):
        raise _refuse(option, value, "not a whole number of at least 1")
    return value


def _milliseconds(option: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise _refuse(option, value, "not a number of milliseconds")
    return float(value)


def _prompts(named: Any, single: Mapping[str, Any]) -> dict[str, str]:
    if named is not None and not isinstance(named, Mapping):
        raise _refuse("prompts", named, "not a mapping from names to texts", 'prompts={"query": "query: "}')
    given = {**(named or {}), **{name: text for name, text in single.items() if text is not None}}
    for name, text in given.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise _refuse("prompts", {name: text}, "not a name and a text", 'prompts={"query": "query: "}')
    return given


def _names(value: Any) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else value
    names = _texts("served_model_name", names)
    if not all(names):
        raise _refuse("served_model_name", value, "an empty name")
    return names


def _texts(option: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(text, str) for text in value):
        raise _refuse(option, value, "not a list of texts")
    return tuple(value)
