"""What entered the linears of one layer, and second moments of it for one weight at a time.

    plain linear         own = mean of x x^T over all tokens, nothing shared
    gate, up of expert   own = the same over the tokens routed to it; shared = over all tokens of the layer
    down of expert       x = silu(gate x) * up x of this expert; own as above; shared = over a sample of all tokens,
                         sent through this expert: channels of two experts have nothing to do with each other

Rows are taken in the order of the tokens and products summed 1,024 rows at a time: each of BF16 factors is exact in
fp32, sums of pieces are in fp64. Nothing is kept but the rows themselves.
"""

from __future__ import annotations

import threading
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
SAMPLE = 4096  # tokens that are sent through every expert for what is shared

Pieces = Callable[[], Iterator[Tensor]]  # [n, K] each


class Rows:
    """Rows of some input, and their moments."""

    def __init__(self, count: int, width: int, pieces: Pieces) -> None:
        self.count, self.width, self._pieces = count, width, pieces

    def importance(self) -> Tensor:
        """Mean of x^2, fp64 [K]."""
        return self._mean((self.width,), lambda piece: piece.double().square().sum(0))

    def hessian(self) -> Tensor:
        """Mean of x x^T, fp64 [K, K]."""
        return self._mean((self.width, self.width), lambda piece: (piece.float().T @ piece.float()).double())

    @torch.inference_mode()
    def _mean(self, shape: tuple[int, ...], product: Callable[[Tensor], Tensor]) -> Tensor:
        total = torch.zeros(shape, dtype=torch.float64)
        for piece in self._pieces():
            total += product(piece)
        return total / max(self.count, 1)


class KeptRows(Rows):
    """Rows whose moments are asked for again and again: computed once, by whoever asks first."""

    def __init__(self, count: int, width: int, pieces: Pieces) -> None:
        super().__init__(count, width, pieces)
        self._lock = threading.Lock()
        self._kept: dict[str, Tensor] = {}

    def importance(self) -> Tensor:
        """Mean of x^2, fp64 [K]."""
        return self._keep("importance", super().importance)

    def hessian(self) -> Tensor:
        """Mean of x x^T, fp64 [K, K]."""
        return self._keep("hessian", super().hessian)

    def _keep(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        with self._lock:
            if name not in self._kept:
                self._kept[name] = compute()
            return self._kept[name]


class RowInputs:
    """What entered one weight, or all weights of one input (`qconvert.calibration.Inputs`)."""

    def __init__(self, own: Rows, shared: Rows | None = None) -> None:
        self.own, self.shared = own, shared

    @property
    def tokens(self) -> int:
        """Rows that the model sent there."""
        return self.own.count

    def importance(self) -> Moments:
        """Means of x^2."""
        return self._moments(lambda rows: rows.importance())

    def hessian(self) -> Moments:
        """Means of x x^T."""
        return self._moments(lambda rows: rows.hessian())

    def _moments(self, of: Callable[[Rows], Tensor]) -> Moments:
        own, shared = self.own, self.shared
        if shared is None:
            return Moments(of(own), own.count)
        return Moments(of(own), own.count, of(shared), shared.count)


@dataclass(frozen=True)
class _Experts:
    """The mixture of one layer: x [N, H] of all tokens, and which of them went where."""

    moe: SparseMoe
    x: Tensor
    tokens: Sequence[Tensor]  # numbers of each expert's tokens
    sample: Tensor  # [n] numbers of tokens that stand for all
    all: Rows

    @classmethod
    def sort(cls, moe: SparseMoe, x: Tensor, chosen: Tensor) -> _Experts:
        """From the experts [N, k] that each token went to."""
        order = chosen.flatten().argsort(stable=True)  # pairs (token, choice), expert by expert
        counts = chosen.flatten().bincount(minlength=len(moe.experts))
        tokens = torch.split(order // chosen.shape[1], counts.tolist())
        sample = torch.linspace(0, len(x) - 1, min(SAMPLE, len(x))).round().long()
        return cls(moe, x, tokens, sample, KeptRows(len(x), x.shape[1], lambda: iter(torch.split(x, PIECE))))

    def inputs(self, expert: int, hidden: bool) -> RowInputs:
        """Of gate and up, or of down ("hidden")."""
        mlp, numbers = self.moe.experts[expert], self.tokens[expert]
        if not hidden:
            return RowInputs(Rows(len(numbers), self.x.shape[1], _select(self.x, numbers)), self.all)
        width = mlp.down_proj.weight().shape[1]
        own, shared = (Rows(len(n), width, _select(self.x, n, mlp)) for n in (numbers, self.sample))
        return RowInputs(own, shared)


def _select(x: Tensor, numbers: Tensor, mlp: Mlp | None = None) -> Pieces:
    """Rows of x by their numbers, on their way into an expert, or into its down projection."""

    def pieces() -> Iterator[Tensor]:
        for part in torch.split(numbers, PIECE):
            entering = x[part]
            yield entering if mlp is None else mlp.hidden(entering)

    return pieces


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


def _all_rows(parts: Sequence[Tensor]) -> RowInputs:
    def pieces() -> Iterator[Tensor]:
        for part in parts:
            yield from torch.split(part, PIECE)

    return RowInputs(Rows(sum(map(len, parts)), parts[0].shape[1], pieces))
