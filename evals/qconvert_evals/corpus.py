"""From documents to batches of tokens: tokenizer, a token budget spread over domains and documents, right padding.

Every domain gets the same share of the budget, and within it every document the same share, because intervals narrow
with the number of documents. A document gives its beginning first, one sequence of at most `seq_len` tokens; further
sequences follow only while the domain has budget left over. Shares below MIN_SHARE tokens are not made: fewer
documents are taken instead, since a model's state at the start of a text is not what it is serving with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from qconvert.errors import UserError
from qconvert_evals.data import Document

TOKENIZER = "tokenizer.json"
MIN_SHARE = 256
BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Stretch:
    """A stretch of one document."""

    document: int
    start: int  # position of its first token in the document
    tokens: list[int]


@dataclass(frozen=True)
class Batch:
    """Sequences of similar length, right-padded; causal models never see the padding from inside a sequence."""

    tokens: Tensor  # [B, T] long
    lengths: Tensor  # [B] long
    documents: Tensor  # [B] long, document numbers
    numbers: Tensor  # [B] long, numbers of the sequences in Corpus.sequences

    def mask(self, drop: int = 0) -> Tensor:
        """[B, T]: True where a token is followed by at least `drop` further ones in its sequence."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device)[None] < (self.lengths[:, None] - drop)

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return Batch(*(one.to(device) for one in (self.tokens, self.lengths, self.documents, self.numbers)))

    def spread(self, values: Tensor) -> Tensor:
        """One value per sequence [B] to one per position [B, T]."""
        return values[:, None].expand(self.tokens.shape)


@dataclass(frozen=True)
class Corpus:
    """What all lanes read."""

    documents: Sequence[Document]
    sequences: Sequence[Stretch]
    batches: Sequence[Batch]

    def to(self, device: torch.device) -> Corpus:
        """The same corpus with its batches on a device."""
        return replace(self, batches=[batch.to(device) for batch in self.batches])

    @property
    def domains(self) -> list[str]:
        """Domain of each document, by number."""
        return [one.domain for one in self.documents]

    @property
    def tokens(self) -> int:
        """Tokens in all sequences."""
        return sum(len(one.tokens) for one in self.sequences)

    @property
    def sha256(self) -> str:
        """Hash of all token numbers in order: two runs with the same hash measured the same tokens."""
        digest = hashlib.sha256()
        for one in self.sequences:
            digest.update(torch.tensor([len(one.tokens), *one.tokens], dtype=torch.int64).numpy().tobytes())
        return digest.hexdigest()


class Tokenizer:
    """The checkpoint's tokenizer.json."""

    def __init__(self, folder: Path) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise UserError(
                "making tokens of text needs the package `tokenizers`", fix="pip install 'qconvert[evals]'"
            ) from error
        path = folder / TOKENIZER
        if not path.is_file():
            raise UserError("the checkpoint has no tokenizer", where=str(folder), expected=TOKENIZER)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises bare Exception
            raise UserError("cannot read the tokenizer", where=str(path), found=str(error)) from error

    def encode(self, text: str) -> list[int]:
        """Token numbers of a text, without special tokens around it."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token numbers, special tokens shown."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=False)
        return text


def make_corpus(
    documents: Sequence[Document], encode: Callable[[str], list[int]], *, tokens: int, seq_len: int, vocab_size: int
) -> Corpus:
    """Choose sequences within the budget and batch them."""
    if seq_len < 2 or tokens < 2:
        raise UserError("nothing can be predicted in so few tokens", expected="--tokens and --seq-len of 2 or more")
    by_domain: dict[str, list[int]] = {}
    for number, document in enumerate(documents):
        by_domain.setdefault(document.domain, []).append(number)
    sequences: list[Stretch] = []
    for numbers in by_domain.values():
        sequences += _choose(documents, numbers, encode, max(tokens // len(by_domain), 2), seq_len)
    if not sequences:
        raise UserError("no document has two tokens, so nothing can be predicted")
    largest = max(max(one.tokens) for one in sequences)
    if largest >= vocab_size:
        raise UserError(
            "tokenizer and model do not belong together",
            where=TOKENIZER,
            expected=f"token numbers below the model's vocab_size {vocab_size}",
            found=str(largest),
        )
    return Corpus(documents, sequences, _batches(sequences))


def _choose(
    documents: Sequence[Document], numbers: Sequence[int], encode: Callable[[str], list[int]], budget: int, seq_len: int
) -> list[Stretch]:
    """Sequences of one domain: rounds over its documents, each giving its next stretch, while budget and text last."""
    share = min(seq_len, max(MIN_SHARE, budget // len(numbers)))
    encoded: dict[int, list[int]] = {}
    chosen: list[Stretch] = []
    for start in count(0, share):
        before = len(chosen)
        for number in numbers:
            if number not in encoded and budget >= 2:
                encoded[number] = encode(documents[number].text)
            piece = encoded.get(number, [])[start : start + min(share, budget)]
            if len(piece) >= 2:
                chosen.append(Stretch(number, start, piece))
                budget -= len(piece)
        if len(chosen) == before:
            break
    return chosen


def _batches(sequences: Sequence[Stretch]) -> list[Batch]:
    """Sequences of similar length together, at most BATCH_TOKENS padded tokens a batch."""
    order = sorted(range(len(sequences)), key=lambda number: -len(sequences[number].tokens))
    batches = []
    while order:
        width = len(sequences[order[0]].tokens)
        fitting = max(1, BATCH_TOKENS // width)
        members, order = order[:fitting], order[fitting:]
        padded = torch.zeros(len(members), width, dtype=torch.long)
        for row, number in enumerate(members):
            padded[row, : len(sequences[number].tokens)] = torch.tensor(sequences[number].tokens)
        lengths = torch.tensor([len(sequences[number].tokens) for number in members])
        owners = torch.tensor([sequences[number].document for number in members])
        batches.append(Batch(padded, lengths, owners, torch.tensor(members)))
    return batches
