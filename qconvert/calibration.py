"""What calibrated methods know of a weight's inputs, and where they get it from.

Running a model is not the core's business. A room above registers one function under the entry-point group
`qconvert.calibration`; it opens text for a checkpoint (tokens chosen, nothing computed) and, when a conversion asks for
one weight after the other, walks the model as far as needed:

    text = find_calibration()(checkpoint folder, Request(source, tokens, seq_len))
    text.identity                                   which tokens these are; part of the recipe
    seen = text.walk(names, workers, progress)      names: the weights that will be asked for
    seen.inputs(name)                               in the order of the layers; Inputs stay valid while they are held

Per input channel or pair of channels, with x the rows that the model sent to this weight (an expert's: those of the
tokens routed to it) and y those it would have got had every token been sent to it (the same rows, but for experts):

    second moments   own = mean of x^2 or x x^T      shared = mean of y^2 or y y^T

Conversions without calibration give the same bytes on every machine. Calibrated ones do for the same statistics, and
these come from a forward pass whose matrix products differ between machines in their last bits.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from qconvert.errors import UserError
from qconvert.schemes.int4.gptq import Moments

__all__ = [
    "DEFAULT_TOKENS",
    "CalibrationText",
    "Inputs",
    "Moments",
    "Request",
    "Walk",
    "WalkProgress",
    "find_calibration",
]

GROUP = "qconvert.calibration"
EXTRA = "evals"  # brings what the function needs
DEFAULT_TOKENS = 131_072  # an expert of 512, of which 10 are routed to, sees 2,560 of them on average
SEQ_LEN = 2048

WalkProgress = Callable[[str], None]  # what is being done


@dataclass(frozen=True)
class Request:
    """Which text: a specification as `compare --data` takes it, and how much of it at most."""

    source: str
    tokens: int = DEFAULT_TOKENS
    seq_len: int = SEQ_LEN


class Inputs(Protocol):
    """What was seen of one weight's inputs. Weights with the same inputs have the same object."""

    @property
    def tokens(self) -> int:
        """Rows that the model sent to this weight."""
        ...

    def importance(self) -> Moments:
        """The diagonal of `hessian`, cheaper: [K]."""
        ...

    def hessian(self) -> Moments:
        """Second moments of pairs of inputs: [K, K]."""
        ...


class Walk(Protocol):
    """A model on its way through the layers."""

    def inputs(self, name: str) -> Inputs:
        """Of a weight in the present layer or a later one; weights of earlier layers are gone."""
        ...


class CalibrationText(Protocol):
    """Tokens chosen for a checkpoint."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """source, tokens, sequences, seq_len, sha256 of the tokens."""
        ...

    def walk(self, names: Collection[str], workers: int, progress: WalkProgress) -> Walk:
        """Start in front of the first layer."""
        ...


def find_calibration() -> Callable[[Path, Request], CalibrationText]:
    """The registered function; a UserError that says what to install if there is none."""
    for point in metadata.entry_points(group=GROUP):
        try:
            found: Callable[[Path, Request], CalibrationText] = point.load()
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == "qconvert":  # a bug of ours, not something to install
                raise
            raise _not_installed(f"the package `{error.name}` is missing") from error
        return found
    raise _not_installed("no calibration is registered")


def _not_installed(found: str) -> UserError:
    return UserError(
        "calibrated methods run the reference model, which is not installed",
        found=found,
        fix=f"pip install 'qconvert[{EXTRA}]', or give --method mse",
    )
