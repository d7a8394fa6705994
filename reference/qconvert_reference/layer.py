"""One decoder layer: h + mixer(norm(h)), then h + mlp(norm(h)).

The mixer is gated attention or Gated DeltaNet, the mlp a mixture of experts or dense.

A layer is built from weights found by name and holds no state, so it can be built, fed and dropped on its own.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from qconvert_reference.attention import Attention
from qconvert_reference.cache import AttentionState, DeltaState, DraftState, LayerState
from qconvert_reference.config import LayerType, ModelConfig
from qconvert_reference.gated_delta_net import GatedDeltaNet
from qconvert_reference.linear import Load, Numerics, load_tensor
from qconvert_reference.moe import Mlp, RouterTrace, SparseMoe
from qconvert_reference.norm import rms_norm


class LayerOutput(NamedTuple):
    """hidden [B, T, H], and the routes taken (None for a dense layer)."""

    hidden: Tensor
    router: RouterTrace | None


class DecoderLayer:
    """Layer number `index`, or the layer under a prefix of its own (the MTP head's: experts if the model has any)."""

    def __init__(
        self, config: ModelConfig, index: int | str, load: Load, numerics: Numerics, layer_type: LayerType
    ) -> None:
        prefix = index if isinstance(index, str) else f"model.layers.{index}"
        sparse = config.num_experts > 0 if isinstance(index, str) else config.is_sparse(index)
        self.eps = config.rms_norm_eps
        self.input_norm = load_tensor(load, f"{prefix}.input_layernorm.weight")
        self.post_norm = load_tensor(load, f"{prefix}.post_attention_layernorm.weight")
        self.mixer: Attention | GatedDeltaNet
        if layer_type == "full_attention":
            self.mixer = Attention(config, f"{prefix}.self_attn", load, numerics)
        else:
            self.mixer = GatedDeltaNet(config, f"{prefix}.linear_attn", load, numerics)
        self.mlp: SparseMoe | Mlp
        self.mlp = (
            SparseMoe(config, f"{prefix}.mlp", load, numerics) if sparse else Mlp(f"{prefix}.mlp", load, numerics)
        )

    def __call__(self, hidden: Tensor, state: LayerState | None = None, start: int = 0) -> LayerOutput:
        """hidden [B, T, H] at positions start ..; a state is continued and advanced."""
        hidden = hidden + self._mix(rms_norm(hidden, self.input_norm, self.eps), state, start)
        x = rms_norm(hidden, self.post_norm, self.eps)
        if isinstance(self.mlp, Mlp):
            return LayerOutput(hidden + self.mlp(x), None)
        out, router = self.mlp(x)
        return LayerOutput(hidden + out, router)

    def _mix(self, x: Tensor, state: LayerState | None, start: int) -> Tensor:
        if isinstance(self.mixer, Attention):
            if isinstance(state, DeltaState):
                raise TypeError("an attention layer was handed the state of a Gated DeltaNet layer")
            return self.mixer(x, state, start)
        if isinstance(state, (AttentionState, DraftState)):
            raise TypeError("a Gated DeltaNet layer was handed the state of an attention layer")
        return self.mixer(x, state)
