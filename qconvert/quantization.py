"""The conversions as functions: `quantize` a plain checkpoint, `dequantize` a quantized one back to BF16, `convert` one
from a file format into another.

Each makes a plan from metadata (`plan_quantize`, `plan_dequantize`, `plan_convert`) and runs it (`run_plan`).
"""

from pathlib import Path

from qconvert.convert_plan import plan_convert
from qconvert.dequantize_plan import plan_dequantize
from qconvert.manifest import Manifest
from qconvert.pipeline import Progress, run_plan
from qconvert.plan import MAX_SHARD_SIZE, Plan
from qconvert.quantize_plan import plan_quantize
from qconvert.quantizers import choose_quantizer
from qconvert.schemes import Scheme, get_scheme

__all__ = [
    "choose_quantizer",
    "convert",
    "dequantize",
    "plan_convert",
    "plan_dequantize",
    "plan_quantize",
    "plan_schemes",
    "quantize",
    "run_plan",
]


def quantize(
    src: str | Path,
    dst: str | Path,
    *,
    scheme: str = "fp8-block128",
    scales: str = "bf16",
    method: str | None = None,
    asymmetric: bool = False,
    file_format: str | None = None,
    recipe: str = "default",
    calibration: str | None = None,
    calibration_tokens: int | None = None,
    min_tokens: int | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
    workers: int = 1,
    overwrite: bool = False,
    resume: bool = True,
    progress: Progress | None = None,
    device: str = "cpu",
) -> Manifest:
    """Write a quantized copy of the checkpoint SRC (folder or hub id) into the new folder DST.

    `device` is "cpu", "cuda", or "auto"; the output is the same.
    """
    plan = plan_quantize(
        src,
        dst,
        scheme=scheme,
        scales=scales,
        method=method,
        asymmetric=asymmetric,
        file_format=file_format,
        recipe=recipe,
        calibration=calibration,
        calibration_tokens=calibration_tokens,
        min_tokens=min_tokens,
        max_shard_size=max_shard_size,
        overwrite=overwrite,
    )
    quantizer = choose_quantizer(device, plan_schemes(plan))
    return run_plan(plan, workers=workers, overwrite=overwrite, resume=resume, progress=progress, quantizer=quantizer)


def plan_schemes(plan: Plan) -> list[Scheme]:
    """What a plan of `quantize` quantizes to."""
    return [get_scheme(name, **options) for name, options in plan.recipe["schemes"].items()]


def dequantize(
    src: str | Path,
    dst: str | Path,
    *,
    max_shard_size: int = MAX_SHARD_SIZE,
    workers: int = 1,
    overwrite: bool = False,
    resume: bool = True,
    progress: Progress | None = None,
) -> Manifest:
    """Write a BF16 copy of the quantized checkpoint SRC (folder or hub id) into the new folder DST."""
    plan = plan_dequantize(src, dst, max_shard_size=max_shard_size, overwrite=overwrite)
    return run_plan(plan, workers=workers, overwrite=overwrite, resume=resume, progress=progress)


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    file_format: str,
    max_shard_size: int = MAX_SHARD_SIZE,
    workers: int = 1,
    overwrite: bool = False,
    resume: bool = True,
    progress: Progress | None = None,
) -> Manifest:
    """Write the numbers of the quantized checkpoint SRC (folder or hub id) in another file format into the new DST."""
    plan = plan_convert(src, dst, file_format=file_format, max_shard_size=max_shard_size, overwrite=overwrite)
    return run_plan(plan, workers=workers, overwrite=overwrite, resume=resume, progress=progress)
