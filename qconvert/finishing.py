"""What goes into an output folder behind its shards: index, config, the report of tensors, and the manifest last.

All of it is made from the records of finished work, so that a resumed run writes what an undisturbed one does.
"""

import platform
from pathlib import Path
from typing import Any

import torch

from qconvert.checkpoint import (
    CONFIG,
    INDEX,
    MANIFEST,
    TENSOR_REPORT,
    Checkpoint,
    hash_file,
    hub_identity,
    write_durably,
    write_index,
)
from qconvert.families import family_of
from qconvert.manifest import Manifest
from qconvert.plan import Plan
from qconvert.tensor_report import TensorRow, summarise, to_csv

Record = dict[str, Any]


def file_record(path: Path) -> Record:
    """What is noted about a file: {bytes, sha256}."""
    return {"bytes": path.stat().st_size, "sha256": hash_file(path)}


def write_metadata(
    plan: Plan, checkpoint: Checkpoint, folder: Path, records: dict[str, Record], run: dict[str, Any]
) -> Manifest:
    """Write all of it; `records` ("out:FILE" and "in:FILE" to {bytes, sha256, ...}) gain the files written here."""
    rows = [TensorRow(**row) for job in plan.jobs for row in records["out:" + job.file]["tensors"]]
    write_index(folder, {job.file: job.specs for job in plan.jobs})
    write_durably(folder / CONFIG, plan.config_text.encode())
    if rows:
        write_durably(folder / TENSOR_REPORT, to_csv(rows).encode())
    for name in (INDEX, CONFIG, TENSOR_REPORT):
        if (folder / name).is_file():
            records["out:" + name] = file_record(folder / name)
    tensors = summarise(rows, family_of(checkpoint.config), plan.recipe) if rows else {}
    manifest = _manifest(plan, records, run, tensors)
    write_durably(folder / MANIFEST, manifest.to_text().encode())
    return manifest


def _manifest(plan: Plan, records: dict[str, Record], run: dict[str, Any], tensors: dict[str, Any]) -> Manifest:
    files: dict[str, dict[str, Record]] = {"in": {}, "out": {}}
    for name, record in sorted(records.items()):
        side, _, file = name.partition(":")
        files[side][file] = {"bytes": record["bytes"], "sha256": record["sha256"]}
    return Manifest(
        qconvert=plan.version,
        operation=plan.operation,
        recipe=plan.recipe,
        source={**hub_identity(Path(plan.source)), "files": files["in"]},
        output={"files": files["out"]},
        counts=plan.counts,
        warnings=plan.warnings,
        notes=plan.notes,
        tensors=tensors,
        run={**run, "source": plan.source, "python": platform.python_version(), "torch": str(torch.__version__)},
    )
