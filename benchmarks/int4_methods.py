"""Errors of the INT4 methods: what `rtn`, `mse`, `imatrix` and `gptq` cost, at groups of 32, 64 and 128.

    python benchmarks/int4_methods.py [--calibration-tokens 40000] [--tokens 40000] [--seq-len 512] [--groups 32 64 128]

On the trained small model: its routed experts in INT4, everything else BF16. Of the packaged texts, which the model
was not trained on, every second document calibrates and the others are measured on. Columns: relative error of the
quantized weights; KL divergence of the next token from BF16, mean with its interval over documents, and 99th
percentile; same most likely token; same set of experts, averaged over layers; drafts accepted at step 1 and 3. On
random weights without a model, Gaussian and Student-t with 5 degrees of freedom: relative error of the weights, and of
outputs for correlated inputs, sqrt(tr(E H E^T) / tr(W H W^T)).

Prints JSON, then the same as Markdown. Errors do not depend on the machine's speed; ten minutes on two cores.
"""

import argparse
import json
import platform
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qconvert.manifest import Manifest
from qconvert.quantization import quantize
from qconvert.schemes import get_scheme, relative_error, squared_error
from qconvert.schemes.int4 import WEIGHTED, gptq
from qconvert_evals.compare import compare
from qconvert_evals.data import Document, load_documents
from qconvert_evals.results import Results
from qconvert_evals.small_model_files import small_model_path
from qconvert_evals.speculation import LiveSettings

METHODS = ("rtn", "mse", "imatrix", "gptq")
MEASURED = {
    "weight_error": ("weights.relative_error", "all"),
    "kl_mean": ("logits.kl_mean", "all"),
    "kl_p99": ("logits.kl_p99", "all"),
    "top1": ("logits.top1_agreement", "all"),
    "router": ("router.set_match", "feed=free"),
    "mtp_1": ("mtp.acceptance_greedy", "position=1"),
    "mtp_3": ("mtp.acceptance_greedy", "position=3"),
}


@dataclass(frozen=True)
class Split:
    """Every second document of the package, and the others."""

    calibration: list[Document]
    measured: list[Document]

    @classmethod
    def make(cls) -> "Split":
        """Neighbours in a file go to different sides, so that both have all domains."""
        documents = load_documents()
        return cls(documents[::2], documents[1::2])

    def write(self, path: Path) -> None:
        """The calibration side as JSON Lines."""
        rows = ({"text": one.text, "domain": one.domain, "id": one.id} for one in self.calibration)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def convert_all(folder: Path, groups: list[int], split: Split, tokens: int) -> dict[str, Path]:
    """The small model by every method and group size."""
    text = folder / "calibration.jsonl"
    split.write(text)
    made = {}
    for group in groups:
        for method in METHODS:
            asked: dict[str, Any] = (
                {"calibration": str(text), "calibration_tokens": tokens} if method in WEIGHTED else {}
            )
            name = f"{method}-g{group}"
            made[name] = folder / name
            quantize(small_model_path(), made[name], scheme=f"int4-g{group}", method=method, workers=2, **asked)
    return made


def read_off(results: Results, lane: str) -> dict[str, Any]:
    """One line of the table."""
    rows = {(row.name, row.slice): row for row in results.measurements if row.lane == lane}
    found: dict[str, Any] = {key: rows[place].value for key, place in MEASURED.items() if place in rows}
    mean = rows.get(MEASURED["kl_mean"])
    if mean is not None:
        found["kl_mean_interval"] = [mean.ci_low, mean.ci_high]
    return found


def random_weights(groups: list[int]) -> list[dict[str, Any]]:
    """[512, 2048] weights in BF16, and inputs whose moments are those of 8 common directions and noise."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(512, 2048, generator=generator)
    heavy = torch.randn(512, 2048, generator=generator)
    heavy /= torch.stack([torch.randn(512, 2048, generator=generator) ** 2 for _ in range(5)]).mean(0).sqrt()
    x = torch.randn(8192, 2048, generator=generator, dtype=torch.float64)
    x += torch.randn(8192, 8, generator=generator).double() @ torch.randn(8, 2048, generator=generator).double()
    x *= torch.exp2(torch.randn(2048, generator=generator).double())
    hessian = gptq.estimate(gptq.Moments(x.T @ x / len(x), len(x)))
    factor = gptq.factorise(hessian)
    rows = []
    for kind, values in (("gaussian", normal), ("student-t5", heavy)):
        weight = (0.02 * values).bfloat16()
        whole = float(((weight.double() @ hessian) * weight.double()).sum())
        for group in groups:
            for method in METHODS:
                numbers = by_method(weight, group, method, hessian, factor)
                rows.append({
                    "weights": kind, "group": group, "method": method,
                    "weight_error": relative_error(*squared_error(weight, numbers)),
                    "output_error": (gptq.output_error(weight, numbers, hessian) / whole) ** 0.5,
                })  # fmt: skip
    return rows


def by_method(weight: Tensor, group: int, method: str, hessian: Tensor, factor: gptq.Factor) -> Any:
    """One weight's numbers."""
    scheme: Any = get_scheme(f"int4-g{group}", method=method)
    if method not in WEIGHTED:
        return scheme.quantize(weight)
    if method == "imatrix":
        return scheme.quantize(weight, hessian.diagonal())
    return gptq.improve(weight, scheme.quantize(weight, hessian.diagonal().sqrt()), factor)


def markdown(report: dict[str, Any]) -> str:
    """Both tables."""
    lines = [
        "| | weight error | KL mean | KL p99 | top-1 | router | MTP 1 | MTP 3 |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in report["small_model"].items():
        shown = [row.get(key) for key in MEASURED]
        digits = (4, 6, 5, 4, 4, 4, 4)
        cells = ["" if value is None else f"{value:.{d}f}" for value, d in zip(shown, digits, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| weights | group | " + " | ".join(METHODS) + " |", "|---|---:|" + "---:|" * len(METHODS)]
    cells_of: dict[tuple[str, int], list[str]] = {}
    for row in report["random_weights"]:
        cell = f"{row['weight_error']:.4f} / {row['output_error']:.4f}"
        cells_of.setdefault((row["weights"], row["group"]), []).append(cell)
    lines += [f"| {kind} | {group} | {' | '.join(cells)} |" for (kind, group), cells in cells_of.items()]
    return "\n".join(lines)


def main() -> None:
    """Convert, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--calibration-tokens", type=int, default=40000)
    parser.add_argument("--tokens", type=int, default=40000)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--groups", type=int, nargs="+", default=[32, 64, 128])
    options = parser.parse_args()
    split = Split.make()
    with tempfile.TemporaryDirectory() as folder:
        made = convert_all(Path(folder), options.groups, split, options.calibration_tokens)
        manifests = {name: Manifest.load(path) for name, path in made.items()}
        results = compare(
            small_model_path(), made, documents=split.measured, tokens=options.tokens, seq_len=options.seq_len,
            live=LiveSettings(prompts=0),
        )  # fmt: skip
    lanes = {name: name for name in ("bf16", "bf16-noise", *made)}
    calibrated = manifests[f"gptq-g{options.groups[0]}"]
    assert calibrated is not None
    calibration = dict(calibrated.recipe["calibration"])
    del calibration["source"]
    report = {
        "command": "python benchmarks/int4_methods.py "
        + " ".join(f"--{key.replace('_', '-')} {value}" for key, value in vars(options).items() if key != "groups"),
        "machine": "2 cores, no GPU",
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "calibration": calibration | {"documents": len(split.calibration)},
        "measured": {"tokens": results.tool["tokens"], "tokens_sha256": results.tool["tokens_sha256"],
                     "documents": results.tool["documents"]},
        "few_tokens": calibrated.tensors["few_tokens"],
        "small_model": {name: read_off(results, lane) for name, lane in lanes.items()},
        "random_weights": random_weights(options.groups),
    }  # fmt: skip
    print(json.dumps(report, indent=1))
    print()
    print(markdown(report))


if __name__ == "__main__":
    main()
