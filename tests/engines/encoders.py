"""Small encoders with random weights, in the layouts that embedding models and cross-encoders come in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HIDDEN = 48
MAX_POSITIONS = 64
LINE = (
    "a worker takes jobs from the queue and answers them one by one what does it cost sun sea stone river light night "
    "zebra apple quiet loud red blue green seven eleven large small first last"
)
MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def make_encoder(
    folder: Path,
    *,
    pooling: str | None = "mean",
    max_seq_length: int | None = 32,
    prompts: Mapping[str, str] | None = None,
    default_prompt_name: str | None = None,
    dense: Sequence[tuple[int, int, str]] = (),
    extra_config: Mapping[str, Any] | None = None,
    scale: float = 1.0,
    seed: int = 0,
) -> Path:
    """Write a BERT of two layers as sentence-transformers does; without a pooling, as transformers does."""
    import torch
    from transformers import BertModel

    _write_model(folder, BertModel, seed=seed, scale=scale, extra=extra_config or {})
    if pooling is None:
        return folder
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    flags = {f"pooling_mode_{name}": name.startswith(pooling) for name in ("cls_token", "mean_tokens", "max_tokens")}
    _write_json(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": HIDDEN, **flags, "pooling_mode_lasttoken": pooling == "last"},
    )
    generator = torch.Generator().manual_seed(seed + 1)
    for number, (width_in, width_out, activation) in enumerate(dense, 2):
        path = f"{number}_Dense"
        modules.append(("Dense", path))
        _write_dense(folder / path, width_in, width_out, activation, generator)
    modules.append(("Normalize", "9_Normalize"))
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(modules)
    ]
    _write_json(folder / "modules.json", listed)
    if max_seq_length is not None:
        _write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_seq_length, "do_lower_case": False})
    whole = {"prompts": dict(prompts or {}), "default_prompt_name": default_prompt_name}
    _write_json(folder / "config_sentence_transformers.json", whole)
    return folder


def make_cross_encoder(folder: Path, *, labels: int = 1, activation: str | None = None, seed: int = 3) -> Path:
    """Write a BERT of two layers that gives pairs of texts a score."""
    from transformers import BertForSequenceClassification

    extra = {"num_labels": labels}
    if activation is not None:
        extra["sentence_transformers"] = {"activation_fn": f"torch.nn.modules.{activation}"}
    _write_model(folder, BertForSequenceClassification, seed=seed, scale=1.0, extra=extra)
    return folder


def make_decoder(folder: Path, *, seed: int = 5) -> Path:
    """Write a Llama of two layers whose last token stands for the text."""
    import torch
    from transformers import LlamaConfig, LlamaModel

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=HIDDEN,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        pad_token_id=0,
    )
    LlamaModel(config).save_pretrained(folder)
    _write_tokenizer(folder)
    return folder


def vocabulary() -> list[str]:
    return [
        *MARKS,
        *dict.fromkeys(LINE.split()),
        *"abcdefghijklmnopqrstuvwxyz",
        *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
    ]


def _write_model(folder: Path, kind: Any, *, seed: int, scale: float, extra: Mapping[str, Any]) -> None:
    import torch
    from transformers import BertConfig

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary()),
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=0.2 * scale,
        **extra,
    )
    kind(config).save_pretrained(folder)
    _write_tokenizer(folder)


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import BertWordPieceTokenizer

    words = vocabulary()
    tokenizer = BertWordPieceTokenizer(vocab={word: index for index, word in enumerate(words)}, lowercase=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "BertTokenizer",
        "model_max_length": 512,
        **{f"{name.strip('[]').lower()}_token": name for name in MARKS},
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _write_dense(folder: Path, width_in: int, width_out: int, activation: str, generator: Any) -> None:
    import torch
    from safetensors.torch import save_file

    _write_json(
        folder / "config.json",
        {
            "in_features": width_in,
            "out_features": width_out,
            "bias": True,
            "activation_function": f"torch.nn.modules.activation.{activation}",
        },
    )
    tensors = {
        "linear.weight": torch.randn(width_out, width_in, generator=generator),
        "linear.bias": torch.randn(width_out, generator=generator),
    }
    save_file(tensors, folder / "model.safetensors")


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
