"""What llm-compressor made (`made_by_llm_compressor.py`), bit for bit: its numbers are ours, its folders are read."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from qconvert.formats import format_of, open_weights
from qconvert.quantization import quantize
from qconvert.schemes import QuantizedWeight, get_scheme
from qconvert.verification.numbers import error_limit
from tests.int4.folders import run
from tests.int4.foreign import load, matrices, restore, source_tensors, write_source

GROUPS = (32, 64, 128)


def theirs(case: str, weight: str) -> QuantizedWeight:
    """The numbers of one weight of a fixture, read as any folder is."""
    tensors, record = load(case)
    file_format = format_of({"quantization_config": record["config"]})
    assert file_format is not None
    metas = {name: _Meta(data) for name, data in tensors.items()}
    stored = file_format.find(weight, metas)
    assert stored is not None
    return file_format.unpack(stored, {part: tensors[name] for part, name in stored.parts.items()})


class _Meta:
    def __init__(self, data: Tensor) -> None:
        self.dtype = {
            torch.int32: "I32", torch.int64: "I64", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3",
        }[data.dtype]  # fmt: skip
        self.shape = tuple(data.shape)


@pytest.mark.parametrize("kind", ["bell", "tails", "square", "edges"])
@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("group", GROUPS)
def test_rtn_is_that_of_llm_compressor(group: int, asymmetric: bool, kind: str) -> None:
    """Scales and zero points are the same bits. Its codes are those of a quotient that was rounded to BF16, to the last
    one; ours are those of the quotient itself. So they can differ only where BF16 makes a tie, and there by one."""
    case = f"llm-compressor-matrices-g{group}{'-asym' if asymmetric else ''}"
    weight, found = matrices()[kind], theirs(case, f"{kind}.weight")
    ours = get_scheme(f"int4-g{group}", method="rtn", asymmetric=asymmetric).quantize(weight)
    assert torch.equal(ours.scales.view(torch.int16), found.scales.view(torch.int16))
    assert (ours.zeros is None) == (found.zeros is None) == (not asymmetric)
    assert ours.zeros is None or torch.equal(ours.zeros, torch.as_tensor(found.zeros))
    quotient = weight / found.scales.repeat_interleave(group, 1)  # [N, K] BF16
    if found.zeros is not None:
        quotient += found.zeros.repeat_interleave(group, 1)
    assert torch.equal(quotient.float().round().clamp(-8, 7).to(torch.int8), found.codes)
    differ = found.codes != ours.codes
    assert bool(((quotient.float() % 1)[differ] == 0.5).all())
    assert int((found.codes.short() - ours.codes.short()).abs().max()) <= 1
    error = (found.dequantize(torch.float32) - weight.float()).abs()
    assert bool((error <= error_limit(found, weight.float(), foreign=True)).all())


@pytest.mark.parametrize("kind", ["bell", "tails", "square", "edges"])
def test_fp8_is_that_of_llm_compressor(kind: str) -> None:
    """The same: its scales are ours, its codes those of a quotient that was rounded to BF16 on the way."""
    weight, found = matrices()[kind], theirs("llm-compressor-matrices-fp8", f"{kind}.weight")
    ours = get_scheme("fp8-block128").quantize(weight)
    assert torch.equal(ours.scales.view(torch.int16), found.scales.view(torch.int16))
    across = found.scales.repeat_interleave(128, 0).repeat_interleave(128, 1)[: weight.shape[0], : weight.shape[1]]
    quotient = (weight / across).clamp(-448, 448)
    assert torch.equal(quotient.to(torch.float8_e4m3fn).view(torch.uint8), found.codes.view(torch.uint8))
    exact = (weight.float() / across.float()).clamp(-448, 448)
    assert torch.equal(exact.to(torch.float8_e4m3fn).view(torch.uint8), ours.codes.view(torch.uint8))
    error = (found.dequantize(torch.float32) - weight.float()).abs()
    assert bool((error <= error_limit(found, weight.float(), foreign=True)).all())


@pytest.mark.parametrize("asymmetric", [False, True])
def test_words_are_those_of_llm_compressor(asymmetric: bool, tmp_path: Path) -> None:
    """Its folder and ours of the same source, file beside file: names, types, shapes, packed words, scales, zeros."""
    case = "llm-compressor-g32-asym" if asymmetric else "llm-compressor-g32"
    source = write_source(tmp_path / "source")
    quantize(source, tmp_path / "ours", scheme="int4-g32", method="rtn", asymmetric=asymmetric, recipe="all-linears")
    tensors, record = load(case)
    ours = open_weights(tmp_path / "ours")
    assert {name: ours.checkpoint.tensors[name].shape for name in tensors} == {
        name: tuple(data.shape) for name, data in tensors.items()
    }
    assert set(record["removed"]) == set(ours.quantized)
    plain = source_tensors()
    for name, data in tensors.items():
        own = ours.checkpoint.read(name)
        assert own.dtype == data.dtype
        if not name.endswith("_packed"):
            assert torch.equal(own, data), name
            continue
        weight = name.removesuffix("_packed")
        found, mine = theirs(case, weight), ours.load(weight)
        assert isinstance(mine, QuantizedWeight)
        quotient = plain[weight] / found.scales.repeat_interleave(32, 1)
        if found.zeros is not None:
            quotient += found.zeros.repeat_interleave(32, 1)
        clear = (quotient.float() % 1 != 0.5).view(*data.shape, 8).all(-1)  # words without a tie
        assert torch.equal(own[clear], data[clear]) and bool(clear.any())


@pytest.mark.parametrize("case", ["llm-compressor-g32", "llm-compressor-g32-asym"])
def test_folders_of_llm_compressor(case: str, tmp_path: Path) -> None:
    source, folder = write_source(tmp_path / "source"), restore(case, tmp_path / "theirs")
    done = run("verify", folder, "--against", source)
    assert done.exit_code == 0, done.output
    done = run("convert", folder, tmp_path / "awq", "--format", "awq")
    assert done.exit_code == 0, done.output
    for against in (source, folder):
        done = run("verify", tmp_path / "awq", "--against", against)
        assert done.exit_code == 0, done.output
