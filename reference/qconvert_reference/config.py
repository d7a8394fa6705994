"""The settings of a Qwen3-Next model, read from config.json and checked once.

Both spellings are understood: the released one (`rope_theta`, `rope_scaling`, `partial_rotary_factor`,
`full_attention_interval` at the top level) and the one that transformers 5 writes when it saves a model again
(`rope_parameters`, `layer_types`). A setting that would change the forward pass and that this package does not compute
is refused by its name: running without it would be silently wrong. Settings that only concern training or generation
(dropout, initializer range, token ids) are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qconvert.errors import UserError

LayerType = Literal["linear_attention", "full_attention"]

# Defaults of the published configuration class: a key absent from the file means this value.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "decoder_sparse_step": 1,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "norm_topk_prob": True,
}
# Key -> the only values this package computes; anything else is refused by name.
_ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "qkv_bias": (False,),
    "attn_output_gate": (True,),
    "use_sliding_window": (False,),
    "sliding_window": (None,),
    "layer_scale": (False,),
    "num_nextn_predict_layers": (None, 0, 1),
    "num_mtp_layers": (None, 0, 1),
    "routed_scaling_factor": (None, 1.0),
    "n_group": (None, 1),
    "topk_group": (None, 1),
    "logit_scale": (None, 1.0),
    "final_logit_softcapping": (None,),
}
_ROPE_KEYS: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "yarn": frozenset(
        {"factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "truncate"}
    ),
}


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding: base, share of the head that is rotated, and the long-context scaling."""

    rope_type: Literal["default", "linear", "yarn"] = "default"
    theta: float = 10000.0
    partial_rotary_factor: float = 0.25
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True


@dataclass(frozen=True)
class ModelConfig:
    """Everything the forward pass depends on; field names as in config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    linear_conv_kernel_dim: int
    linear_key_head_dim: int
    linear_value_head_dim: int
    linear_num_key_heads: int
    linear_num_value_heads: int
    decoder_sparse_step: int
    moe_intermediate_size: int
    shared_expert_intermediate_size: int
    num_experts: int
    num_experts_per_tok: int
    norm_topk_prob: bool
    mlp_only_layers: tuple[int, ...]
    layer_types: tuple[LayerType, ...]
    rope: RopeConfig

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> ModelConfig:
        """Read a parsed config.json; UserError for a setting that cannot be computed faithfully."""
        _refuse(config)
        values = {key: config.get(key, default) for key, default in _DEFAULTS.items()}
        made = cls(
            **values,
            mlp_only_layers=tuple(config.get("mlp_only_layers") or ()),
            layer_types=_layer_types(config, int(values["num_hidden_layers"])),
            rope=_rope(config, int(values["max_position_embeddings"])),
        )
        _check_shapes(made)
        return made

    def is_sparse(self, index: int) -> bool:
        """Whether layer `index` (from 0) routes to experts rather than running one dense MLP."""
        wanted = (index + 1) % self.decoder_sparse_step == 0
        return wanted and self.num_experts > 0 and index not in self.mlp_only_layers


def _refuse(config: dict[str, Any]) -> None:
    found_type = config.get("model_type", "qwen3_next")
    if found_type != "qwen3_next":
        raise UserError(
            "unknown model type", where="config.json: model_type", expected="qwen3_next", found=str(found_type)
        )
    for key, allowed in _ONLY.items():
        if key in config and config[key] not in allowed:
            raise UserError(
                f"the reference model does not compute {key} = {config[key]!r}",
                where=f"config.json: {key}",
                expected=" or ".join(repr(value) for value in allowed),
                found=repr(config[key]),
            )


def _layer_types(config: dict[str, Any], layers: int) -> tuple[LayerType, ...]:
    """Every `full_attention_interval`-th layer is full attention, unless `layer_types` lists them."""
    listed = config.get("layer_types")
    if listed is None:
        interval = int(config.get("full_attention_interval", 4))
        return tuple("linear_attention" if (i + 1) % interval else "full_attention" for i in range(layers))
    unknown = sorted({str(kind) for kind in listed} - {"linear_attention", "full_attention"})
    if unknown or len(listed) != layers:
        raise UserError(
            "layer_types does not describe the layers of this model",
            where="config.json: layer_types",
            expected=f"{layers} entries, each linear_attention or full_attention",
            found=f"{len(listed)} entries" + (f", with {', '.join(unknown)}" if unknown else ""),
        )
    return tuple(listed)


def with_yarn(config: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """A config.json whose context is stretched by YaRN, as engines are told for inputs beyond the trained length."""
    nested = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = nested.get("rope_type", nested.get("type", "default"))
    if kind != "default":
        raise UserError(
            "the context of this model is stretched already", where="config.json", found=f"rope type {kind}",
            fix="leave --yarn out",
        )  # fmt: skip
    if not factor > 1:
        raise UserError("YaRN stretches a context by a factor above 1", found=str(factor))
    length = int(config["max_position_embeddings"])
    stretched = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": length}
    key = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    kept = {name: value for name, value in nested.items() if name not in ("rope_type", "type")}
    return {**config, key: {**kept, **stretched}, "max_position_embeddings": int(length * factor)}


def _rope(config: dict[str, Any], max_positions: int) -> RopeConfig:
    nested = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    named = (nested.pop("rope_type", None), nested.pop("type", None))
    kind: Any = named[0] or named[1] or "default"
    theta = nested.pop("rope_theta", config.get("rope_theta", 10000.0))
    partial = nested.pop("partial_rotary_factor", config.get("partial_rotary_factor", 0.25))
    if kind not in _ROPE_KEYS:
        raise UserError(
            f"the reference model does not compute rope type {kind!r}",
            where="config.json: rope_scaling / rope_parameters",
            expected=", ".join(_ROPE_KEYS),
            found=str(kind),
        )
    unknown = sorted(key for key, value in nested.items() if key not in _ROPE_KEYS[kind] and value is not None)
    if unknown and kind != "default":
        raise UserError(
            f"the reference model does not compute {', '.join(unknown)} of rope type {kind!r}",
            where="config.json: rope_scaling / rope_parameters",
            expected=f"only {', '.join(sorted(_ROPE_KEYS[kind]))}",
            found=", ".join(unknown),
        )
    if kind != "default" and "factor" not in nested:
        raise UserError(f"rope type {kind!r} needs a factor", where="config.json: rope_scaling / rope_parameters")
    scaling = {key: nested[key] for key in _ROPE_KEYS[kind] if nested.get(key) is not None}
    if kind == "yarn":
        scaling.setdefault("original_max_position_embeddings", max_positions)
    return RopeConfig(rope_type=kind, theta=float(theta), partial_rotary_factor=float(partial), **scaling)


def _check_shapes(config: ModelConfig) -> None:
    """Head counts that cannot be grouped would fail deep inside a reshape; say it here."""
    for many, few in (
        ("num_attention_heads", "num_key_value_heads"),
        ("linear_num_value_heads", "linear_num_key_heads"),
    ):
        if getattr(config, many) % getattr(config, few):
            raise UserError(
                f"{many} must be a multiple of {few}",
                where="config.json",
                expected=f"a multiple of {getattr(config, few)}",
                found=str(getattr(config, many)),
            )
    if config.num_experts and config.num_experts_per_tok > config.num_experts:
        raise UserError(
            "num_experts_per_tok exceeds num_experts",
            where="config.json",
            expected=f"at most {config.num_experts}",
            found=str(config.num_experts_per_tok),
        )
