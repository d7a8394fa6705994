"""A run of the kernel benchmarks as JSON, and back.

    {"schema_version": 1, "created", "device": {...}, "versions": {...},
     "ceilings": {"copy", "bf16", "fp8", "why_no_fp8"},
     "rows": [fields of Row, times in seconds], "targets": [{"name", "floor", "aim", "worst", "at", "verdict"}]}

`rows` hold what was measured and nothing derived from it; `targets` are judged when the record is written.
"""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import torch

from qconvert_kernels.bench.ceilings import Ceilings
from qconvert_kernels.bench.measure import Peer, Row
from qconvert_kernels.bench.targets import judge
from qconvert_kernels.bench.timing import Times

SCHEMA_VERSION = 1
CLOCKS = "driver_version,clocks.sm,clocks.mem,power.limit"


class Run(NamedTuple):
    """One record."""

    created: str
    device: dict[str, Any]
    versions: dict[str, str]
    ceilings: Ceilings
    rows: list[Row]


def describe(device: torch.device) -> dict[str, Any]:
    """The machine, in words and numbers."""
    if device.type != "cuda":
        return {"name": f"{device.type} ({platform.machine()})"}
    found = torch.cuda.get_device_properties(device)
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "memory_bytes": found.total_memory,
        "l2_bytes": found.L2_cache_size,
        "processors": found.multi_processor_count,
        **_clocks(),
    }


def _clocks() -> dict[str, str]:
    """As the driver's tool tells them; empty where it is not there."""
    try:
        asked = ["nvidia-smi", f"--query-gpu={CLOCKS}", "--format=csv,noheader", "--id=0"]
        line = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(CLOCKS.split(","), (part.strip() for part in line.split(",")), strict=False))


def versions() -> dict[str, str]:
    """What the figures depend on."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("triton", "vllm", "flash-linear-attention"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def finish(device: torch.device, ceilings: Ceilings, rows: Sequence[Row]) -> Run:
    """The record of a run that has just ended."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Run(now, describe(device), versions(), ceilings, list(rows))


def to_json(run: Run) -> str:
    """Text of a record; infinities, of a result that was entirely wrong, become null."""
    rows = [asdict(row) | {"times": _times(row.times), "peers": _peers(row)} for row in run.rows]
    for row in rows:
        row["error"] = row["error"] if row["error"] < float("inf") else None
    targets = [
        {
            "name": one.target.name, "floor": one.target.floor, "aim": one.target.aim, "worst": one.worst, "at": one.at,
            "verdict": one.verdict,
        }
        for one in judge(run.rows, run.ceilings)
    ]  # fmt: skip
    whole = {
        "schema_version": SCHEMA_VERSION, "created": run.created, "device": run.device, "versions": run.versions,
        "ceilings": asdict(run.ceilings), "rows": rows, "targets": targets,
    }  # fmt: skip
    return json.dumps(whole, indent=1, allow_nan=False) + "\n"


def from_json(text: str) -> Run:
    """Inverse of `to_json`; ValueError for another version or no record at all."""
    raw = json.loads(text)
    found = raw.get("schema_version") if isinstance(raw, dict) else None
    if found != SCHEMA_VERSION:
        raise ValueError(f"expected a kernel benchmark of schema_version {SCHEMA_VERSION}, found {found}")
    rows = [
        Row(
            **row
            | {
                "error": float("inf") if row["error"] is None else row["error"],
                "times": _read_times(row["times"]),
                "peers": {name: Peer(_read_times(one["times"]), one["why_not"]) for name, one in row["peers"].items()},
            }
        )
        for row in raw["rows"]
    ]
    return Run(raw["created"], raw["device"], raw["versions"], Ceilings(**raw["ceilings"]), rows)


def _times(times: Times | None) -> dict[str, float] | None:
    return None if times is None else times._asdict()


def _read_times(raw: dict[str, float] | None) -> Times | None:
    return None if raw is None else Times(**raw)


def _peers(row: Row) -> dict[str, Any]:
    return {name: {"times": _times(one.times), "why_not": one.why_not} for name, one in row.peers.items()}
