"""What a model remembers of its tokens: keys and values, the convolution's last inputs, the state of the delta rule.

No tensor in here is ever changed in place; a layer replaces it. So a snapshot is a few references, going back is exact,
and gradients flow through a cached forward as well. The price is one copy of the keys and values per step, which a
reference can afford.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from qconvert_reference.config import ModelConfig


@dataclass
class AttentionState:
    """Keys (rotated) and values of one full-attention layer, [B, kv_heads, L, head_dim]; None while empty."""

    keys: Tensor | None = None
    values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add the new tokens and return everything so far."""
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat((self.keys, keys), 2), torch.cat((self.values, values), 2)
        self.keys, self.values = keys, values
        return keys, values

    def rollback(self, length: int) -> None:
        """Forget everything from position `length` on."""
        if self.keys is not None and self.values is not None:
            # A copy: a view would have other strides than the cache of a run that never went further.
            self.keys, self.values = self.keys[:, :, :length].contiguous(), self.values[:, :, :length].contiguous()

    def take(self, rows: Tensor) -> None:
        """Go on with these rows of the batch, each as often as it is named."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[rows], self.values[rows]


@dataclass
class DraftState:
    """Keys and values for drafts from every position at once: a shared context, and what each draft appended itself.

    Entry t of the context belongs to position t; draft t may read 0 .. t of it, and its own entries. That is what a
    draft made live at position t reads, so teacher-forced drafts equal live ones.
    """

    keys: Tensor  # [B, kv_heads, T, head_dim]
    values: Tensor
    own: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # per draft step, [B, kv_heads, >= T, head_dim]

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Add this step's entries, one per draft; context keys and values, own keys and values [B, kv, T, n, hd]."""
        self.own.append((keys, values))
        tokens = keys.shape[2]
        own_keys = torch.stack([step[0][:, :, :tokens] for step in self.own], 3)
        own_values = torch.stack([step[1][:, :, :tokens] for step in self.own], 3)
        return self.keys, self.values, own_keys, own_values


@dataclass
class DeltaState:
    """Memory of one Gated DeltaNet layer, of fixed size whatever the length; None while empty."""

    conv: Tensor | None = None  # [B, kernel-1, channels], the last inputs of the convolution
    recurrent: Tensor | None = None  # [B, value_heads, key_dim, value_dim], fp32
    length: int = 0
    trail: dict[int, tuple[Tensor | None, Tensor | None]] | None = None  # length -> state, while recording

    def record(self) -> None:
        """From here on keep the state after every call: the delta rule cannot be run backwards."""
        self.trail = {self.length: (self.conv, self.recurrent)}

    def advance(self, conv: Tensor, recurrent: Tensor, tokens: int) -> None:
        """Take over the state after `tokens` further tokens."""
        self.conv, self.recurrent, self.length = conv, recurrent, self.length + tokens
        if self.trail is not None:
            self.trail[self.length] = (conv, recurrent)

    def rollback(self, length: int) -> None:
        """Return to the recorded state after `length` tokens (KeyError if that moment was not recorded)."""
        if length != self.length:
            if self.trail is None:
                raise KeyError(f"nothing was recorded: cannot return from {self.length} tokens to {length}")
            self.conv, self.recurrent = self.trail[length]
            self.length = length
        self.trail = None

    def take(self, rows: Tensor) -> None:
        """Go on with these rows of the batch, each as often as it is named."""
        if self.conv is not None and self.recurrent is not None:
            self.conv, self.recurrent = self.conv[rows], self.recurrent[rows]


LayerState = AttentionState | DraftState | DeltaState


@dataclass
class Cache:
    """One state per layer, one for the MTP head (its caller rolls that one back), and the number of tokens seen."""

    layers: list[AttentionState | DeltaState]
    length: int = 0
    mtp: AttentionState = field(default_factory=AttentionState)

    @classmethod
    def empty(cls, config: ModelConfig) -> Cache:
        """A cache for a model that has seen nothing."""
        return cls([AttentionState() if kind == "full_attention" else DeltaState() for kind in config.layer_types])

    def record(self) -> None:
        """Remember this moment and every later call, for `rollback`."""
        for state in self.layers:
            if isinstance(state, DeltaState):
                state.record()

    def rollback(self, length: int) -> None:
        """Return to the moment when `length` tokens had been seen, and stop recording."""
        for state in self.layers:
            state.rollback(length)
        self.length = length
