"""The plan that turns a quantized checkpoint of any known format back into a plain BF16 one."""

from pathlib import Path

from qconvert.checkpoint import TensorSpec, remove_key
from qconvert.errors import UserError
from qconvert.families import family_of
from qconvert.formats import CONFIG_KEY, Weights, format_of
from qconvert.formats.weights import check_side_parts
from qconvert.opening import open_source
from qconvert.plan import (
    MAX_SHARD_SIZE,
    PLAIN,
    Plan,
    TensorJob,
    assign_shards,
    copied_files,
    left_out_notes,
    source_state,
)
from qconvert.recipe import KEEP


def plan_dequantize(
    src: str | Path, dst: str | Path, *, max_shard_size: int = MAX_SHARD_SIZE, overwrite: bool = False
) -> Plan:
    """Everything that `dequantize` will do, or a UserError that says why not."""
    source, checkpoint = open_source(src, dst, overwrite=overwrite)
    file_format = format_of(checkpoint.config)
    if file_format is None:
        raise UserError(f"{source} is not quantized", where="config.json", expected=CONFIG_KEY, found="no such key")
    family = family_of(checkpoint.config)
    weights = Weights(checkpoint, file_format)
    check_side_parts(weights)
    copies, notes = copied_files(checkpoint)
    return Plan(
        operation="dequantize",
        source=str(source),
        destination=str(dst),
        recipe={"name": "dequantize", "format": file_format.name},
        jobs=assign_shards([_job(weights, name) for name in weights.names], max_shard_size),
        config_text=remove_key(checkpoint.config_text, CONFIG_KEY),
        copies=tuple(copies),
        source_files=source_state(checkpoint),
        bytes_in=sum(info.nbytes for info in checkpoint.tensors.values()),
        warnings=tuple(family.warnings(checkpoint.config)),
        notes=(*left_out_notes(checkpoint), *notes),
    )


def _job(weights: Weights, name: str) -> TensorJob:
    if name not in weights.quantized:
        info = weights.checkpoint.tensors[name]
        return TensorJob(name, KEEP, None, {PLAIN: name}, {PLAIN: TensorSpec(name, info.dtype, info.shape)})
    spec = TensorSpec(name, "BF16", weights.shape(name))
    return TensorJob(name, "dequantize", weights.quantized[name].name, dict(weights.parts(name)), {PLAIN: spec})
