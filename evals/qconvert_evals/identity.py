"""Who the lanes are, and whether they may be compared at all.

Two checkpoints are comparable when every setting that the forward pass depends on is equal and both bring the same
tokenizer. Anything else would measure the difference between two models and call it quantization. Other keys of
config.json may differ.

Files are identified by sha256. Hashing reads every byte, so for files above TRUST_BYTES the hash in the folder's own
qconvert.json is taken where the size agrees; `qconvert verify` is the command that checks those.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch

import qconvert
from qconvert.checkpoint import CONFIG, Checkpoint, hash_file, hub_identity
from qconvert.errors import UserError
from qconvert.families import family_of
from qconvert.formats import Weights
from qconvert.machine import processor
from qconvert.manifest import Manifest
from qconvert_evals.corpus import TOKENIZER
from qconvert_evals.results import LaneIdentity, is_noise, reference_of
from qconvert_reference import products
from qconvert_reference.device import describe
from qconvert_reference.kernels import choose_kernels
from qconvert_reference.lane import CPU, Lane
from qconvert_reference.linear import Numerics

TRUST_BYTES = 1 << 30
FP8, INT4 = "fp8-", "int4-"  # how names of schemes start
Activations: TypeAlias = Literal["none", "fp8-group128", "fp8-token"]
KINDS: tuple[Activations, ...] = get_args(Activations)
MEASURED_WITH = ("torch", "numpy", "safetensors", "tokenizers")


def check_comparable(base: Lane, candidate: Lane) -> None:
    """UserError naming what differs."""
    names = [one.name for one in fields(base.config)]
    ours, theirs = ({name: getattr(lane.config, name) for name in names} for lane in (base, candidate))
    keys = [key for key in ours if ours[key] != theirs[key]]
    if keys:
        expected, found = (", ".join(f"{key} = {side[key]!r}" for key in keys) for side in (ours, theirs))
        raise UserError(
            f"lane {candidate.name} is another model than the base: it differs in {', '.join(keys)}",
            where=str(candidate.weights.checkpoint.root / CONFIG),
            expected=expected,
            found=found,
        )
    own, other = (lane.weights.checkpoint.root / TOKENIZER for lane in (base, candidate))
    if own.is_file() and other.is_file() and own.read_bytes() != other.read_bytes():
        raise UserError(
            f"lane {candidate.name} has another tokenizer than the base",
            where=str(other),
            expected=f"sha256 {hash_file(own)[:16]}... of {own}",
            found=f"sha256 {hash_file(other)[:16]}...",
            fix="both checkpoints must bring the same tokenizer.json, or the tokens would not be the same",
        )


def head_fault(base: Weights, candidate: Weights) -> str | None:
    """Why a candidate cannot draft although the base can; also refuses a candidate that lacks a tensor of the trunk."""
    prefix = family_of(base.config).mtp_prefix
    gone = [name for name in base.names if name not in candidate]
    trunk = [name for name in gone if not name.startswith(prefix)]
    if trunk:
        raise UserError(
            f"tensor {trunk[0]} is missing, so the model cannot run",
            where=str(candidate.checkpoint.root),
            expected="every tensor of the base checkpoint",
            found=f"{len(trunk)} tensors are missing",
        )
    total = sum(name.startswith(prefix) for name in base.names)
    return f"{len(gone)} of {total} tensors of the MTP head are missing, first {gone[0]}" if gone else None


def identities(lanes: Sequence[Lane], noise: Mapping[str, str]) -> list[LaneIdentity]:
    """All lanes of a comparison, base first; `noise` names the noise lane of each candidate. The files of a noise lane
    are those of the lane that it is named after, and not hashed again."""
    found: dict[str, LaneIdentity] = {}
    for lane in lanes:
        if is_noise(lane.name):
            same = found[reference_of(lane.name)]
            numerics = _numerics(lane.numerics)
            found[lane.name] = replace(same, name=lane.name, role="noise", numerics=numerics, noise_lane=None)
        else:
            role = "candidate" if found else "base"
            found[lane.name] = replace(lane_identity(lane, role), noise_lane=noise.get(lane.name))
    return list(found.values())


def lane_identity(lane: Lane, role: str) -> LaneIdentity:
    """The record that goes into results.json."""
    checkpoint = lane.weights.checkpoint
    manifest = Manifest.load(checkpoint.root)
    origin = hub_identity(checkpoint.root)
    return LaneIdentity(
        name=lane.name,
        role=role,
        path=str(checkpoint.root),
        revision=f"{origin['repository']}@{origin['revision']}" if origin else None,
        files=file_hashes(checkpoint, manifest),
        recipe=_recipe(lane.weights, manifest),
        numerics=_numerics(lane.numerics),
        versions=versions(lane.device),
    )


def model_figures(lane: Lane) -> dict[str, int]:
    """What of the model a budget may depend on."""
    config = lane.config
    return {
        "parameters": sum(info.numel for info in lane.weights.checkpoint.tensors.values()),
        "layers": config.num_hidden_layers,
        "experts": config.num_experts,
        "experts_chosen": config.num_experts_per_tok,
        "context": config.max_position_embeddings,
    }


def file_hashes(checkpoint: Checkpoint, manifest: Manifest | None) -> dict[str, str]:
    """sha256 of config, shards and the files beside them."""
    known: Mapping[str, Any] = manifest.output["files"] if manifest is not None else {}
    names = [CONFIG, *checkpoint.shards, *checkpoint.other_files()]
    return {name: _file_hash(checkpoint.root / name, known.get(name)) for name in names}


def _file_hash(path: Path, recorded: Mapping[str, Any] | None) -> str:
    size = path.stat().st_size
    if recorded is not None and size > TRUST_BYTES and recorded["bytes"] == size:
        return str(recorded["sha256"])
    return hash_file(path)


def _recipe(weights: Weights, manifest: Manifest | None) -> dict[str, Any]:
    """The manifest's recipe, or what can be told from the files of somebody else's checkpoint."""
    if manifest is not None:
        return dict(manifest.recipe)
    schemes = sorted({scheme.name for scheme in weights.quantized.values()})
    if not schemes:
        return {}
    return {"scheme": "+".join(schemes), "format": weights.format.name if weights.format is not None else None}


def _numerics(numerics: Numerics) -> dict[str, Any]:
    return {key: value if isinstance(value, (str, bool)) else str(value) for key, value in asdict(numerics).items()}


def versions(device: torch.device = CPU) -> dict[str, str]:
    """Versions of everything that could change a number."""
    found = {name: importlib.metadata.version(name) for name in MEASURED_WITH}
    return {"qconvert": qconvert.__version__, "python": platform.python_version(), **found, "device": _device(device)}


def machine() -> dict[str, Any]:
    """What computed, for the reader: nothing that makes two records unlike."""
    return {"processor": processor(), "threads": torch.get_num_threads(), "products": products.chosen()}


def asked_activations(block: Mapping[str, Any]) -> tuple[Activations, str]:
    """What a `quantization_config` has engines do to inputs, and for which schemes (a prefix of their names).

    Official FP8 folders say it by one key, compressed-tensors ones in each group of weights.
    """
    if block.get("activation_scheme") == "dynamic":
        return "fp8-group128", FP8
    asked: dict[str, Activations] = {}
    for group in (block.get("config_groups") or {}).values():
        inputs, kind = group.get("input_activations") or {}, (group.get("weights") or {}).get("type")
        if inputs.get("type") == "float":
            asked[INT4 if kind == "int" else FP8] = "fp8-group128" if inputs.get("group_size") == 128 else "fp8-token"
    if len(asked) > 1:
        raise UserError(
            "this folder quantizes the inputs of FP8 and of INT4 weights, which a lane cannot imitate together",
            fix="give --activations none to compare the weights alone",
        )
    return next(((kind, schemes) for schemes, kind in asked.items()), ("none", ""))


def _device(device: torch.device) -> str:
    if device.type == "cpu":
        return f"cpu, {torch.get_num_threads()} threads, {platform.machine()}"
    return f"{describe(device)}, CUDA {torch.version.cuda}"


def choose_numerics(
    weights: Weights, *, activations: str | None = None, kernels: str = "auto", device: torch.device = CPU
) -> Numerics:
    """BF16 arithmetic; eight-bit activations where the checkpoint asks engines for them, or where the caller does."""
    chosen = choose_kernels(kernels, device)
    if activations is not None:
        found = next((kind for kind in KINDS if kind == activations), None)
        if found is None:
            raise UserError("unknown activation quantization", expected=", ".join(KINDS), found=activations)
        return Numerics(activations=found, kernels=chosen, products="auto")
    block = weights.config.get("quantization_config")
    asked, schemes = asked_activations(block) if isinstance(block, dict) else ("none", "")
    return Numerics(activations=asked, activations_of=schemes, kernels=chosen, products="auto")
