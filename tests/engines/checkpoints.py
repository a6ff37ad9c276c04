"""Checkpoints with random weights, small enough to be made when a test needs one and real enough for every engine.

They are kept below `.flashkit/` by a fingerprint of how they are made.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2] / ".flashkit" / "test-models"

VOCABULARY = 512
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "torch_dtype": "float32",
    "initializer_range": 0.6,
}
SPECIAL_TOKENS = ("<|begin|>", "<|end|>", "<|pad|>", "<tool_call>", "</tool_call>")
CHAT_TEMPLATE = (
    "{%- if tools %}<|begin|>tools\n{{ tools | tojson }}<|end|>\n{% endif -%}"
    "{%- for message in messages %}<|begin|>{{ message.role }}\n{{ message.content or '' }}<|end|>\n{% endfor -%}"
    "{%- if add_generation_prompt %}<|begin|>assistant\n{% endif -%}"
)
LINES = (
    "Serverless workers take jobs from a queue and answer them one by one.",
    "The quick brown fox jumps over the lazy dog; größer, naïve, 東京, Привет.",
    '{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}',
    "Why is the sky blue? Because short waves are scattered more than long ones.",
    "0123456789 + - * / = ( ) [ ] { } < > , . : ; ! ? \" ' _ % & # @",
)


def make_llama(name: str = "tests/tiny-llama", *, root: Path = ROOT, seed: int = 0) -> Path:
    """Return the folder of a Llama with 2 layers and random weights, ~450 KB with its tokenizer."""
    folder = root / name
    mark = hashlib.sha256(f"1 {seed} {CONFIG} {CHAT_TEMPLATE} {LINES}".encode()).hexdigest()
    if (folder / "made").is_file() and (folder / "made").read_text() == mark:
        return folder
    unfinished = folder.with_name(f"{folder.name}.{seed}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    _write_tokenizer(unfinished)
    (unfinished / "config.json").write_text(json.dumps(CONFIG))
    (unfinished / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 1}))
    _write_weights(unfinished, seed)
    (unfinished / "made").write_text(mark)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    return folder


def make_lora(name: str = "tests/tiny-lora", *, root: Path = ROOT, rank: int = 8) -> Path:
    """Return the folder of a LoRA adapter for `make_llama`'s checkpoint that changes what it says."""
    import torch
    from safetensors.torch import save_file

    folder = root / name
    if (folder / "adapter_model.safetensors").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for layer in range(CONFIG["num_hidden_layers"]):
        for projection, size in (("q_proj", 128), ("v_proj", 32)):
            base = f"base_model.model.model.layers.{layer}.self_attn.{projection}"
            tensors[f"{base}.lora_A.weight"] = torch.randn(rank, CONFIG["hidden_size"], generator=generator)
            tensors[f"{base}.lora_B.weight"] = torch.randn(size, rank, generator=generator)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 64,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ["q_proj", "v_proj"],
        "base_model_name_or_path": "tests/tiny-llama",
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES * 20, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "model_max_length": CONFIG["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _write_weights(folder: Path, seed: int) -> None:
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    hidden, inner, head = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["head_dim"]
    heads, kv_heads = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (VOCABULARY, hidden), "model.norm.weight": (hidden,)}
    for index in range(CONFIG["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (hidden,),
            f"{layer}.post_attention_layernorm.weight": (hidden,),
            f"{layer}.self_attn.q_proj.weight": (heads * head, hidden),
            f"{layer}.self_attn.k_proj.weight": (kv_heads * head, hidden),
            f"{layer}.self_attn.v_proj.weight": (kv_heads * head, hidden),
            f"{layer}.self_attn.o_proj.weight": (hidden, heads * head),
            f"{layer}.mlp.gate_proj.weight": (inner, hidden),
            f"{layer}.mlp.up_proj.weight": (inner, hidden),
            f"{layer}.mlp.down_proj.weight": (hidden, inner),
        }
    tensors = {name: _random(shape, generator) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _random(shape: tuple[int, ...], generator: Any) -> Any:
    import torch

    if len(shape) == 1:  # norms
        return torch.ones(shape)
    return torch.randn(shape, generator=generator) * CONFIG["initializer_range"] / 4
