"""Re-reads a checkpoint and checks it: structure, completeness, plausibility, and with its source at hand, equality
and error bounds.

It reads what engines will read, through nothing that wrote it: a fault in the disk, in a copy or in the converter
shows here. Memory stays bounded by a slice of one tensor for each worker. Works on any folder of a known family and
format, with or without a manifest. Left out: whether the model is still good, which `qconvert compare` measures.
"""

from pathlib import Path

from qconvert.checkpoint import CONFIG, Checkpoint, resolve_source
from qconvert.errors import UserError
from qconvert.formats import open_weights
from qconvert.manifest import Manifest
from qconvert.verification.files import check_copies, check_index
from qconvert.verification.numbers import Source
from qconvert.verification.origin import check_config, check_same_names
from qconvert.verification.reading import Progress, check_contents
from qconvert.verification.report import Check, VerifyReport
from qconvert.verification.stored import Stored
from qconvert.verification.structure import check_names, check_precision, check_shapes, check_skip_list

__all__ = ["Check", "Progress", "VerifyReport", "verify"]


def verify(
    target: str | Path, against: str | Path | None = None, *, workers: int = 1, progress: Progress | None = None
) -> VerifyReport:
    """Check a folder, and compare it to the one it was made from. UserError only for what is no checkpoint at all."""
    if workers < 1:
        raise UserError("at least one worker is needed", found=str(workers), fix="give --workers 1 or more")
    folder = _checkpoint_folder(target)
    original = None if against is None else open_weights(Checkpoint.open(resolve_source(str(against))))
    report = VerifyReport(str(target), None if against is None else str(against), checks=[])
    try:
        checkpoint = Checkpoint.open(folder)
    except UserError as error:
        report.checks.append(Check("readable", False, str(error), failures=1))
        return report
    stored = Stored.read(checkpoint)
    manifest = _manifest(folder, report)
    foreign = manifest is None
    structure = (check_names, check_shapes, check_precision, check_skip_list)
    report.checks.extend(check for make in structure if (check := make(stored)) is not None)
    if manifest is not None:
        report.checks.append(check_index(checkpoint))
    source = None
    if original is not None:
        repacked = manifest is not None and manifest.operation == "convert"  # perhaps the numbers of another tool
        method = None if manifest is None or repacked else manifest.recipe.get("method")
        source = Source(original, foreign or repacked, method)
        report.checks.append(check_same_names(stored, original))
        if not foreign:
            report.checks.append(check_config(checkpoint, original.checkpoint))
            report.checks.append(check_copies(checkpoint, original.checkpoint))
    else:
        report.skipped["kept, bounds"] = "no source given (--against SRC)"
    report.checks.extend(check_contents(stored, source, manifest, workers, progress))
    return report.with_size(len(checkpoint.tensors), sum(info.nbytes for info in checkpoint.tensors.values()))


def _checkpoint_folder(target: str | Path) -> Path:
    """The folder, if it is a checkpoint at all. What is wrong inside one is a finding, no mistake of the user."""
    folder = resolve_source(str(target))
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder", fix="give the folder of a checkpoint")
    for pattern, expected in ((CONFIG, CONFIG), ("*.safetensors*", "*.safetensors files")):
        if not any(folder.glob(pattern)):
            raise UserError(f"{folder} is not a checkpoint", expected=expected, found="none")
    return folder


def _manifest(folder: Path, report: VerifyReport) -> Manifest | None:
    try:
        manifest = Manifest.load(folder)
    except UserError as error:
        report.checks.append(Check("manifest", False, str(error), failures=1))
        return None
    if manifest is None:
        report.skipped["manifest, index, config, copies"] = "no manifest: not written by qconvert, or lost"
    return manifest
