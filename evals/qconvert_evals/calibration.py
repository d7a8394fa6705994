"""Calibration (`qconvert.calibration`): which text, and the walk of the BF16 model through it.

The text is chosen as for `compare`: the same specifications, the same spread over domains and documents. The walk goes
one layer at a time, with the routes that the model itself takes, and holds one layer's weights, the hidden states of
all tokens and what entered the present layer's linears; statistics of single experts are made from that when they are
asked for (`inputs`). The head comes last, fed as for its first draft: final hidden states and the true next tokens.

Batches run side by side, each in one thread, and nothing is summed across them while they do, so that the number of
workers changes no bit. Left out: more than one pass (each layer sees the unquantized layers before it, not the
quantized ones), and a device other than the CPU.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qconvert.calibration import Request, WalkProgress
from qconvert.errors import UserError
from qconvert_evals.corpus import Batch, Corpus, Tokenizer, make_corpus
from qconvert_evals.data import load_documents
from qconvert_evals.inputs import LayerInputs, RowInputs, expert_places
from qconvert_reference.lane import Lane
from qconvert_reference.layer import DecoderLayer
from qconvert_reference.linear import Numerics
from qconvert_reference.mtp import MtpHead
from qconvert_reference.recording import Recording, recording

Seen = tuple[Recording, Tensor]  # of one batch, and the mask [B, T] of its tokens


def open_text(folder: Path, request: Request) -> Text:
    """Choose the tokens; nothing runs yet."""
    lane = Lane.open("calibration", folder, Numerics())
    corpus = make_corpus(
        load_documents(request.source),
        Tokenizer(folder).encode,
        tokens=request.tokens,
        seq_len=request.seq_len,
        vocab_size=lane.config.vocab_size,
    )
    return Text(lane, corpus, request)


class Text:
    """The tokens of one calibration."""

    def __init__(self, lane: Lane, corpus: Corpus, request: Request) -> None:
        self.lane, self.corpus, self.request = lane, corpus, request

    @property
    def identity(self) -> Mapping[str, Any]:
        """What makes another calibration."""
        return {
            "source": self.request.source,
            "tokens": self.corpus.tokens,
            "sequences": len(self.corpus.sequences),
            "seq_len": self.request.seq_len,
            "sha256": self.corpus.sha256,
        }

    def walk(self, names: Collection[str], workers: int, progress: WalkProgress) -> LayerWalk:
        """In front of the first layer."""
        return LayerWalk(self.lane, self.corpus.batches, frozenset(names), workers, progress)


class LayerWalk:
    """The model somewhere between two layers. One caller at a time; what it hands out may be used by any thread."""

    def __init__(
        self, lane: Lane, batches: Collection[Batch], names: frozenset[str], workers: int, progress: WalkProgress
    ) -> None:
        self.lane, self.batches, self.names, self.workers, self.progress = lane, batches, names, workers, progress
        self.depth = 0  # layers walked
        self._hidden: list[Tensor] = []
        self._present: LayerInputs | None = None

    def inputs(self, name: str) -> RowInputs:
        """Walk until a layer has this weight."""
        while self._present is None or name not in self._present:
            self._present = None  # let go of it before the next layer is built
            if self.depth > self.lane.num_layers or (self.depth == self.lane.num_layers and not self.lane.has_mtp):
                raise UserError(
                    f"{name} cannot be calibrated",
                    found="no layer of the model behind the present one has it",
                    fix="keep it by a rule of the recipe, or give --method mse",
                )
            self._present = self._advance()
        return self._present.inputs(name)

    def _advance(self) -> LayerInputs:
        """Build one layer, or the head behind the last one, and run all batches through it."""
        depth, total = self.depth, self.lane.num_layers
        where = f"calibration: {f'layer {depth + 1} of {total}' if depth < total else 'the head'}"
        self.progress(where)
        if depth == 0:
            self._hidden = [self.lane.embed(batch.tokens) for batch in self.batches]
        seen: list[Seen] = []
        head = self.lane.mtp() if depth == total else None
        layer = head.layer if head is not None else self.lane.layer(depth)
        wanted = self.names - expert_places(layer).keys()
        run = partial(self._through, layer, wanted) if head is None else partial(self._draft, head, wanted)
        with ThreadPoolExecutor(self.workers, "qconvert-calibration", torch.set_num_threads, (1,)) as pool:
            for one in pool.map(torch.inference_mode()(run), range(len(self.batches)), self.batches):
                seen.append(one)
                self.progress(f"{where}, {len(seen)} of {len(self.batches)} batches")
        self.depth += 1
        return LayerInputs.gather(layer, self.names, seen)

    def _through(self, layer: DecoderLayer, wanted: frozenset[str], number: int, batch: Batch) -> Seen:
        with recording(wanted) as found:
            self._hidden[number] = layer(self._hidden[number]).hidden
        return found, batch.mask()

    def _draft(self, head: MtpHead, wanted: frozenset[str], number: int, batch: Batch) -> Seen:
        normed = self.lane.finish(self._hidden[number])
        with recording(wanted) as found:
            head(batch.tokens[:, 1:], normed[:, :-1])
        return found, batch.mask(drop=1)[:, :-1]
