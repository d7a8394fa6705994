"""Faults in the files of a conversion: what a wrong converter, a wrong export or a bad disk would leave behind.

Each changes a copy of a clean folder in place. What the names of tensors stand for is in the family module.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qconvert.checkpoint import Checkpoint, load_safetensors, save_safetensors
from qconvert.schemes import get_scheme

Tensors = dict[str, Tensor]
EXPERT = "model.layers.1.mlp.experts.3.up_proj"
OTHER = "model.layers.1.mlp.experts.4.up_proj"
QKVZ = "model.layers.0.linear_attn.in_proj_qkvz.weight"
K_PROJ = "model.layers.3.self_attn.k_proj.weight"
ROUTER = "model.layers.2.mlp.gate.weight"
SHARED_GATE = "model.layers.2.mlp.shared_expert_gate.weight"
INPUT_NORM = "model.layers.2.input_layernorm.weight"
FC = "mtp.fc.weight"
SCALE = "_scale_inv"


def tensors_changed(change: Callable[[Tensors], None]) -> Callable[[Path], None]:
    """A fault of the tensors of a folder that has one shard."""

    def inject(folder: Path) -> None:
        (shard,) = Checkpoint.open(folder).shards
        tensors = load_safetensors(folder / shard)
        change(tensors)
        save_safetensors(folder / shard, tensors)

    return inject


def config_changed(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """A fault of config.json."""

    def inject(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return inject


def double_a_scale(tensors: Tensors) -> None:
    tensors[f"{EXPERT}.weight{SCALE}"][0, 1] *= 2


def lose_the_scales(tensors: Tensors) -> None:
    tensors[QKVZ + SCALE].fill_(1)


def invert_the_scales(tensors: Tensors) -> None:
    tensors[QKVZ + SCALE] = tensors[QKVZ + SCALE].float().reciprocal().bfloat16()


def transpose_the_scales(tensors: Tensors) -> None:
    tensors[K_PROJ + SCALE] = tensors[K_PROJ + SCALE].T.contiguous()


def shift_a_scale_by_a_step(tensors: Tensors) -> None:
    tensors[QKVZ + SCALE].view(torch.int16)[4, 0] += 1


def zero_an_expert(tensors: Tensors) -> None:
    tensors[f"{EXPERT}.weight"].view(torch.uint8).zero_()


def exchange_two_experts(tensors: Tensors) -> None:
    for end in (".weight", f".weight{SCALE}"):
        tensors[EXPERT + end], tensors[OTHER + end] = tensors[OTHER + end], tensors[EXPERT + end]


def exchange_gate_and_up(tensors: Tensors) -> None:
    gate = EXPERT.replace("up_proj", "gate_proj")
    for end in (".weight", f".weight{SCALE}"):
        tensors[EXPERT + end], tensors[gate + end] = tensors[gate + end], tensors[EXPERT + end]


def permute_rows(tensors: Tensors) -> None:
    rows = tensors[QKVZ].view(torch.uint8)
    rows[:64] = rows[:64].roll(1, 0)


def quantize_the_router(tensors: Tensors) -> None:
    numbers = get_scheme("fp8-block128").quantize(tensors[ROUTER])
    tensors[ROUTER], tensors[ROUTER + SCALE] = numbers.codes, numbers.scales


def round_the_router(tensors: Tensors) -> None:
    """Through FP8 and back: the file says BF16, so only the values tell."""
    tensors[ROUTER] = get_scheme("fp8-block128").quantize(tensors[ROUTER]).dequantize()


def drop_the_shared_gate(tensors: Tensors) -> None:
    tensors[SHARED_GATE].zero_()


def fold_the_one_into_a_norm(tensors: Tensors) -> None:
    """Norms are stored as w - 1; an exporter that does not know adds the 1."""
    tensors[INPUT_NORM] += 1


def swap_the_halves_of_fc(tensors: Tensors) -> None:
    """Embedding and hidden state in the wrong order."""
    tensors[FC] = tensors[FC].roll(tensors[FC].shape[1] // 2, 1)


def lose_the_head(tensors: Tensors) -> None:
    for name in [name for name in tensors if name.startswith("mtp.")]:
        del tensors[name]


def lose_a_tensor_of_the_head(tensors: Tensors) -> None:
    name = "mtp.layers.0.mlp.shared_expert_gate.weight"
    del tensors[name]


def flip_a_bit(tensors: Tensors) -> None:
    tensors["model.layers.1.post_attention_layernorm.weight"].view(torch.uint8)[21] ^= 0x40


def put_a_nan(tensors: Tensors) -> None:
    tensors["lm_head.weight"][7, 3] = torch.nan


def tie_the_head_to_the_embedding(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


def swap_nibbles(tensors: Tensors) -> None:
    packed = tensors[f"{EXPERT}.weight_packed"].view(torch.uint8)
    packed.copy_((packed << 4) | (packed >> 4))


def shift_groups(tensors: Tensors) -> None:
    scales = tensors[f"{EXPERT}.weight_scale"]
    scales.copy_(scales.roll(1, 1))


def read_scales_transposed(tensors: Tensors) -> None:
    scales = tensors[f"{EXPERT}.weight_scale"]
    scales.copy_(scales.T.contiguous().view(scales.shape))


def shift_zero_points(tensors: Tensors) -> None:
    """Every code one higher, as when GPTQ's versions 1 and 2 are mixed up; 15 stays."""
    packed = tensors[f"{EXPERT}.weight_packed"].view(torch.uint8)
    low, high = packed & 15, packed >> 4
    packed.copy_((low + 1).clamp(max=15) | ((high + 1).clamp(max=15) << 4))


def forget_the_head_in_the_exclusions(config: dict[str, Any]) -> None:
    block = config["quantization_config"]
    key = "modules_to_not_convert" if "modules_to_not_convert" in block else "ignore"
    block[key] = [entry for entry in block[key] if "mtp" not in entry]


def another_rope_theta(config: dict[str, Any]) -> None:
    config["rope_theta"] = 10_000


def no_normalisation_of_the_top(config: dict[str, Any]) -> None:
    config["norm_topk_prob"] = False


def cut_the_shard_short(folder: Path) -> None:
    (shard,) = Checkpoint.open(folder).shards
    content = (folder / shard).read_bytes()
    (folder / shard).write_bytes(content[:-1000])


def change_the_tokenizer(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text + " ")
