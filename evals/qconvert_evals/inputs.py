"""What entered the linears of one layer, and second moments of it for one weight at a time.

    plain linear         own = mean of x x^T over all tokens, nothing shared
    gate, up of expert   own = the same over the tokens routed to it; shared = over a sample of all tokens
    down of expert       x = silu(gate x) * up x of this expert; own and shared as above: the sample is sent through this
                         expert, too, because the channels of one expert have nothing to do with those of another

Rows are taken in the order of the tokens and products summed 1,024 rows at a time: each of BF16 factors is exact in
fp32, sums of pieces are in fp64. Nothing is kept but the rows themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from qconvert.calibration import Moments
from qconvert_reference.layer import DecoderLayer
from qconvert_reference.moe import Mlp, SparseMoe
from qconvert_reference.recording import Recording

PIECE = 1024  # rows
SAMPLE = 4096  # tokens that stand for all of a layer

Rows = Callable[[], Iterator[Tensor]]  # pieces [n, K]


@dataclass(frozen=True, eq=False)
class RowInputs:
    """The rows that one weight, or all weights of one input, were given."""

    tokens: int
    width: int
    rows: Rows
    sample: Rows | None = None  # what is shared
    sample_tokens: int = 0

    def importance(self) -> Moments:
        """Means of x^2, fp64 [K]."""
        return self._moments((self.width,), lambda piece: piece.double().square().sum(0))

    def hessian(self) -> Moments:
        """Means of x x^T, fp64 [K, K]."""
        return self._moments((self.width, self.width), lambda piece: (piece.float().T @ piece.float()).double())

    @torch.inference_mode()
    def _moments(self, shape: tuple[int, ...], product: Callable[[Tensor], Tensor]) -> Moments:
        own = _mean(self.rows, self.tokens, shape, product)
        return Moments(own, self.sample and _mean(self.sample, self.sample_tokens, shape, product))


def _mean(rows: Rows, count: int, shape: tuple[int, ...], product: Callable[[Tensor], Tensor]) -> Tensor:
    total = torch.zeros(shape, dtype=torch.float64)
    for piece in rows():
        total += product(piece)
    return total / max(count, 1)


@dataclass(frozen=True)
class _Experts:
    """The mixture of one layer: x [N, H] of all tokens, and which of them went where."""

    moe: SparseMoe
    x: Tensor
    tokens: Sequence[Tensor]  # numbers of each expert's tokens
    sample: Tensor  # [n] numbers of tokens that stand for all

    @classmethod
    def sort(cls, moe: SparseMoe, x: Tensor, chosen: Tensor) -> _Experts:
        """From the experts [N, k] that each token went to."""
        order = chosen.flatten().argsort(stable=True)  # pairs (token, choice), expert by expert
        counts = chosen.flatten().bincount(minlength=len(moe.experts))
        tokens = torch.split(order // chosen.shape[1], counts.tolist())
        return cls(moe, x, tokens, torch.linspace(0, len(x) - 1, min(SAMPLE, len(x))).round().long())

    def inputs(self, expert: int, hidden: bool) -> RowInputs:
        """Of gate and up, or of down ("hidden")."""
        mlp, numbers = self.moe.experts[expert], self.tokens[expert]
        width = mlp.down_proj.weight().shape[1] if hidden else self.x.shape[1]
        run = mlp if hidden else None
        return RowInputs(
            len(numbers), width, _select(self.x, numbers, run), _select(self.x, self.sample, run), len(self.sample)
        )


def _select(x: Tensor, numbers: Tensor, mlp: Mlp | None) -> Rows:
    """Rows of x by their numbers, on their way into an expert, or into its down projection."""

    def rows() -> Iterator[Tensor]:
        for part in torch.split(numbers, PIECE):
            entering = x[part]
            yield entering if mlp is None else mlp.hidden(entering)

    return rows


@dataclass
class LayerInputs:
    """All weights of one layer whose inputs are wanted."""

    plain: dict[str, RowInputs]
    experts: _Experts | None
    places: dict[str, tuple[int, bool]]  # weight -> expert, whether it is the down projection
    _made: WeakValueDictionary[tuple[int, bool], RowInputs] = field(default_factory=WeakValueDictionary)

    @classmethod
    def gather(
        cls, layer: DecoderLayer, names: Collection[str], seen: Sequence[tuple[Recording, Tensor]]
    ) -> LayerInputs:
        """From the recordings of all batches, each with the mask [B, T] of its tokens. Padding is dropped here."""
        places = {name: place for name, place in expert_places(layer).items() if name in names}
        experts = None
        if isinstance(layer.mlp, SparseMoe) and places:
            x = torch.cat([_present(found.routed, mask) for found, mask in seen])
            chosen = torch.cat([_present(found.chosen, mask) for found, mask in seen])
            experts = _Experts.sort(layer.mlp, x, chosen)
        recorded = dict.fromkeys(name for found, _ in seen for name in found.inputs)
        masked: dict[tuple[int, ...], RowInputs] = {}
        plain: dict[str, RowInputs] = {}
        for name in recorded:
            inputs = [found.inputs[name] for found, _ in seen]
            key = tuple(map(id, inputs))
            if key not in masked:
                masked[key] = _all_rows([_present(x, mask) for x, (_, mask) in zip(inputs, seen, strict=True)])
            plain[name] = masked[key]
        return cls(plain, experts, places)

    def __contains__(self, name: str) -> bool:
        return name in self.plain or name in self.places

    def inputs(self, name: str) -> RowInputs:
        """The same object for weights of the same input, as long as somebody holds it."""
        if name in self.plain:
            return self.plain[name]
        assert self.experts is not None
        place = self.places[name]
        found = self._made.get(place)
        if found is None:
            found = self._made[place] = self.experts.inputs(*place)
        return found


def expert_places(layer: DecoderLayer) -> dict[str, tuple[int, bool]]:
    """Weight -> expert, whether it is the down projection."""
    if not isinstance(layer.mlp, SparseMoe):
        return {}
    experts = enumerate(layer.mlp.experts)
    return {linear.name: (number, linear is mlp.down_proj) for number, mlp in experts for linear in mlp.linears}


def _present(values: Tensor | None, mask: Tensor) -> Tensor:
    assert values is not None
    return values[mask]


def _all_rows(pieces: Sequence[Tensor]) -> RowInputs:
    def rows() -> Iterator[Tensor]:
        for piece in pieces:
            yield from torch.split(piece, PIECE)

    return RowInputs(sum(map(len, pieces)), pieces[0].shape[1], rows)
