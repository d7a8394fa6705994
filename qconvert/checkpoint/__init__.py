"""Checkpoint folders on disk: reading, writing, and where they come from. Knows bytes and names, no number formats."""

from qconvert.checkpoint.config_text import insert_key, remove_key
from qconvert.checkpoint.header import TORCH_TYPES, TYPE_CODES, TensorInfo, TensorSpec
from qconvert.checkpoint.reader import CONFIG, INDEX, MANIFEST, TENSOR_REPORT, Checkpoint, load_safetensors, read_config
from qconvert.checkpoint.source import hub_identity, is_local, resolve_source
from qconvert.checkpoint.writer import (
    ShardWriter,
    copy_durably,
    hash_file,
    save_safetensors,
    shard_names,
    write_checkpoint,
    write_durably,
    write_index,
)

__all__ = [
    "CONFIG",
    "INDEX",
    "MANIFEST",
    "TENSOR_REPORT",
    "TORCH_TYPES",
    "TYPE_CODES",
    "Checkpoint",
    "ShardWriter",
    "TensorInfo",
    "TensorSpec",
    "copy_durably",
    "hash_file",
    "hub_identity",
    "insert_key",
    "is_local",
    "load_safetensors",
    "read_config",
    "remove_key",
    "resolve_source",
    "save_safetensors",
    "shard_names",
    "write_checkpoint",
    "write_durably",
    "write_index",
]
