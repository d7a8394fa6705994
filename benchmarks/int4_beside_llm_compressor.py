"""INT4 beside llm-compressor's data-free path, `model_free_ptq`: the same numbers? the same time and memory?

`--what numbers`: random BF16 experts (half Gaussian, half Student's t with 5 degrees of freedom; 101 million weights by
default) through both, W4A16 and W4A16_ASYM at each group size, and FP8_BLOCK. Counted: equal scales, zero points and
codes; codes that differ where the quotient, rounded to BF16 as llm-compressor rounds it, is a tie between two integers
(INT4) or where that rounding alone gives its code (FP8); and codes that differ without either: `unexplained`.

`--what speed`: the 80B model's true shapes, one layer (4.5 GB), rounds of `cp -r`, ours (rtn, mse) and theirs, each
with sync; medians and the largest peak RSS. Theirs quantizes the routed experts only, as our default recipe does.

llm-compressor lives in an environment of its own, named by --python. It is a witness, never a dependency.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))
from quantize_beside_cp import Cost, make_source, run, summary

from qconvert.checkpoint import write_checkpoint
from qconvert.formats import open_weights
from qconvert.schemes import QuantizedWeight, get_scheme

THEIRS = """
import json, sys
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor import model_free_ptq

source, target, kind, group, ignore, workers = sys.argv[1:7]
scheme = kind
if kind != "FP8_BLOCK":
    args = QuantizationArgs(num_bits=4, symmetric=kind == "W4A16", strategy="group", group_size=int(group))
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
model_free_ptq(source, target, scheme=scheme, ignore=json.loads(ignore), max_workers=int(workers))
"""
ALL_BUT_EXPERTS = [r"re:^(?!.*\.mlp\.experts\.).*"]
CHUNK = 1 << 20  # weights compared at a time


def theirs(options: argparse.Namespace, source: Path, target: Path, kind: str, group: int) -> list[str]:
    """Their command line."""
    settings = [kind, str(group), json.dumps(ALL_BUT_EXPERTS), str(options.workers)]
    return [options.python, "-c", THEIRS, str(source), str(target), *settings]


def write_experts(folder: Path, count: int) -> None:
    """Experts of the 80B model's shapes with independent random weights."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for expert in range(count):
        for part, shape in (("gate", (512, 2048)), ("up", (512, 2048)), ("down", (2048, 512))):
            weight = torch.randn(shape, generator=generator)
            if expert % 2:
                weight /= torch.stack([torch.randn(shape, generator=generator) ** 2 for _ in range(5)]).mean(0).sqrt()
            tensors[f"model.layers.0.mlp.experts.{expert}.{part}_proj.weight"] = (0.02 * weight).bfloat16()
    write_checkpoint(folder, {"architectures": [], "model_type": "none"}, tensors, 1)


def compare(source: Path, target: Path) -> dict[str, int]:
    """Counts over all quantized weights of their folder."""
    counts: Counter[str] = Counter()
    plain, other = open_weights(source), open_weights(target)
    for name, scheme in other.quantized.items():
        weight, found = plain.load(name), other.load(name)
        assert isinstance(weight, Tensor) and isinstance(found, QuantizedWeight)
        int4 = found.codes.dtype == torch.int8
        options = {"method": "rtn", "asymmetric": found.zeros is not None} if int4 else {}
        ours = get_scheme(scheme.name, **options).quantize(weight)
        counts["weights"] += weight.numel()
        counts["scales"] += ours.scales.numel()
        counts["scales_equal"] += int((ours.scales == found.scales).sum())
        if ours.zeros is not None and found.zeros is not None:
            counts["zeros_equal"] += int((ours.zeros == found.zeros).sum())
        for start, stop in pieces(weight.shape[0], weight.shape[1]):
            mine, their = (numbers.codes[start:stop].view(torch.int8) for numbers in (ours, found))
            differ, explained = mine != their, why(found, weight, start, stop)
            counts["codes_equal"] += int((~differ).sum())
            counts["explained"] += int((differ & explained).sum())
            counts["unexplained"] += int((differ & ~explained).sum())
    return dict(counts)


def pieces(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Ranges of whole blocks of 128 rows."""
    step = max(128, CHUNK // columns // 128 * 128)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def why(found: QuantizedWeight, weight: Tensor, start: int, stop: int) -> Tensor:
    """Where their own arithmetic, the quotient rounded to BF16, explains a code other than ours."""
    height, width = found.scheme.block
    scales = found.scales[start // height : -(-stop // height)]
    across = scales.repeat_interleave(height, 0).repeat_interleave(width, 1)[: stop - start, : weight.shape[1]]
    quotient = weight[start:stop] / across
    if found.codes.dtype != torch.int8:
        code = quotient.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.int8)
        return code == found.codes[start:stop].view(torch.int8)
    if found.zeros is not None:
        quotient += found.zeros[start:stop].repeat_interleave(width, 1)
    return quotient.float() % 1 == 0.5


def numbers(options: argparse.Namespace, work: Path) -> dict[str, dict[str, int]]:
    """All kinds, one after the other."""
    source, target = work / "experts", work / "theirs"
    write_experts(source, options.experts)
    cases = [(kind, group) for kind in ("W4A16", "W4A16_ASYM") for group in (32, 64, 128)]
    figures = {}
    for kind, group in [*cases, ("FP8_BLOCK", 128)]:
        run(theirs(options, source, target, kind, group))
        figures[kind if kind == "FP8_BLOCK" else f"{kind} g{group}"] = compare(source, target)
        shutil.rmtree(target)
    return figures


def speed(options: argparse.Namespace, work: Path) -> dict[str, object]:
    """Alternate the jobs."""
    source, target = work / "source", work / "target"
    size = make_source(source)
    ours = [sys.executable, "-m", "qconvert", "quantize", str(source), str(target), "--scheme", "int4-g128"]
    ours += ["--workers", str(options.workers)]
    jobs = {
        "cp": ["cp", "-r", str(source), str(target)],
        "ours_rtn": [*ours, "--method", "rtn"],
        "ours_mse": [*ours, "--method", "mse"],
        "llm_compressor": theirs(options, source, target, "W4A16", 128),
    }
    costs: dict[str, list[Cost]] = {name: [] for name in jobs}
    for _ in range(options.rounds):
        for name, command in jobs.items():
            costs[name].append(run(command))
            shutil.rmtree(target)
    copying = statistics.median(cost.wall for cost in costs["cp"])
    figures: dict[str, object] = {"source_gb": round(size / 1e9, 3), "workers": options.workers}
    for name, taken in costs.items():
        ratio = statistics.median(cost.wall for cost in taken) / copying
        figures[name] = summary(taken, size) | {"ratio_to_cp": round(ratio, 3)}
    return figures


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description="INT4 beside llm-compressor")
    parser.add_argument("--python", required=True, help="interpreter of an environment with llmcompressor")
    parser.add_argument("--what", choices=["numbers", "speed"], default="numbers")
    parser.add_argument("--experts", type=int, default=32, help="3.1 million weights each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="qconvert-bench-", dir=options.folder))
    try:
        print(json.dumps((numbers if options.what == "numbers" else speed)(options, work), indent=2))
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
