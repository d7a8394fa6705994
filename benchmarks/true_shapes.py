"""Write a random BF16 checkpoint with the tensor shapes of Qwen3-Next-80B-A3B, in one shard, without holding it.

One Gaussian block (standard deviation 0.02, rounded to BF16) is drawn once and written over and over, so that the disk
sees no zeros and the quantizer sees ordinary weights. With one layer and the full vocabulary it comes to about 4.5 GB.
The shard is written by hand (8-byte header length, JSON header, data) because the point is never to hold it whole.
"""

from __future__ import annotations

import argparse
import json
import struct
from pathlib import Path
from typing import Any

import torch

from qconvert.families import family_of

CONFIG_80B: dict[str, Any] = {
    "architectures": ["Qwen3NextForCausalLM"],
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "full_attention_interval": 4,
    "head_dim": 256,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "max_position_embeddings": 262144,
    "mlp_only_layers": [],
    "model_type": "qwen3_next",
    "moe_intermediate_size": 512,
    "norm_topk_prob": True,
    "num_attention_heads": 16,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "num_hidden_layers": 48,
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.25,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000000,
    "shared_expert_intermediate_size": 512,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 151936,
}
BLOCK_VALUES = 64 * 1024 * 1024


def write_true_shapes(folder: Path, layers: int = 1, mtp: bool = False) -> int:
    """Write config.json and model.safetensors into `folder`; returns the bytes of tensor data."""
    config = CONFIG_80B | {"num_hidden_layers": layers}
    shapes = family_of(config).inventory(config)
    shapes = {name: shape for name, shape in shapes.items() if mtp or not name.startswith("mtp.")}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(0)
    block = (torch.randn(BLOCK_VALUES, generator=generator) * 0.02).bfloat16().view(torch.uint8).numpy().tobytes()
    folder.mkdir(parents=True, exist_ok=True)
    folder.joinpath("config.json").write_text(json.dumps(config, indent=2) + "\n")
    with folder.joinpath("model.safetensors").open("wb") as shard:
        shard.write(struct.pack("<Q", len(text)) + text)
        written = 0
        while written < end:
            part = block[: min(len(block), end - written)]
            shard.write(part)
            written += len(part)
    return end


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--mtp", action="store_true")
    options = parser.parse_args()
    print(f"{write_true_shapes(options.folder, options.layers, options.mtp):,} bytes")
