"""From a model's folder to a model in memory, in the precision that keeps its vectors.

Half precision is used by itself only where the processor has instructions for it, and where this model, tried on a few
texts when it is loaded, gives the vectors that it gives in float32. On a GPU the whole model is halved, and weights
that are stored in half precision are left as they are. On a CPU only the linear layers are halved, which is where the
time goes; sums, norms and softmax stay in float32.

Texts go through a model without padding on the same condition.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Final

from flashkit.engines.embedding import EmbeddingOptions
from flashkit.errors import ConfigurationError
from flashkit.worker.engines.embedding.layout import DenseLayer, Layout
from flashkit.worker.engines.embedding.model import Device, Model
from flashkit.worker.engines.embedding.packed import PACKED, packing_of, register
from flashkit.worker.engines.embedding.tokens import Tokens
from flashkit.worker.machine import has_bfloat16, usable_cpus

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

log = logging.getLogger(__name__)

LEAST_COSINE: Final = 0.9999
"""Between vectors in float32 and in half precision, for half precision to be used."""
LARGEST_SCORE_CHANGE: Final = 0.01
"""The same for a cross-encoder's scores."""
SAMPLES: Final = (
    "How long does a worker take to start?",
    "A worker that starts cold loads its weights first; how long that takes is a matter of where they are.",
    "The quick brown fox jumps over the lazy dog. " * 6,
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich; 東京は日本の首都です。 " * 4,
)
"""Texts on which precisions are compared."""


def load_model(layout: Layout, options: EmbeddingOptions, samples: Sequence[Tokens]) -> Model:
    """Load a model onto the GPU if there is one, else the CPU.

    Args:
        layout: How it is used.
        options: What was declared.
        samples: A few texts, to compare precisions with.

    Raises:
        ConfigurationError: It is not whole, needs code that must not run, or has no place in memory.
    """
    import torch

    torch.set_num_threads(usable_cpus())
    device: Device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        encoder = _load_encoder(layout, options).to(device).eval()
        dense = _load_dense(layout.dense).to(device).eval() if layout.dense else None
        model = Model(encoder, layout, device, dense=dense, normalize=options.normalize)
        if device == "cpu" and not options.compile:
            _choose_packing(model, samples)
        _choose_precision(model, options.dtype, samples)
        model.dimensions = model.run(samples[:1]).shape[1]
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, UnpicklingError) as exc:
        raise ConfigurationError(f"the model in {layout.folder} cannot be loaded: {exc}", hint=_hint(exc)) from exc
    if options.compile:
        model.compile()
    return model


def _load_encoder(layout: Layout, options: EmbeddingOptions) -> Any:
    from transformers import AutoModel, AutoModelForSequenceClassification
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # a bar that redraws itself is noise in a worker's log
    kind = AutoModelForSequenceClassification if layout.is_cross_encoder else AutoModel
    encoder, info = kind.from_pretrained(
        layout.folder,
        trust_remote_code=options.trust_remote_code,
        local_files_only=True,
        output_loading_info=True,
    )
    _check_whole(layout, info["missing_keys"])
    if getattr(encoder.config, "is_encoder_decoder", False) and not layout.is_cross_encoder:
        return encoder.get_encoder()
    return encoder


def _check_whole(layout: Layout, missing: Iterable[str]) -> None:
    """Return when every weight came from the files: others would be random numbers.

    Raises:
        ConfigurationError: Some did not. A pooler's weights do not matter to vectors, and files often leave them out.
    """
    lost = sorted(name for name in missing if layout.is_cross_encoder or "pooler" not in name)
    if lost:
        raise ConfigurationError(
            f"the files in {layout.folder} have no {', '.join(lost[:3])}" + (", …" if len(lost) > 3 else ""),  # noqa: PLR2004
            hint="they are another model's, or a part of one",
        )


def _load_dense(layers: Sequence[DenseLayer]) -> Any:
    import torch

    modules: list[Any] = []
    for layer in layers:
        linear = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.has_bias)
        state = {name.removeprefix("linear."): tensor for name, tensor in _read_tensors(layer.folder).items()}
        linear.load_state_dict(state)
        modules += [linear.float(), getattr(torch.nn, layer.activation)()]
    return torch.nn.Sequential(*modules)


def _read_tensors(folder: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file

    if (weights := folder / "model.safetensors").is_file():
        return load_file(weights)
    return torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)  # type: ignore[no-any-return]


def _hint(exc: Exception) -> str:
    if "trust_remote_code" in str(exc):
        return "it comes with Python code: read it, and write Embedding(..., trust_remote_code=True)"
    if "out of memory" in str(exc):
        return "choose a GPU with more memory, or a smaller model"
    return "look whether all files of the model are there: `flashkit weights verify`"


def _choose_packing(model: Model, samples: Sequence[Tokens]) -> None:
    """Let texts go through the encoder without padding, if it takes them so and their vectors stay the same."""
    packing = None if model.layout.is_cross_encoder else packing_of(model.encoder)
    if packing is None or len(samples) < 2:  # noqa: PLR2004 - one text alone is the same either way
        return
    _set_precision(model, model.encoder, "float32")
    reference, usual = model.run(samples), model.encoder.config._attn_implementation  # noqa: SLF001 - it has no other name
    try:
        register()
        model.encoder.set_attn_implementation(PACKED)
        model.packing = packing
        problem = "" if _are_same(reference, model.run(samples), is_score=False) else "it gives other vectors"
    except Exception as exc:  # noqa: BLE001 - whatever this release does not take: padded, the model is served
        problem = f"{type(exc).__name__}: {exc}"
    if problem:
        log.info("texts are padded, since this model does not take them otherwise: %s", problem)
        model.packing = None
        model.encoder.config._attn_implementation = usual  # noqa: SLF001 - where no function sets it


def _choose_precision(model: Model, wanted: str | None, samples: Sequence[Tokens]) -> None:
    import torch

    stored = str(model.encoder.dtype).removeprefix("torch.")
    if wanted is not None:
        _set_precision(model, model.encoder, wanted)
        return
    if model.device == "cuda" and stored != "float32":
        model.dtype = stored
        return
    _set_precision(model, model.encoder, "float32")
    half = _native_half(model.device)
    if half is None:
        return
    whole, reference = model.encoder, model.run(samples)
    _set_precision(model, copy.deepcopy(whole), half)
    if not _are_same(reference, model.run(samples), is_score=model.layout.is_cross_encoder):
        log.info("this model computes in float32: in %s it gives other vectors", half)
        _set_precision(model, whole, "float32")
    if model.device == "cuda":
        torch.cuda.empty_cache()


def _set_precision(model: Model, encoder: Any, dtype: str) -> None:
    import torch

    precision = getattr(torch, dtype)
    model.dtype = dtype
    model.is_autocast = model.device == "cpu" and dtype != "float32"
    model.encoder = encoder.float() if model.device == "cpu" else encoder.to(precision)
    if model.is_autocast:
        for module in model.encoder.modules():
            if isinstance(module, torch.nn.Linear):
                module.to(precision)


def _native_half(device: Device) -> str | None:
    """Return the half precision that this processor multiplies in itself."""
    if device == "cuda":
        return "float16"
    return "bfloat16" if has_bfloat16() else None


def _are_same(whole: npt.NDArray[np.float32], half: npt.NDArray[np.float32], *, is_score: bool) -> bool:
    import numpy as np

    if is_score:
        return bool(np.abs(whole - half).max() <= LARGEST_SCORE_CHANGE)  # false for what is no number, too
    lengths = np.linalg.norm(whole, axis=1) * np.linalg.norm(half, axis=1)
    return bool(((whole * half).sum(1) >= LEAST_COSINE * lengths).all())
