"""Qwen3-Next (80B-A3B Instruct, Thinking, Coder-Next and their fine-tunes), tensor by tensor.

A layer is Gated DeltaNet (`linear_attn`) or, every `full_attention_interval` layers, gated full attention
(`self_attn`); its feed-forward part is a mixture of experts with a shared expert, or a dense MLP for
`mlp_only_layers`. Under `mtp.` lies the multi-token-prediction head: one more attention layer with experts. The 80B
config makes 75,944 tensors.

The default FP8 recipe is the one of Qwen's own FP8 files: every large projection is quantized, in the head as in the
trunk. Kept are `in_proj_ba` (64 rows, which no engine can split block-wise), the router, the gates, norms,
convolution, `mtp.fc`, embeddings and `lm_head`. The default INT4 recipe takes the routed experts of the trunk alone.
Left out: checkpoints whose experts are fused into 3-D tensors, which
this family does not use on disk.
"""

import re
import sys
from collections.abc import Collection, Mapping
from typing import Any

from qconvert.errors import UserError
from qconvert.families.family import CacheBytes
from qconvert.recipe import KEEP, Rule

Shapes = dict[str, tuple[int, ...]]

REQUIRED = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "linear_conv_kernel_dim", "linear_num_key_heads", "linear_key_head_dim", "linear_num_value_heads",
    "linear_value_head_dim", "num_experts",
)  # fmt: skip
REQUIRED_FOR_EXPERTS = ("moe_intermediate_size", "shared_expert_intermediate_size")
LINEARS = (
    "*.linear_attn.in_proj_qkvz.weight",
    "*.linear_attn.out_proj.weight",
    "*.self_attn.[qkvo]_proj.weight",
    "*.mlp.experts.*_proj.weight",
    "*.mlp.shared_expert.*_proj.weight",
    "*.mlp.gate_proj.weight",
    "*.mlp.up_proj.weight",
    "*.mlp.down_proj.weight",
)
KEPT = (
    "*norm.weight",
    "mtp.pre_fc_norm_*.weight",
    "*.linear_attn.in_proj_ba.weight",
    "*.linear_attn.conv1d.weight",
    "*.linear_attn.dt_bias",
    "*.linear_attn.A_log",
    "*.mlp.gate.weight",
    "*.mlp.shared_expert_gate.weight",
    "mtp.fc.weight",
    "model.embed_tokens.weight",
    "lm_head.weight",
)
TRUNK = "model.layers."
TRUNK_EXPERTS = "model.layers.*.mlp.experts.*_proj.weight"
FULL = "vLLM and SGLang build it in full precision whatever the config says"
UNLOADABLE = {
    "mlp.gate": f"the router: {FULL}",
    "mlp.shared_expert_gate": f"the shared expert's gate: {FULL}",
    "linear_attn.conv1d": f"a convolution: {FULL}",
    "linear_attn.in_proj_ba": "it has two rows a head, too few for the engines' kernels once it is split over GPUs",
    "mtp.fc": "SGLang builds the head's first layer in full precision whatever the config says",
    "embed_tokens": f"the embedding: {FULL}",
    "lm_head": f"the output layer: {FULL}",
}
HEAD_KEPT = (
    "the head's layer is kept, but SGLang builds it like model.layers.0, quantized; needs "
    "--speculative-draft-model-quantization unquant"
)
FUSED = (
    (re.compile(r"(.*\.mlp\.experts)\..*"), r"\1"),  # all experts of a layer
    (re.compile(r"(.*\.self_attn)\.[qkv]_proj\.weight"), r"\1.qkv_proj"),
    (re.compile(r"(.*\.(?:mlp|shared_expert))\.(?:gate|up)_proj\.weight"), r"\1.gate_up_proj"),
)


class Qwen3Next:
    """The family; it has no state."""

    model_type = "qwen3_next"
    mtp_prefix = "mtp."

    def refuse(self, config: Mapping[str, Any]) -> None:
        """Settings that change which tensors exist in a way that we do not know."""
        needed = REQUIRED + (REQUIRED_FOR_EXPERTS if config.get("num_experts") else ("intermediate_size",))
        for key in needed:
            if not isinstance(config.get(key), int):
                raise UserError(f"config.json: {key} must be a number", found=repr(config.get(key)), fix="set it")
        if config.get("attention_bias"):
            raise UserError("config.json: attention_bias is not supported", expected="false", found="true")
        if "layer_types" not in config and not isinstance(config.get("full_attention_interval"), int):
            raise UserError(
                "config.json says neither full_attention_interval nor layer_types",
                expected="one of them, to tell attention layers from linear ones",
                fix="take config.json from the original model",
            )
        layer_types(config)

    def warnings(self, config: Mapping[str, Any]) -> list[str]:
        """Keys that transformers 5 moves when it saves a config, and that other readers need in their place."""
        lost = [key for key in ("rope_theta", "full_attention_interval", "partial_rotary_factor") if key not in config]
        if not lost:
            return []
        return [
            f"config.json lacks {', '.join(lost)} at its top level, as after a save by transformers 5: SGLang and "
            "older readers fail or silently use another RoPE base; take these keys over from the original config.json"
        ]

    def inventory(self, config: Mapping[str, Any]) -> Shapes:
        """Every tensor and its shape."""
        hidden, vocabulary = config["hidden_size"], config["vocab_size"]
        shapes: Shapes = {"model.embed_tokens.weight": (vocabulary, hidden)}
        for index, layer_type in enumerate(layer_types(config)):
            attention = layer_type == "full_attention"
            shapes |= _layer(f"model.layers.{index}", config, attention=attention, moe=is_moe(config, index))
        shapes["model.norm.weight"] = (hidden,)
        if not config.get("tie_word_embeddings", False):
            shapes["lm_head.weight"] = (vocabulary, hidden)
        shapes["mtp.fc.weight"] = (hidden, 2 * hidden)
        for norm in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"):
            shapes[f"mtp.{norm}.weight"] = (hidden,)
        for index in range(config.get("num_nextn_predict_layers") or 1):
            shapes |= _layer(f"mtp.layers.{index}", config, attention=True, moe=config["num_experts"] > 0)
        return shapes

    def place(self, name: str) -> tuple[int, str]:
        """Embedding, layers by number, output, the head."""
        if name.startswith(self.mtp_prefix):
            return sys.maxsize, "head"
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        if layer:
            return int(layer.group(1)), f"layer {layer.group(1)}"
        return (-1, "embedding") if name.startswith("model.embed_tokens.") else (sys.maxsize - 1, "output")

    def kind(self, name: str) -> str:
        """ "model.layers.3.mlp.experts.7.up_proj.weight" is "experts.up_proj"; kinds of the head start with mtp."""
        prefix = self.mtp_prefix if name.startswith(self.mtp_prefix) else ""
        short = re.sub(r"^(model|mtp)\.(layers\.\d+\.)?", "", name.removesuffix(".weight"))
        return prefix + re.sub(r"^mlp\.experts\.\d+\.", "experts.", short)

    def default_rules(self, scheme: str) -> tuple[Rule, ...]:
        """Qwen's own choice for FP8; for INT4 the trunk's routed experts, which are 97% of all weights, and no more."""
        if not scheme.startswith("int4"):
            return self.linear_rules(scheme)
        return (Rule(TRUNK_EXPERTS, scheme), *self.linear_rules(KEEP))

    def linear_rules(self, scheme: str) -> tuple[Rule, ...]:
        """Every name is spelled out: a tensor this family does not have matches nothing."""
        return tuple(Rule(pattern, scheme) for pattern in LINEARS) + tuple(Rule(pattern, KEEP) for pattern in KEPT)

    def mixed_rules(self, experts: str, others: str) -> tuple[Rule, ...]:
        """Routed experts in one scheme and the trunk's other projections in another; the head as it is."""
        trunk = tuple(Rule(TRUNK + pattern, others) for pattern in LINEARS)
        return (Rule(TRUNK_EXPERTS, experts), *trunk, *self.linear_rules(KEEP))

    def unloadable(self, name: str) -> str | None:
        """Modules that engines build without quantization."""
        for part, reason in UNLOADABLE.items():
            if f".{part}." in f".{name}":
                return reason
        return None

    def fused_group(self, name: str) -> str | None:
        """vLLM merges q/k/v, gate/up and all experts of a layer."""
        for pattern, group in FUSED:
            match = pattern.fullmatch(name)
            if match:
                return match.expand(group)
        return None

    def is_skip_listed(self, name: str) -> bool:
        """Qwen lists every kept module but these two, which no engine would quantize anyway."""
        return name not in ("model.embed_tokens.weight", "model.norm.weight")

    def cache_bytes(self, config: Mapping[str, Any]) -> CacheBytes:
        """Keys and values in BF16; the delta rule's state in FP32 and the last inputs of the convolution in BF16."""
        types = layer_types(config)
        keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
        key_width, value_width = config["linear_key_head_dim"], config["linear_value_head_dim"]
        state = 4 * values * key_width * value_width
        channels = 2 * keys * key_width + values * value_width
        convolution = 2 * channels * (config["linear_conv_kernel_dim"] - 1)
        attention = 2 * 2 * config["num_key_value_heads"] * config["head_dim"]  # keys and values, two bytes each
        return CacheBytes(
            per_token=types.count("full_attention") * attention,
            per_sequence=types.count("linear_attention") * (state + convolution),
        )

    def precision_warnings(
        self, config: Mapping[str, Any], weights: Collection[str], quantized: Mapping[str, str]
    ) -> list[tuple[str, str]]:
        """SGLang loads the shared expert as one more routed expert, and the head's layer as "model.layers.0"."""
        found = []
        shared, routed = (
            {(name.partition(part)[0], scheme) for name, scheme in quantized.items() if part in name}
            for part in (".shared_expert.", ".experts.")
        )
        same_width = config.get("shared_expert_intermediate_size") == config.get("moe_intermediate_size")
        if shared != routed and same_width:
            layer = min(shared ^ routed)[0]
            found.append(
                (
                    "SGLang",
                    f"{layer}: shared and routed experts differ in precision; needs --disable-shared-experts-fusion",
                )
            )
        has_head = any(name.startswith("mtp.layers.") for name in weights)
        head, trunk = (any(n.startswith(prefix) for n in quantized) for prefix in ("mtp.layers.", "model.layers."))
        if trunk and has_head and not head:
            found.append(("SGLang", HEAD_KEPT))
        return found


def layer_types(config: Mapping[str, Any]) -> list[str]:
    """ "linear_attention" or "full_attention" for each layer."""
    count = config["num_hidden_layers"]
    types = config.get("layer_types")
    if types is None:
        interval = config["full_attention_interval"]
        types = ["linear_attention" if (index + 1) % interval else "full_attention" for index in range(count)]
    if len(types) != count or not set(types) <= {"linear_attention", "full_attention"}:
        raise UserError(
            "config.json: layer_types does not describe the layers",
            expected=f"{count} times linear_attention or full_attention",
            found=f"{len(types)} entries: {', '.join(sorted(set(map(str, types))))}",
        )
    return list(types)


def is_moe(config: Mapping[str, Any], index: int) -> bool:
    """Whether layer `index` has experts rather than a dense MLP."""
    step = config.get("decoder_sparse_step", 1)
    dense = index in (config.get("mlp_only_layers") or [])
    return config["num_experts"] > 0 and not dense and (index + 1) % step == 0


def _layer(prefix: str, config: Mapping[str, Any], *, attention: bool, moe: bool) -> Shapes:
    hidden = config["hidden_size"]
    shapes: Shapes = {
        f"{prefix}.input_layernorm.weight": (hidden,),
        f"{prefix}.post_attention_layernorm.weight": (hidden,),
    }
    shapes |= (
        _attention(f"{prefix}.self_attn", config) if attention else _linear_attention(f"{prefix}.linear_attn", config)
    )
    shapes |= _experts(f"{prefix}.mlp", config) if moe else _mlp(f"{prefix}.mlp", hidden, config["intermediate_size"])
    return shapes


def _linear_attention(prefix: str, config: Mapping[str, Any]) -> Shapes:
    hidden, heads = config["hidden_size"], config["linear_num_value_heads"]
    keys = config["linear_num_key_heads"] * config["linear_key_head_dim"]
    values = heads * config["linear_value_head_dim"]
    return {
        f"{prefix}.in_proj_qkvz.weight": (2 * keys + 2 * values, hidden),
        f"{prefix}.in_proj_ba.weight": (2 * heads, hidden),
        f"{prefix}.conv1d.weight": (2 * keys + values, 1, config["linear_conv_kernel_dim"]),
        f"{prefix}.dt_bias": (heads,),
        f"{prefix}.A_log": (heads,),
        f"{prefix}.norm.weight": (config["linear_value_head_dim"],),
        f"{prefix}.out_proj.weight": (hidden, values),
    }


def _attention(prefix: str, config: Mapping[str, Any]) -> Shapes:
    hidden, head = config["hidden_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    return {
        f"{prefix}.q_proj.weight": (2 * queries, hidden),  # query and output gate of each head
        f"{prefix}.k_proj.weight": (keys, hidden),
        f"{prefix}.v_proj.weight": (keys, hidden),
        f"{prefix}.o_proj.weight": (hidden, queries),
        f"{prefix}.q_norm.weight": (head,),
        f"{prefix}.k_norm.weight": (head,),
    }


def _experts(prefix: str, config: Mapping[str, Any]) -> Shapes:
    hidden, experts = config["hidden_size"], config["num_experts"]
    shapes: Shapes = {f"{prefix}.gate.weight": (experts, hidden)}
    for index in range(experts):
        shapes |= _mlp(f"{prefix}.experts.{index}", hidden, config["moe_intermediate_size"])
    shapes |= _mlp(f"{prefix}.shared_expert", hidden, config["shared_expert_intermediate_size"])
    shapes[f"{prefix}.shared_expert_gate.weight"] = (1, hidden)
    return shapes


def _mlp(prefix: str, hidden: int, width: int) -> Shapes:
    return {
        f"{prefix}.gate_proj.weight": (width, hidden),
        f"{prefix}.up_proj.weight": (width, hidden),
        f"{prefix}.down_proj.weight": (hidden, width),
    }


FAMILY = Qwen3Next()
