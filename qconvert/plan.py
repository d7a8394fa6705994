"""The plan of a conversion: plain data, made from metadata alone, complete before the first byte is written.

A plan is a list of jobs, one per output shard; a job is a list of tensors, each kept byte for byte, quantized or
dequantized. Everything that can be refused is refused while the plan is made. Tensors keep the order of the source
files and fill shards up to a size limit; a weight and its scales are never parted. So a plan depends on the source
and the recipe only, and jobs may run in any order, in any number at a time, and on different days.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any

from qconvert import __version__
from qconvert.checkpoint import CONFIG, INDEX, Checkpoint, TensorSpec, shard_names

PLAIN = "plain"  # the part of an unquantized tensor
# Copies of `quantization_config` beside config.json, by the tools that write them.
OLD_FORMAT_FILES = ("quantize_config.json", "quant_config.json", "quantization_config.json")
# Files beside the weights that engines read: with others of these it is another model. All else (logs, notes, pictures)
# may appear, change and grow while a conversion runs.
READ_BY_ENGINES = (
    "*.jinja", "*.model", "*.tiktoken", "*.py", "*config.json", "tokenizer.json", "vocab.json", "vocab.txt",
    "merges.txt", "added_tokens.json", "special_tokens_map.json", "chat_template.json",
)  # fmt: skip
MAX_SHARD_SIZE = 5 * 10**9  # bytes of tensors; what the hub's tools use


@dataclass(frozen=True)
class TensorJob:
    """One tensor of the source by its logical name, and the tensors that it becomes.

    `inputs` and `outputs` go by part: "plain" for an unquantized tensor, otherwise the parts of the file's format.
    """

    name: str
    action: str  # "keep", "quantize", "dequantize" or "repack"
    scheme: str | None
    inputs: Mapping[str, str]
    outputs: Mapping[str, TensorSpec]

    @property
    def nbytes(self) -> int:
        """Bytes written."""
        return sum(spec.nbytes for spec in self.outputs.values())


@dataclass(frozen=True)
class ShardJob:
    """One output file."""

    file: str
    tensors: tuple[TensorJob, ...]

    @property
    def specs(self) -> list[TensorSpec]:
        """All tensors of the file."""
        return [spec for tensor in self.tensors for spec in tensor.outputs.values()]

    @property
    def nbytes(self) -> int:
        """Bytes of tensors in the file."""
        return sum(tensor.nbytes for tensor in self.tensors)


@dataclass(frozen=True)
class Plan:
    """A whole conversion."""

    operation: str  # "quantize", "dequantize" or "convert"
    source: str
    destination: str
    recipe: Mapping[str, Any]  # name, scheme, scales, format, rules, method and calibration if there is one
    jobs: tuple[ShardJob, ...]
    config_text: str
    copies: tuple[str, ...]
    source_files: Mapping[str, tuple[int, int]]  # size, time of change in ns
    bytes_in: int
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    version: str = field(default=__version__)

    @property
    def bytes_out(self) -> int:
        """Bytes of tensors written."""
        return sum(job.nbytes for job in self.jobs)

    @property
    def counts(self) -> dict[str, int]:
        """Tensors by what becomes of them, and in all."""
        actions = [tensor.action for job in self.jobs for tensor in job.tensors]
        return {
            "tensors_in": sum(len(tensor.inputs) for job in self.jobs for tensor in job.tensors),
            "tensors_out": sum(len(job.specs) for job in self.jobs),
            "kept": actions.count("keep"),
            "quantized": actions.count("quantize"),
            "dequantized": actions.count("dequantize"),
            "repacked": actions.count("repack"),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "shards": len(self.jobs),
        }

    def to_json(self) -> dict[str, Any]:
        """The plan as data for printing."""
        return asdict(self) | {"counts": self.counts}

    @property
    def fingerprint(self) -> str:
        """Two plans with the same fingerprint write the same model. Where they write it does not matter, nor do files
        beside it that no engine reads."""
        plan = asdict(self)
        del plan["source"], plan["destination"], plan["notes"]
        plan["copies"] = [name for name in self.copies if read_by_engines(name)]
        return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def assign_shards(tensors: Iterable[TensorJob], max_shard_size: int) -> tuple[ShardJob, ...]:
    """Fill one file after the other; a tensor larger than the limit gets a file of its own."""
    groups: list[list[TensorJob]] = [[]]
    filled = 0
    for tensor in tensors:
        if groups[-1] and filled + tensor.nbytes > max_shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    return tuple(ShardJob(file, tuple(group)) for file, group in zip(shard_names(len(groups)), groups, strict=True))


def read_by_engines(name: str) -> bool:
    """Whether a file beside the weights belongs to the model: a name relative to the folder."""
    return any(fnmatchcase(PurePosixPath(name).name, glob) for glob in READ_BY_ENGINES)


def source_state(checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file that makes the model."""
    support = [name for name in checkpoint.support_files() if name in (CONFIG, INDEX) or read_by_engines(name)]
    states = {name: checkpoint.file(name).stat() for name in (*support, *checkpoint.shards)}
    return {name: (state.st_size, state.st_mtime_ns) for name, state in states.items()}


def changed_since(checkpoint: Checkpoint, before: Mapping[str, tuple[int, int]]) -> list[str]:
    """Those of the files that are gone or are not what they were; files that came since are no part of it."""
    return [name for name, state in sorted(before.items()) if _state(checkpoint, name) != tuple(state)]


def _state(checkpoint: Checkpoint, name: str) -> tuple[int, int] | None:
    if not (checkpoint.root / name).is_file():
        return None
    state = checkpoint.file(name).stat()
    return state.st_size, state.st_mtime_ns


def copied_files(checkpoint: Checkpoint) -> tuple[list[str], list[str]]:
    """Files that go over as they are when the format changes, and notes on those that would speak of the old one."""
    names = checkpoint.other_files()
    notes = [f"{name} speaks of the old format and was left out" for name in names if name in OLD_FORMAT_FILES]
    return [name for name in names if name not in OLD_FORMAT_FILES], notes


def left_out_notes(checkpoint: Checkpoint) -> list[str]:
    """Weights in other containers beside the checkpoint are neither read nor copied; say so."""
    return [f"{name} is not part of the checkpoint and was left out" for name in checkpoint.left_out_files()]
