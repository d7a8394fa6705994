"""A tiny random checkpoint with a byte tokenizer, documents for it, and its FP8 twin."""

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from qconvert.checkpoint import Checkpoint, load_safetensors, save_safetensors
from qconvert.quantization import quantize
from qconvert_evals.data import Document
from tests.tiny import write_tiny_checkpoint


def write_pair(folder: Path) -> tuple[Path, Path]:
    """BF16 and FP8 folders."""
    base = write_tiny_checkpoint(folder / "bf16", shards=1)
    write_tokenizer(base)
    quantize(base, folder / "fp8")
    return base, folder / "fp8"


def write_tokenizer(folder: Path) -> None:
    """One token per byte."""
    alphabet = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


def some_documents(per_domain: int = 4, length: int = 90) -> list[Document]:
    """Random letters in two domains."""
    source = random.Random(1)
    letters = {"code": "abcdef(){}\n", "prose": "etaoin shrdlu."}
    return [
        Document(f"{domain}/{number}", domain, "".join(source.choice(alphabet) for _ in range(length + 7 * number)))
        for domain, alphabet in letters.items()
        for number in range(per_domain)
    ]


def damage(folder: Path, change) -> None:
    """Rewrite the only shard of a checkpoint after `change(tensors)`."""
    (shard,) = Checkpoint.open(folder).shards
    tensors: dict[str, torch.Tensor] = load_safetensors(folder / shard)
    change(tensors)
    save_safetensors(folder / shard, tensors)
