"""A lane: one precision of a checkpoint, opened so that it can move through the layers beside other lanes.

Layers are built on demand from the weights on disk, on the lane's device, and can be dropped again; embedding and head
stay. Nothing in here measures.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from qconvert.formats import Weights, open_weights
from qconvert.schemes import QuantizedWeight
from qconvert_reference.config import ModelConfig, with_yarn
from qconvert_reference.layer import DecoderLayer
from qconvert_reference.linear import Numerics
from qconvert_reference.models.qwen3_next import MTP_MARK, Embedding, Head, Model
from qconvert_reference.mtp import MtpHead

CPU = torch.device("cpu")


class Lane:
    """One checkpoint under one Numerics, on one device: tokens and states that it is given must be there, too."""

    def __init__(
        self, name: str, weights: Weights, numerics: Numerics, device: torch.device = CPU, yarn: float | None = None
    ) -> None:
        self.name, self.weights, self.numerics, self.device = name, weights, numerics, device
        self.config = ModelConfig.from_dict(weights.config if yarn is None else with_yarn(weights.config, yarn))

    @classmethod
    def open(
        cls,
        name: str,
        source: str | Path | Weights,
        numerics: Numerics,
        device: torch.device = CPU,
        yarn: float | None = None,
    ) -> Lane:
        """From a checkpoint folder of any format, or weights opened already."""
        weights = open_weights(source) if isinstance(source, (str, Path)) else source
        return cls(name, weights, numerics, device, yarn)

    def load(self, name: str) -> Tensor | QuantizedWeight:
        """A weight of the checkpoint on the lane's device."""
        return self.weights.load(name).to(self.device)

    @property
    def num_layers(self) -> int:
        """Decoder layers of the trunk."""
        return self.config.num_hidden_layers

    @property
    def has_mtp(self) -> bool:
        """Whether the checkpoint carries a multi-token-prediction head."""
        return MTP_MARK in self.weights

    @cached_property
    def _embedding(self) -> Embedding:
        return Embedding(self.load, self.numerics)

    @cached_property
    def _head(self) -> Head:
        return Head(self.config, self.load, self.numerics)

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens [B, T] -> [B, T, H]"""
        return self._embedding(tokens)

    def layer(self, index: int) -> DecoderLayer:
        """Layer `index`, freshly built: the caller keeps it or lets it go."""
        return DecoderLayer(self.config, index, self.load, self.numerics, self.config.layer_types[index])

    def finish(self, hidden: Tensor) -> Tensor:
        """The final norm, [B, T, H]."""
        return self._head.finish(hidden)

    def logits(self, normed: Tensor) -> Tensor:
        """fp32 [B, T, V]"""
        return self._head.logits(normed)

    def mtp(self) -> MtpHead | None:
        """The multi-token-prediction head, freshly built; None for a checkpoint without one."""
        if not self.has_mtp:
            return None
        return MtpHead(self.config, self.load, self.numerics, self.embed)

    def model(self) -> Model:
        """All layers resident, for generation."""
        return Model(self.config, self.load, self.numerics, mtp=self.has_mtp)
