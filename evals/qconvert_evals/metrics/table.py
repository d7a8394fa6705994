"""A growing table of a few float64 columns per token, filled piece by piece and read as whole columns."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

from qconvert_evals.statistics import Array, Index


class TokenTable:
    """Columns of equal length; about 8 bytes per column and token."""

    def __init__(self) -> None:
        self._pieces: dict[str, list[npt.NDArray[np.generic]]] = {}

    def append(self, **columns: Tensor) -> None:
        """Add one piece; every column [n] of the same n, and the same columns every time."""
        lengths = {len(column) for column in columns.values()}
        if len(lengths) != 1 or (self._pieces and set(columns) != set(self._pieces)):
            raise ValueError(f"{sorted(columns)} of lengths {sorted(lengths)} do not extend {sorted(self._pieces)}")
        for name, column in columns.items():
            self._pieces.setdefault(name, []).append(column.detach().cpu().numpy().copy())

    def __len__(self) -> int:
        return sum(len(piece) for piece in next(iter(self._pieces.values()), []))

    def numbers(self, name: str) -> Array:
        """One column as float64 [n]."""
        return np.concatenate(self._pieces[name]).astype(np.float64) if name in self._pieces else np.zeros(0)

    def indices(self, name: str) -> Index:
        """One column as int64 [n]."""
        return np.concatenate(self._pieces[name]).astype(np.int64) if name in self._pieces else np.zeros(0, np.int64)
