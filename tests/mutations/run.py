"""Put every fault into a conversion of the shipped model (see `reparametrised`), and look what flags it.

Faulty lanes are candidates of one comparison and share the base's work; faults with which a comparison refuses to start
get one of their own. Most faults are plain in little text. The subtle ones stand beside the lanes without a fault, in a
comparison over eight texts of each kind and more tokens, for health has to be certain, on every machine. Faults of the
speculative loop share a comparison in which the lanes really decode, beside both clean conversions; it is judged by the
row on that loop alone.
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

TOKENS, CLEAN_TOKENS, DECODED_TOKENS = 2048, 8192, 8192
DECODED, NOT_DECODED = LiveSettings(prompts=32), LiveSettings(prompts=0)  # of as many documents
SCHEMES = {"fp8": "fp8-block128", "int4": "int4-g32"}
COUNTED = "weights."
# Half-widths of an interval between it and the bound: another order of sums moves an end by a few hundredths of that.
SURELY_WITHIN, SURELY_BEYOND = 1.0, 0.5
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
    """What flagged one lane: failed checks of verify, failed rows of the budget, or the refusal to compare.

    `margins` of measurements whose rows stand on an interval: half-widths between it and the bound, the least of those
    that passed (positive) or the furthest of those that failed (negative)."""

    verify: list[str] = field(default_factory=list)
    manifest: list[str] = field(default_factory=list)
    compare: list[str] = field(default_factory=list)
    inconclusive: list[str] = field(default_factory=list)
    refused: str = ""
    margins: dict[str, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.verify or self.manifest or self.compare or self.refused)

    @property
    def counted(self) -> list[str]:
        """What no text enters and no order of sums: the same on every machine."""
        return [name for name in self.compare if name.startswith(COUNTED)]


def run(
    work: Path, faults: Sequence[Fault] = FAULTS, tokens: int = TOKENS, clean_tokens: int = CLEAN_TOKENS
) -> tuple[dict[str, Flags], Results]:
    """Flags by the fault's name, and those of clean lanes by theirs; the results are those of the clean lanes."""
    base = reparametrised(work / "bf16")
    clean = {name: work / name for name in SCHEMES}
    for name, scheme in SCHEMES.items():
        quantize(base, clean[name], scheme=scheme)
    found = {fault.name: Flags() for fault in faults} | {name: Flags() for name in CLEAN}
    for name in SCHEMES:
        _verify(clean[name], base, found[f"clean-{name}"])
    folders: dict[str, Path] = {}
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
    subtle = {name: folders.pop(name) for name, fault in by_name.items() if fault.subtle}
    decoded = {name: folders.pop(name) for name, fault in by_name.items() if fault.live}
    if folders:
        _flag(_compare(base, folders, by_name, tokens), found)
    healthy = {"clean-fp8": clean["fp8"], "clean-int4": clean["int4"], "bf16-again": base}
    results = _compare(base, healthy | subtle, by_name, clean_tokens)
    _flag(results, found)
    if decoded:
        pair = {name: healthy[name] for name in CLEAN[:2]}
        _flag(_compare(base, pair | decoded, by_name, DECODED_TOKENS, DECODED), found, only=REPLAY)
    return found, results


def _flag(results: Results, found: Mapping[str, Flags], only: str = "") -> None:
    """Rows of the verdict that did not pass, by measurement; `only` those of one."""
    assert results.verdict is not None
    for row in results.verdict.rows:
        if only not in ("", row.measurement):
            continue
        flags = found[row.lane]
        listed = {"fail": flags.compare, "inconclusive": flags.inconclusive}.get(row.status)
        if listed is not None and row.measurement not in listed:
            listed.append(row.measurement)
        if row.margin is not None:
            flags.margins[row.measurement] = min(row.margin, flags.margins.get(row.measurement, row.margin))


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
    base: Path, folders: Mapping[str, Path], faults: Mapping[str, Fault], tokens: int, live: LiveSettings = NOT_DECODED
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

    `conclusive`: the clean conversions must pass every check, and what the registry demands must fail, both by enough
    to do so on every machine. That takes tokens enough to decide.
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
        lines += [
            f"{name}: {row} stands {margin:.2f} half-widths from its bound, fewer than {at_least}"
            for name, row, margin, at_least in close_calls(faults, found)
            if abs(margin) < at_least
        ]
    same = [row for row in results.measurements if row.lane == "bf16-again"]
    lines += [f"bf16-again: {name} is not measured" for name in {*ZERO, *ONE} - {row.name for row in same}]
    shown = [row.name for row in same if (row.name in ZERO and row.value != 0) or (row.name in ONE and row.value != 1)]
    return lines + [f"bf16-again: {name} shows a difference between BF16 and itself" for name in shown]


def close_calls(faults: Sequence[Fault], found: Mapping[str, Flags]) -> list[tuple[str, str, float, float]]:
    """Lane, measurement, margin and what is asked of it; the nearest first."""
    calls = [(name, row, value, SURELY_WITHIN) for name in CLEAN[:2] for row, value in found[name].margins.items()]
    for fault in faults:
        flags = found[fault.name]
        demanded = [row for row in fault.compare if row in flags.compare and row in flags.margins]
        calls += [(fault.name, row, flags.margins[row], SURELY_BEYOND) for row in demanded]
    return sorted(calls, key=lambda call: abs(call[2]))
