"""Checks of whole files: hashes against the manifest, the index's total, and files that were copied from the source."""

import json
from pathlib import Path

from qconvert.checkpoint import INDEX, Checkpoint, hash_file
from qconvert.manifest import Manifest
from qconvert.plan import copied_files
from qconvert.verification.numbers import Progress
from qconvert.verification.report import Check, Findings


def check_manifest(folder: Path, manifest: Manifest, progress: Progress) -> Check:
    """Every file that the manifest lists is there with the same bytes."""
    files = manifest.output["files"]
    findings = Findings("manifest", f"{len(files)} files have the size and sha256 of the manifest")
    total = sum(record["bytes"] for record in files.values())
    done = 0
    for name, record in files.items():
        progress(done, total, name)
        done += record["bytes"]
        path = folder / name
        if not path.is_file():
            findings.add(name, "missing")
        elif path.stat().st_size != record["bytes"]:
            findings.add(name, f"{path.stat().st_size} bytes, the manifest says {record['bytes']}")
        elif hash_file(path) != record["sha256"]:
            findings.add(name, "its sha256 is not that of the manifest")
    progress(total, total, "")
    return findings.check()


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
