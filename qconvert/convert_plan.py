"""The plan that writes the same quantized numbers in another file format, without arithmetic.

Refused: a format that cannot hold the scheme (INT4 in `fp8`, FP8 in `gptq`), folders with more than one scheme, and
numbers that cannot be read or that the other format has no place for: act-order, a zero point of 0 in GPTQ version 1.
The last are in the data, in small tensors beside the codes, which are read for that: about 1% of a folder.
"""

from pathlib import Path

from qconvert.checkpoint import Checkpoint, TensorSpec
from qconvert.engine_config import config_block, config_text
from qconvert.errors import UserError
from qconvert.families import family_of
from qconvert.formats import CONFIG_KEY, Format, Weights, format_of, get_format
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
from qconvert.quantize_plan import output_specs
from qconvert.recipe import KEEP
from qconvert.schemes import Scheme


def plan_convert(
    src: str | Path,
    dst: str | Path,
    *,
    file_format: str,
    max_shard_size: int = MAX_SHARD_SIZE,
    overwrite: bool = False,
) -> Plan:
    """Everything that `convert` will do, or a UserError that says why not."""
    source, checkpoint = open_source(src, dst, overwrite=overwrite)
    reading = format_of(checkpoint.config)
    if reading is None:
        raise UserError(f"{source} is not quantized", where="config.json", expected=CONFIG_KEY, fix="qconvert quantize")
    if reading.name == file_format:
        raise UserError(f"{source} is in the format {file_format} already", fix="give another --format")
    family, weights = family_of(checkpoint.config), Weights(checkpoint, reading)
    scheme = _only_scheme(weights)
    layout = get_format(file_format).configured(scheme)
    check_side_parts(weights, layout)
    _refuse_unsayable(reading, checkpoint, layout)
    shapes = {name: weights.shape(name) for name in weights.names}
    block = config_block(family, layout, shapes, weights.quantized, scheme)
    copies, notes = copied_files(checkpoint)
    return Plan(
        operation="convert",
        source=str(source),
        destination=str(dst),
        recipe={"name": "convert", "scheme": scheme.name, "from": reading.name, "format": file_format},
        jobs=assign_shards([_job(weights, name, layout) for name in weights.names], max_shard_size),
        config_text=config_text(checkpoint, block),
        copies=tuple(copies),
        source_files=source_state(checkpoint),
        bytes_in=sum(info.nbytes for info in checkpoint.tensors.values()),
        warnings=(
            *family.warnings(checkpoint.config),
            *(f"{engine}: {text}" for engine, text in layout.warnings(checkpoint.config)),
        ),
        notes=(*left_out_notes(checkpoint), *notes),
    )


def _refuse_unsayable(reading: Format, checkpoint: Checkpoint, layout: Format) -> None:
    found = reading.unsayable(checkpoint.config[CONFIG_KEY])
    if found:
        raise UserError(
            f"{layout.name} has no word for a setting of this folder, without which engines compute something else",
            where=CONFIG_KEY,
            found="; ".join(found),
            fix="use the folder as it is, or take the setting out if you do not mean it",
        )


def _only_scheme(weights: Weights) -> Scheme:
    schemes = {_described(scheme): scheme for scheme in weights.quantized.values()}
    if len(schemes) != 1:
        raise UserError(
            "only folders with one number format can be converted: the others hold no more than one",
            found=", ".join(sorted(schemes)) or "no quantized weight",
        )
    return next(iter(schemes.values()))


def _described(scheme: Scheme) -> str:
    return f"{scheme.name}{', asymmetric' if 'zeros' in scheme.layout((8, 128)) else ''}"


def _job(weights: Weights, name: str, layout: Format) -> TensorJob:
    tensors = weights.checkpoint.tensors
    if name not in weights.stored:
        info = tensors[name]
        return TensorJob(name, KEEP, None, {PLAIN: name}, {PLAIN: TensorSpec(name, info.dtype, info.shape)})
    stored = weights.stored[name]
    rows, columns = stored.shape
    outputs = output_specs(layout, stored.scheme, name, (rows, columns), tensors[stored.parts["scales"]].dtype)
    return TensorJob(name, "repack", stored.scheme.name, dict(stored.parts), outputs)
