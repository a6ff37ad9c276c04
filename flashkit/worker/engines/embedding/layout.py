"""What a model's folder says of itself: sentence-transformers' layout, or a plain encoder of transformers.

Read without torch. What the declaration says goes before what the folder says; what neither can be served with is
refused by name, because a vector that is made in another way than the model was trained for looks like any other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from flashkit.engines.embedding import EmbeddingOptions
from flashkit.errors import ConfigurationError

DEFAULT_MAX_LENGTH: Final = 512
"""For a folder that says nothing of it."""
_SILLY_LENGTH: Final = 10**6
"""What tokenizers say when nobody told them."""
_POOLING_FLAGS: Final = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
_POOLINGS_HERE: Final = frozenset({"cls", "mean", "max", "last"})
_OTHER_NAMES: Final = {"lasttoken": "last"}
_ACTIVATIONS: Final = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU")


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """A linear layer after pooling."""

    folder: Path
    in_features: int
    out_features: int
    has_bias: bool
    activation: str
    """Name of a module in `torch.nn`."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How texts become vectors, or pairs of texts become scores, with this model."""

    folder: Path
    """Where the encoder is."""
    is_cross_encoder: bool = False
    pooling: str = "mean"
    dense: tuple[DenseLayer, ...] = ()
    max_length: int = DEFAULT_MAX_LENGTH
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    """Name of the prompt for texts that nobody says anything of."""
    is_matryoshka: bool = False
    activation: str = "Sigmoid"
    """Of a cross-encoder's scores: `Sigmoid` or `Identity`."""


def read_layout(folder: Path, options: EmbeddingOptions) -> Layout:
    """Return how to use the model in a folder.

    Raises:
        ConfigurationError: The folder is no model's, or one that cannot be served here.
    """
    config = _read_json(folder / "config.json")
    modules = _read_json(folder / "modules.json")
    if config is None and modules is None:
        raise ConfigurationError(
            f"{folder} has no config.json, so it is no model of transformers",
            hint="look into the folder; a download may have been cut short",
        )
    if modules is None or _is_cross_encoder(folder, config or {}):
        return _plain_layout(folder, config or {}, options)
    return _sentence_layout(folder, modules, options)


def _plain_layout(folder: Path, config: Mapping[str, Any], options: EmbeddingOptions) -> Layout:
    is_cross_encoder = _is_cross_encoder(folder, config)
    return Layout(
        folder=folder,
        is_cross_encoder=is_cross_encoder,
        pooling=options.pooling or "mean",
        max_length=_max_length(folder, config, options),
        prompts=dict(options.prompts),
        is_matryoshka=_is_matryoshka(config, options),
        activation=_score_activation(config),
    )


def _sentence_layout(folder: Path, modules: Sequence[Mapping[str, Any]], options: EmbeddingOptions) -> Layout:
    kinds = [
        (str(module.get("type", "")).rpartition(".")[2], folder / str(module.get("path", ""))) for module in modules
    ]
    _check_modules(folder, [kind for kind, _ in kinds])
    encoder = next(path for kind, path in kinds if kind == "Transformer")
    config = _read_json(encoder / "config.json") or {}
    sentence = _sentence_config(encoder)
    whole = _read_json(folder / "config_sentence_transformers.json") or {}
    prompts = {name: text for name, text in (whole.get("prompts") or {}).items() if isinstance(text, str)}
    pooling_folder = next((path for kind, path in kinds if kind == "Pooling"), None)
    return Layout(
        folder=encoder,
        pooling=options.pooling or _read_pooling(pooling_folder),
        dense=tuple(_read_dense(path) for kind, path in kinds if kind == "Dense"),
        max_length=_max_length(encoder, config, options, sentence.get("max_seq_length")),
        lower_case=bool(sentence.get("do_lower_case", False)),
        prompts={**prompts, **options.prompts},
        default_prompt=_default_prompt(whole, {**prompts, **options.prompts}),
        is_matryoshka=_is_matryoshka({**config, **whole}, options),
    )


def _check_modules(folder: Path, kinds: Sequence[str]) -> None:
    unknown = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Dense", "Normalize")]
    if unknown or kinds[:1] != ["Transformer"]:
        raise ConfigurationError(
            f"the model in {folder} is made of {', '.join(kinds) or 'nothing'}: "
            f"{', '.join(unknown) or 'one without a Transformer at its head'} cannot be served",
            hint="models of Transformer, Pooling, Dense and Normalize can",
        )


def _sentence_config(encoder: Path) -> Mapping[str, Any]:
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"):
        if (found := _read_json(encoder / f"sentence_{kind}_config.json")) is not None:
            return found  # type: ignore[no-any-return]  # an object
    return {}


def _read_pooling(folder: Path | None) -> str:
    config = (_read_json(folder / "config.json") if folder else None) or {}
    named = config.get("pooling_mode")
    if isinstance(named, str):
        modes = [_OTHER_NAMES.get(named, named)]
    else:
        modes = [mode for flag, mode in _POOLING_FLAGS.items() if config.get(flag)]
    if len(modes) > 1 or not _POOLINGS_HERE.issuperset(modes):
        raise ConfigurationError(
            f"the model in {folder} makes vectors by {' and '.join(modes)}, which cannot be served",
            hint=f"one of {', '.join(sorted(_POOLINGS_HERE))} can; Embedding(..., pooling=...) chooses another one",
        )
    if config.get("include_prompt") is False:
        raise ConfigurationError(
            f"the model in {folder} leaves prompts out of the mean (include_prompt), which cannot be served",
            hint="choose another model",
        )
    return modes[0] if modes else "mean"


def _read_dense(folder: Path) -> DenseLayer:
    config = _read_json(folder / "config.json") or {}
    name = str(config.get("activation_function", "Identity")).rpartition(".")[2]
    if name not in _ACTIVATIONS:
        raise ConfigurationError(
            f"the model's layer in {folder} has the activation {name!r}, which cannot be served",
            hint=f"these can: {', '.join(_ACTIVATIONS)}",
        )
    sizes = int(config.get("in_features", 0)), int(config.get("out_features", 0))
    return DenseLayer(folder, *sizes, has_bias=bool(config.get("bias", True)), activation=name)


def _is_cross_encoder(folder: Path, config: Mapping[str, Any]) -> bool:
    architectures = [str(name) for name in config.get("architectures") or ()]
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        return False
    labels = config.get("num_labels") or len(config.get("id2label") or {0: "", 1: ""})
    if labels != 1:
        raise ConfigurationError(
            f"the model in {folder} is a classifier of {labels} labels: it neither embeds nor ranks texts",
            hint="a cross-encoder has one label",
        )
    return True


def _score_activation(config: Mapping[str, Any]) -> str:
    nested = config.get("sentence_transformers")
    named = nested.get("activation_fn") if isinstance(nested, Mapping) else None
    name = str(named or config.get("sbert_ce_default_activation_function") or "Sigmoid").rpartition(".")[2]
    if name not in ("Identity", "Sigmoid"):
        raise ConfigurationError(f"the cross-encoder's scores go through {name!r}, which cannot be served")
    return name


def _max_length(folder: Path, config: Mapping[str, Any], options: EmbeddingOptions, own: Any = None) -> int:
    """Return the most tokens of a text: as declared, or as trained, or as many as there are positions."""
    positions = _positions(config)
    if options.max_length is not None:
        if positions is not None and options.max_length > positions:
            raise ConfigurationError(
                f"Embedding(max_length={options.max_length}) is more than the {positions} tokens that the model knows "
                "positions for",
                hint=f"set it to {positions} at most, or leave it out",
            )
        return options.max_length
    tokenizer = (_read_json(folder / "tokenizer_config.json") or {}).get("model_max_length")
    known = [value for value in (own or tokenizer, positions) if isinstance(value, int) and 0 < value < _SILLY_LENGTH]
    return min(known, default=DEFAULT_MAX_LENGTH)


def _positions(config: Mapping[str, Any]) -> int | None:
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int) or positions <= 0 or config.get("position_embedding_type") in ("rope", "alibi"):
        return None
    # RoBERTa's kin count positions from behind the padding token.
    offset = int(config.get("pad_token_id") or 0) + 1 if config.get("model_type") in _OFFSET_POSITIONS else 0
    return positions - offset


_OFFSET_POSITIONS: Final = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet", "xlm-roberta-xl", "longformer"})


def _is_matryoshka(config: Mapping[str, Any], options: EmbeddingOptions) -> bool:
    if options.matryoshka is not None:
        return options.matryoshka
    return bool(config.get("is_matryoshka") or config.get("matryoshka_dimensions") or config.get("truncate_dim"))


def _default_prompt(config: Mapping[str, Any], prompts: Mapping[str, str]) -> str | None:
    name = config.get("default_prompt_name")
    return name if isinstance(name, str) and name in prompts else None


def _read_json(path: Path) -> Any:
    """Return a file's JSON value, None where there is no such file."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        raise ConfigurationError(
            f"{path} cannot be read: {exc}", hint="`flashkit weights verify` looks for damaged files"
        ) from exc
