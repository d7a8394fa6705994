"""Put every fault into a conversion of the shipped model (see `reparametrised`), and look what flags it.

All lanes of one comparison share the base's work, so forty faulty lanes cost little more than forty layers each. Faults
with which a comparison refuses to start get one of their own, and those of the speculative loop share one in which the
lanes really decode, beside both clean conversions; it is judged by the row on that loop alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import torch

from qconvert.checkpoint import MANIFEST
from qconvert.errors import UserError
from qconvert.quantization import quantize
from qconvert.verification import verify
from qconvert_evals import compare as comparison
from qconvert_evals.results import Results
from qconvert_evals.small_model_files import small_model_path
from qconvert_evals.speculation import LiveSettings
from qconvert_reports.budget import default_budget
from qconvert_reports.drift import settle
from tests.mutations.folder_faults import Tensors, tensors_changed
from tests.mutations.registry import FAULTS, REPLAY, Fault

TOKENS = 4096
DECODED = LiveSettings(prompts=16)  # of as many documents
SCHEMES = {"fp8": "fp8-block128", "int4": "int4-g32"}
CLEAN = ("clean-fp8", "clean-int4", "bf16-again")
# What BF16 beside itself has to show.
ZERO = (
    "logits.kl_mean", "logits.kl_max", "logits.ln_ppl_ratio", "hidden.relative_error", "weights.relative_error_max",
    "mtp.acceptance_greedy_difference", "mtp.acceptance_sampled_difference", "mtp.accept_length_difference",
    "mtp.acceptance_sampled_greedy_drafts_difference",
)  # fmt: skip
ONE = ("logits.top1_agreement", "logits.top5_overlap", "router.set_match", "router.top1_match")


@dataclass
class Flags:
    """What flagged one lane: failed checks of verify, failed rows of the budget, or the refusal to compare."""

    verify: list[str] = field(default_factory=list)
    manifest: list[str] = field(default_factory=list)
    compare: list[str] = field(default_factory=list)
    inconclusive: list[str] = field(default_factory=list)
    refused: str = ""

    def __bool__(self) -> bool:
        return bool(self.verify or self.manifest or self.compare or self.refused)


def run(work: Path, faults: Sequence[Fault] = FAULTS, tokens: int = TOKENS) -> tuple[dict[str, Flags], Results]:
    """Flags by the fault's name, and those of clean lanes by theirs."""
    base = reparametrised(work / "bf16")
    clean = {name: work / name for name in SCHEMES}
    for name, scheme in SCHEMES.items():
        quantize(base, clean[name], scheme=scheme)
    found = {fault.name: Flags() for fault in faults} | {name: Flags() for name in CLEAN}
    folders = {"clean-fp8": clean["fp8"], "clean-int4": clean["int4"], "bf16-again": base}
    for name in SCHEMES:
        _verify(clean[name], base, found[f"clean-{name}"])
    for fault in faults:
        if fault.tasks is not None:
            (work / fault.name).mkdir()
            found[fault.name].refused = fault.tasks(work / fault.name)
            continue
        folder = clean[fault.base]
        if fault.files is not None:
            folder = Path(shutil.copytree(folder, work / fault.name))
            fault.files(folder)
            _verify(folder, base, found[fault.name])
        if fault.refused:
            found[fault.name].refused = _refusal(base, folder)
        else:
            folders[fault.name] = folder
    by_name = {fault.name: fault for fault in faults}
    decoded = {name: folders.pop(name) for name, fault in by_name.items() if fault.live}
    results = _compare(base, folders, by_name, tokens, LiveSettings(prompts=0))
    _note(found, results)
    if decoded:
        clean_lanes = {name: folders[name] for name in CLEAN[:2]}
        _note(found, _compare(base, clean_lanes | decoded, by_name, TOKENS, DECODED), only=REPLAY)
    return found, results


def _note(found: Mapping[str, Flags], results: Results, only: str = "") -> None:
    """Which rows failed or decided nothing, by lane."""
    assert results.verdict is not None
    for row in results.verdict.rows:
        listed = {"fail": found[row.lane].compare, "inconclusive": found[row.lane].inconclusive}.get(row.status)
        if listed is not None and row.measurement not in listed and only in ("", row.measurement):
            listed.append(row.measurement)


def reparametrised(folder: Path) -> Path:
    """The shipped model with the weights of its final norm up to a factor of 16 apart, as those of large trained
    models are, and all that reads it divided by the same powers of two: the same function up to roundings.

    In the shipped model they are nearly equal, and a head that is fed in front of the norm would not be noticed.
    """
    shutil.copytree(small_model_path(), folder)

    def change(tensors: Tensors) -> None:
        width = tensors["model.norm.weight"].shape[0]
        factor = 2.0 ** torch.randint(-2, 3, (width,), generator=torch.Generator().manual_seed(0))
        for name, times in (("model.norm", factor), ("mtp.norm", factor), ("mtp.pre_fc_norm_hidden", 1 / factor)):
            weight = tensors[f"{name}.weight"]
            weight.copy_((1 + weight.float()) * times - 1)
        tensors["lm_head.weight"] /= factor

    tensors_changed(change)(folder)
    return folder


def _verify(folder: Path, base: Path, flags: Flags) -> None:
    """With the manifest, then without it, which is how the folder stays."""
    flags.manifest = [check.name for check in verify(folder, base).checks if not check.ok]
    manifest = (folder / MANIFEST).read_bytes()
    (folder / MANIFEST).unlink()
    flags.verify = [check.name for check in verify(folder, base).checks if not check.ok]
    (folder / MANIFEST).write_bytes(manifest)
    flags.manifest = [name for name in flags.manifest if name not in (*flags.verify, "manifest")]


def _refusal(base: Path, folder: Path) -> str:
    try:
        comparison.compare(base, {"faulty": folder}, tokens=256)
    except UserError as error:
        return str(error).splitlines()[0]
    return ""


def _compare(
    base: Path, folders: Mapping[str, Path], faults: Mapping[str, Fault], tokens: int, live: LiveSettings
) -> Results:
    """One comparison of everything; faults of whoever runs the files are put in behind all checks."""
    opened = comparison._Comparison.open

    def open_faulty(*args: object) -> comparison._Comparison:
        made = opened(*args)  # type: ignore[arg-type]
        for lane in made.others:
            fault = faults.get(lane.name)
            if fault is not None and fault.run is not None:
                fault.run(lane)
        return made

    with patch.object(comparison._Comparison, "open", open_faulty):
        results = comparison.compare(base, folders, tokens=tokens, live=live)
    settle(results, default_budget())
    return results


def wrong(
    faults: Sequence[Fault], found: Mapping[str, Flags], results: Results, *, conclusive: bool = False
) -> list[str]:
    """What is not as the registry says: an unflagged fault, a flagged clean lane, a blind spot that sees.

    `conclusive`: the clean conversions must pass every check, which takes tokens enough to decide.
    """
    lines = []
    for fault in faults:
        flags = found[fault.name]
        for kind in ("verify", "manifest", "compare"):
            lines += [
                f"{fault.name}: {kind} does not flag {name}"
                for name in getattr(fault, kind)
                if name not in getattr(flags, kind)
            ]
        if fault.refused not in flags.refused:
            lines.append(f"{fault.name}: expected a refusal with {fault.refused!r}, found {flags.refused!r}")
        if bool(flags) == bool(fault.blind):
            lines.append(f"{fault.name}: {'flagged, and listed as unseen' if flags else 'nothing flags it'}")
    lines += [f"{name}: {found[name]}, and it is clean" for name in CLEAN if found[name]]
    if conclusive:
        open_ = {name: found[name].inconclusive for name in CLEAN[:2]}
        lines += [f"{name}: {', '.join(rows)} inconclusive" for name, rows in open_.items() if rows]
    same = [row for row in results.measurements if row.lane == "bf16-again"]
    lines += [f"bf16-again: {name} is not measured" for name in {*ZERO, *ONE} - {row.name for row in same}]
    shown = [row.name for row in same if (row.name in ZERO and row.value != 0) or (row.name in ONE and row.value != 1)]
    return lines + [f"bf16-again: {name} shows a difference between BF16 and itself" for name in shown]
