"""Measure the finished checkpoint with the plain reference and write its model card from what was found.

    PYTHONPATH=.:reference:evals python evals/training/card.py --out FOLDER        FOLDER: what train.py was given

Every number of the card comes from the run's own files or is measured here; the held-out documents are read whole, in
BF16, by the reference without the shortcuts of training.
"""

from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from qconvert.checkpoint import hash_file, load_safetensors
from qconvert_reference.models.qwen3_next import Model
from training.data import DOMAINS
from training.measure import measure
from training.model import BALANCE_WEIGHT, CONFIG, DRAFT_WEIGHT, build
from training.optimizer import ADAM_RATE, MUON_DECAY, MUON_RATE
from training.train import LENGTH, ROWS, SHARES

TEMPLATE = Path(__file__).with_name("card.md")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0, help="the seed that train.py was given")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    write_card(arguments.out, arguments.seed)


def write_card(out: Path, seed: int) -> None:
    """Write export/README.md and, for machines, measured.json beside the run's files."""
    export = out / "export"
    weights = load_safetensors(export / "model.safetensors")
    data = torch.load(out / "data.pt")
    model = build(weights)
    documents = _held_out(out)
    found = measure(model, documents)
    usage = expert_usage(model, [tokens for _, tokens in documents[::8]])
    (out / "measured.json").write_text(json.dumps({"measured": found, "expert_usage": usage}, indent=2) + "\n")
    last = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()][-1]
    values = _run_values(last, seed) | _data_values(data["facts"], documents) | _weight_values(weights, export)
    values |= {"results": _results(found), "usage_least": f"{min(usage):.2f}", "usage_most": f"{max(usage):.2f}"}
    text = TEMPLATE.read_text()
    for name, value in values.items():
        text = text.replace("{{" + name + "}}", value)
    (export / "README.md").write_text(text)


@torch.no_grad()
def expert_usage(model: Model, documents: list[list[int]]) -> list[float]:
    """For every expert of every trunk layer, its share of the choices as a multiple of the even share."""
    experts = int(CONFIG["num_experts"])
    counts = torch.zeros(len(model.layers), experts)
    for tokens in documents:
        for layer, router in enumerate(model(torch.tensor([tokens])).routers):
            if router is not None:
                counts[layer] += torch.bincount(router.experts.flatten(), minlength=experts)
    shares: list[float] = (experts * counts / counts.sum(1, keepdim=True)).flatten().tolist()
    return shares


def _held_out(out: Path) -> list[tuple[str, list[int]]]:
    """Domain and tokens of the shipped documents."""
    tokenizer = Tokenizer.from_file(str(out / "export" / "tokenizer.json"))
    lines = [line for domain in DOMAINS for line in (out / "texts" / f"{domain}.jsonl").read_text().split("\n") if line]
    return [(row["domain"], tokenizer.encode(row["text"]).ids) for row in map(json.loads, lines)]


def _run_values(last: dict[str, Any], seed: int) -> dict[str, str]:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return {
        "seed": str(seed),
        "steps": f"{last['step']:,}",
        "tokens_seen": f"{last['tokens']:,}",
        "minutes": f"{last['seconds'] / 60:.0f}",
        "batch": f"{ROWS} rows of {LENGTH} tokens",
        "shares": ", ".join(f"{name} {share:.0%}" for name, share in SHARES.items()),
        "machine": f"{torch.get_num_threads()} threads, {platform.machine()}"
        + (" with AMX" if "amx_bf16" in flags else ""),
        "python": platform.python_version(),
        "versions": f"torch {version('torch')}, tokenizers {version('tokenizers')}",
        "draft_weight": str(DRAFT_WEIGHT),
        "balance_weight": str(BALANCE_WEIGHT),
        "rates": f"Muon {MUON_RATE} (decay {MUON_DECAY}), AdamW {ADAM_RATE}",
    }


def _data_values(facts: dict[str, Any], documents: list[tuple[str, list[int]]]) -> dict[str, str]:
    rows = [
        f"| {d} | {facts['train_documents'][d]:,} | {facts['train_characters'][d]:,} | {facts['train_tokens'][d]:,} | "
        f"{sum(domain == d for domain, _ in documents)} |"
        for d in DOMAINS
    ]
    return {
        "data": "\n".join(rows),
        "dropped": f"{facts['dropped_lines']:,}",
        "windows": f"{facts['held_out_windows']:,}",
        "left": str(facts["shared_windows_left"]),
    }


def _weight_values(weights: dict[str, Tensor], export: Path) -> dict[str, str]:
    return {
        "parameters": f"{sum(tensor.numel() for tensor in weights.values()):,}",
        "tensors": f"{len(weights):,}",
        "bytes": f"{(export / 'model.safetensors').stat().st_size:,}",
        "sha256": hash_file(export / "model.safetensors"),
    }


def _results(found: dict[str, dict[str, float]]) -> str:
    return "\n".join(
        f"| {name} | {int(row['tokens']):,} | {row['unigram_entropy']:.2f} | {row['loss']:.2f} | "
        f"{row['acceptance1']:.1%} | {row['acceptance2']:.1%} |"
        for name, row in found.items()
    )


if __name__ == "__main__":
    main()
