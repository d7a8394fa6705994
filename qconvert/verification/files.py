"""Checks of whole files: hashes against the manifest, the index's total, and files that were copied from the source."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qconvert.checkpoint import INDEX, Checkpoint, hash_file
from qconvert.plan import copied_files
from qconvert.verification.report import Check, Findings, Wrong


def wrong_with_file(folder: Path, name: str, record: Mapping[str, Any]) -> list[Wrong]:
    """Whether a file that the manifest lists is there with the same bytes."""
    path = folder / name
    if not path.is_file():
        return [("manifest", "missing")]
    if path.stat().st_size != record["bytes"]:
        return [("manifest", f"{path.stat().st_size} bytes, the manifest says {record['bytes']}")]
    if hash_file(path) != record["sha256"]:
        return [("manifest", "its sha256 is not that of the manifest")]
    return []


def check_index(checkpoint: Checkpoint) -> Check:
    """The index's total is the sum of all tensors. Its map was checked when the folder was opened."""
    findings = Findings("index", "the index agrees with the files")
    path = checkpoint.root / INDEX
    if path.is_file():
        total = sum(info.nbytes for info in checkpoint.tensors.values())
        listed = json.loads(path.read_bytes()).get("metadata", {}).get("total_size")
        if listed != total:
            findings.add(INDEX, f"total_size is {listed}, all tensors have {total} bytes")
    return findings.check()


def check_copies(checkpoint: Checkpoint, source: Checkpoint) -> Check:
    """Tokenizer, templates, licence and all other files are those of the source."""
    names, _ = copied_files(source)
    findings = Findings("copies", f"{len(names)} other files equal those of the source")
    for name in names:
        path = checkpoint.root / name
        if not path.is_file():
            findings.add(name, "missing")
        elif path.stat().st_size != source.file(name).stat().st_size or hash_file(path) != hash_file(source.file(name)):
            findings.add(name, "differs from the source")
    return findings.check()
