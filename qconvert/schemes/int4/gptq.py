"""GPTQ: codes of one weight chosen so that the outputs change least, for inputs whose second moments are known.

    loss    tr((W' - W) H (W' - W)^T),  H [K, K] the mean of x x^T: the mean squared change of all outputs

Scales and zero points are fixed beforehand by the search of `rules` (static groups). Then one input after the other is
rounded, the most active first, and its error is passed on to the inputs not yet rounded, which can undo a part of it.
With U upper triangular, U^T U = (H + damping)^-1, in the order of rounding:

    q_k = round(w_k),   e_k = (w_k - q_k) / U[k, k],   w_j -= e_k U[k, j] for j > k

Groups keep their natural places, so that files look like those of any other method. A code may leave the one that
plain rounding gives by `Int4.most_moved` at most, so that `verify` has a bound that holds; more gains nothing. Sums run
in fp64, so that different libraries differ only in the fifteenth digit.

Few rows: with n of an expert's own, its moments are mixed with those that all tokens of its layer (m of them) would
give it, and pairs of inputs are trusted as far as there are more rows than inputs:

    H = (n H_own + P H_shared) / (n + P),    rows = (n + P)^2 / (n + P^2 / m),    H_ij *= rows / (rows + K) for i != j

rows is the number of equally weighted rows that have as much noise as the mixture. With few of them H is nearly
diagonal and nothing is passed on: gptq becomes imatrix by itself.

Left out: scales that follow the moved weights, groups made after reordering (engines no longer load them), and batches
of factorisations: gate and up share one, and on a CPU each core does a matrix of its own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from qconvert.schemes.int4.number_format import Int4
from qconvert.schemes.int4.rules import HIGHEST, LOWEST
from qconvert.schemes.scheme import QuantizedWeight

BLOCK = 128  # inputs whose errors are passed on to the rest in one product
DAMPINGS = (0.01, 0.03, 0.1, 0.3, 1.0)  # times the mean of the diagonal; the first that can be factorised is taken
PRIOR_TOKENS = 512.0  # measured: best or near it with 125, 500 and 10,000 tokens an expert (design note)


@dataclass(frozen=True)
class Moments:
    """Second moments of a weight's inputs in fp64, [K] or [K, K], and of how many rows they are the means. `shared` is
    None where nothing is shared."""

    own: Tensor
    tokens: int
    shared: Tensor | None = None
    shared_tokens: int = 0


class NotFactorised(ValueError):
    """A Hessian that no damping makes positive definite: it holds NaN or infinities, or only zeros."""


@dataclass(frozen=True)
class Factor:
    """What the sweep needs of a Hessian; weights with the same inputs share it."""

    order: Tensor  # [K] long: the inputs, the most active first
    upper: Tensor  # [K, K] fp64: U in that order
    damping: float


def mixed(moments: Moments) -> Tensor:
    """An expert's own moments and those of its layer, (n own + P shared) / (n + P): [K] or [K, K]."""
    own, n = moments.own, moments.tokens
    return own if moments.shared is None else (n * own + PRIOR_TOKENS * moments.shared) / (n + PRIOR_TOKENS)


def estimate(moments: Moments) -> Tensor:
    """The Hessian [K, K] to work with: mixed, and pairs of inputs trusted as far as there are rows."""
    hessian, rows = mixed(moments), float(moments.tokens)
    if moments.shared is not None:
        n, prior = moments.tokens, PRIOR_TOKENS
        rows = (n + prior) ** 2 / (n + prior**2 / max(moments.shared_tokens, 1))
    estimated = hessian * (rows / (rows + len(hessian)))
    estimated.diagonal().copy_(hessian.diagonal())
    return estimated


def factorise(hessian: Tensor) -> Factor:
    """Order and factor of a Hessian [K, K]; raises NotFactorised."""
    diagonal = hessian.diagonal()
    mean = float(diagonal.mean())
    if not (mean > 0 and bool(torch.isfinite(hessian).all())):
        raise NotFactorised(f"the mean square of the inputs is {mean}")
    order = diagonal.argsort(descending=True, stable=True)
    ordered = hessian[order][:, order]
    for damping in DAMPINGS:
        damped = ordered.clone()
        damped.diagonal().add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return Factor(order, upper, damping)
    raise NotFactorised(f"not positive definite with damping {DAMPINGS[-1]}")


def improve(weight: Tensor, start: QuantizedWeight, factor: Factor) -> QuantizedWeight:
    """Other codes for a weight [N, K] that plain rounding has quantized; the scales stay."""
    scheme, order = start.scheme, factor.order
    assert isinstance(scheme, Int4)
    columns = weight.shape[1]
    groups = order // scheme.group
    left = weight.double().T[order].contiguous()  # [K, N]: what is still to be rounded, in order
    scales = start.scales.float().T[groups].contiguous()  # [K, N]
    zeros = torch.zeros_like(scales) if start.zeros is None else start.zeros.float().T[groups].contiguous()
    nearest = start.codes.float().T[order].contiguous()
    least = (nearest - scheme.most_moved).clamp_(min=LOWEST)
    most = (nearest + scheme.most_moved).clamp_(max=HIGHEST)
    codes = torch.empty_like(nearest)
    for begin in range(0, columns, BLOCK):
        end = min(begin + BLOCK, columns)
        upper = factor.upper[begin:end]  # [block, K]
        errors = torch.empty_like(left[begin:end])
        for k in range(begin, end):
            code = (left[k].float() / scales[k]).add_(zeros[k]).round_()
            code = torch.minimum(torch.maximum(code, least[k]), most[k])
            codes[k] = code
            error = left[k] - ((code - zeros[k]) * scales[k]).double()
            errors[k - begin] = error.div_(upper[k - begin, k])
            left[k + 1 : end].addr_(upper[k - begin, k + 1 : end], errors[k - begin], alpha=-1)
        left[end:].addmm_(upper[:, end:].T, errors, alpha=-1)
    found = torch.empty_like(start.codes)
    found[:, order] = codes.T.to(torch.int8)
    return QuantizedWeight(scheme, found, start.scales, start.zeros)


def output_error(weight: Tensor, numbers: QuantizedWeight, hessian: Tensor) -> float:
    """tr((W' - W) H (W' - W)^T), in fp64."""
    difference = numbers.dequantize(torch.float32).double() - weight.double()
    return float(((difference @ hessian) * difference).sum())
