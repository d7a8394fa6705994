"""`qconvert quantize SRC DST`, `qconvert dequantize SRC DST`, `qconvert convert SRC DST --format F`: make the plan,
show it or run it.

What they offer to choose from is read off the file names of the schemes and formats, so that --help needs no torch.
"""

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qconvert.machine import granted_cores
from qconvert.sizes import parse_bytes

if TYPE_CHECKING:
    from qconvert.manifest import Manifest
    from qconvert.plan import Plan
    from qconvert.quantizers import Quantizer

Command = TypeVar("Command", bound=Callable[..., Any])


def names_in(package: str, *apart: str) -> list[str]:
    """Public names of the modules of a package, without importing it; `apart` are modules that define no choice."""
    spec = importlib.util.find_spec(package)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    stems = {path.stem for folder in folders for path in Path(folder).glob("[!_]*.py")}
    return sorted(stem.replace("_", "-") for stem in stems.difference(apart))


FORMATS = names_in("qconvert.formats", "config_groups", "exclusions", "format", "int4", "weights", "words")


def byte_count(ctx: click.Context, option: click.Parameter, value: str) -> int:
    """`5GB`, `500 MB` or a number of bytes."""
    return parse_bytes(value)


def workers_option(what: str) -> Callable[[Command], Command]:
    """`--workers`, as every command has it that can use several cores."""
    return click.option(
        "--workers", type=click.IntRange(min=1), default=lambda: min(granted_cores(), 8),
        show_default="one a core granted, at most 8", help=what,
    )  # fmt: skip


def conversion_options(command: Command) -> Command:
    """The options that all conversions share."""
    options = (
        workers_option("Tensors converted at a time. The output does not depend on it."),
        click.option(
            "--max-shard-size", callback=byte_count, default="5GB", show_default=True, metavar="SIZE",
            help="Size of the output's files, such as 500MB. A larger tensor gets a file of its own.",
        ),
        click.option("--dry-run", is_flag=True, help="Print the plan and write nothing."),
        click.option(
            "--resume/--no-resume", default=True, show_default=True,
            help="Go on where an interrupted run stopped, or start afresh.",
        ),
        click.option("--overwrite", is_flag=True, help="Replace DST, once the new folder is complete."),
        click.option("--json", "as_json", is_flag=True, help="Print the plan or the manifest as JSON."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST", type=click.Path(path_type=Path))
@click.option(
    "--scheme",
    type=click.Choice(names_in("qconvert.schemes", "scheme")),
    default="fp8-block128",
    show_default=True,
    help="Number format of the quantized weights.",
)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(FORMATS),
    show_default="fp8 for FP8, compressed-tensors for INT4",
    help="File format, as the engines expect it.",
)
@click.option(
    "--recipe",
    default="default",
    show_default=True,
    metavar="NAME|FILE.toml",
    help="What is quantized: default, all-linears, or rules of your own. INT4's default: the routed experts only.",
)
@click.option(
    "--method",
    type=click.Choice(["rtn", "mse", "imatrix", "gptq"]),
    show_default="mse",
    help="INT4: scales by the plain rule of compressed-tensors, by least squared error, by that error weighted with "
    "the inputs, or those and codes that make up for each other's errors. The last two need --calibration.",
)
@click.option(
    "--calibration",
    metavar="SPEC",
    help="Text for imatrix and gptq: file.txt, file.jsonl or a hub data set. Not what `compare` measures on.",
)
@click.option(
    "--calibration-tokens", type=click.IntRange(min=2), metavar="N", show_default="131072", help="Tokens of it to run."
)
@click.option(
    "--min-tokens",
    type=click.IntRange(min=0),
    metavar="N",
    show_default="512",
    help="Experts that saw fewer tokens than this are counted in the report.",
)
@click.option("--asymmetric", is_flag=True, help="INT4 with zero points.")
@click.option(
    "--scales",
    type=click.Choice(["bf16", "f32", "pow2"]),
    default="bf16",
    show_default=True,
    help="Type of the scales; pow2: powers of two, which engines with UE8M0 scales leave unchanged.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where weights are quantized; auto: on a GPU that there are kernels for. The output does not depend on it.",
)
@conversion_options
def quantize(
    source: str, destination: Path, scheme: str, file_format: str | None, scales: str, recipe: str,
    method: str | None, calibration: str | None, calibration_tokens: int | None, min_tokens: int | None,
    asymmetric: bool, device: str, workers: int, max_shard_size: int, dry_run: bool, resume: bool, overwrite: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Write a quantized copy of a BF16 checkpoint, tensor by tensor, with everything that belongs to it.

    SRC is a folder or a hub id (org/name[@revision]). DST is a new folder; it appears when it is complete.
    """
    from qconvert.quantization import choose_quantizer, plan_quantize, plan_schemes

    plan = plan_quantize(
        source, destination, scheme=scheme, scales=scales, method=method, asymmetric=asymmetric,
        file_format=file_format, recipe=recipe, calibration=calibration, calibration_tokens=calibration_tokens,
        min_tokens=min_tokens, max_shard_size=max_shard_size, overwrite=overwrite,
    )  # fmt: skip
    quantizer = choose_quantizer(device, plan_schemes(plan))
    run(
        plan, workers=workers, dry_run=dry_run, resume=resume, overwrite=overwrite, as_json=as_json,
        quantizer=quantizer,
    )  # fmt: skip


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST", type=click.Path(path_type=Path))
@conversion_options
def dequantize(
    source: str,
    destination: Path,
    workers: int,
    max_shard_size: int,
    dry_run: bool,
    resume: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write a BF16 copy of a quantized checkpoint: the weights that its numbers stand for.

    SRC is a folder or a hub id (org/name[@revision]). DST is a new folder; it appears when it is complete.
    """
    from qconvert.quantization import plan_dequantize

    plan = plan_dequantize(source, destination, max_shard_size=max_shard_size, overwrite=overwrite)
    run(plan, workers=workers, dry_run=dry_run, resume=resume, overwrite=overwrite, as_json=as_json)


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST", type=click.Path(path_type=Path))
@click.option("--format", "file_format", type=click.Choice(FORMATS), required=True, help="The file format to write.")
@conversion_options
def convert(
    source: str, destination: Path, file_format: str,
    workers: int, max_shard_size: int, dry_run: bool, resume: bool, overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    """Write the numbers of a quantized checkpoint in another file format, without loss.

    SRC is a folder or a hub id (org/name[@revision]). DST is a new folder; it appears when it is complete. What the
    other format cannot hold exactly is refused by name.
    """
    from qconvert.quantization import plan_convert

    plan = plan_convert(
        source, destination, file_format=file_format, max_shard_size=max_shard_size, overwrite=overwrite
    )
    run(plan, workers=workers, dry_run=dry_run, resume=resume, overwrite=overwrite, as_json=as_json)


def run(
    plan: "Plan", *, workers: int, dry_run: bool, resume: bool, overwrite: bool, as_json: bool,
    quantizer: "Quantizer | None" = None,
) -> None:  # fmt: skip
    """Show the plan, or carry it out with a progress bar and show the manifest."""
    for warning in plan.warnings:
        click.echo(f"warning: {warning}", err=True)
    if dry_run:
        click.echo(json.dumps(plan.to_json(), indent=2) if as_json else plan_text(plan))
        return
    from qconvert.cli.progress import ProgressBar
    from qconvert.quantization import run_plan

    with ProgressBar(plan.operation if quantizer is None else f"{plan.operation} on {quantizer.place}") as progress:
        manifest = run_plan(
            plan, workers=workers, overwrite=overwrite, resume=resume, progress=progress, quantizer=quantizer
        )
    click.echo(manifest.to_text().rstrip("\n") if as_json else manifest_text(manifest, plan.destination))
    if quantizer is not None:
        click.echo(f"device: {quantizer.place}", err=True)


def plan_text(plan: "Plan") -> str:
    """What will be done, one line for each output file."""
    from qconvert.sizes import format_bytes

    counts = plan.counts
    lines = [f"{plan.operation} {plan.source} -> {plan.destination} (dry run, nothing is written)"]
    lines += [f"  {key}: {value}" for key, value in plan.recipe.items() if key != "rules"]
    lines += [f"  {job.file}: {len(job.specs):,} tensors, {format_bytes(job.nbytes)}" for job in plan.jobs]
    lines += [f"  {name}: copied" for name in plan.copies]
    lines.append(f"  {summary_of(counts)}")
    return "\n".join(lines + [f"  note: {note}" for note in plan.notes])


def manifest_text(manifest: "Manifest", destination: str) -> str:
    """What was done, in a line or two."""
    seconds = float(manifest.run["wall_seconds"])
    speed = manifest.counts["bytes_in"] / 1e9 / max(seconds, 1e-3)
    lines = [f"{destination}: {summary_of(manifest.counts)}, in {seconds:.1f} s ({speed:.2f} GB/s read)"]
    lines += tensor_lines(manifest.tensors)
    return "\n".join(lines + [f"note: {note}" for note in manifest.notes])


def tensor_lines(tensors: Mapping[str, Any]) -> list[str]:
    """The report of tensors in a few lines: mean error by kind, the worst, fallbacks, experts with few tokens."""
    from qconvert.checkpoint import TENSOR_REPORT

    if not tensors:
        return []
    kinds = (f"{kind} {entry['mean_relative_error']:.4f}" for kind, entry in tensors["kinds"].items())
    worst = tensors["worst"][0]
    lines = [
        f"relative error of the weights, mean by kind: {', '.join(kinds)}",
        f"largest: {worst['relative_error']:.4f}, {worst['name']}; all in {TENSOR_REPORT}",
    ]
    if "few_tokens" in tensors:
        few = tensors["few_tokens"]
        where = ", ".join(f"{layer}: {count}" for layer, count in few["layers"].items())
        lines.append(
            f"{few['modules']:,} of {few['of']:,} modules saw fewer than {few['threshold']:,} calibration tokens"
            f"{f' ({where})' if where else ''}; the fewest {few['fewest']:,}, none {few['unseen']:,}"
        )
        lines.append("methods: " + ", ".join(f"{name} {count:,}" for name, count in tensors["methods"].items()))
        lines += [f"fallback, {count:,} tensors: {reason}" for reason, count in tensors["fallbacks"].items()]
    return lines


def summary_of(counts: Any) -> str:
    """Tensors by what becomes of them, and bytes before and after."""
    from qconvert.sizes import format_bytes

    actions = ", ".join(
        f"{counts[key]:,} {key}" for key in ("quantized", "dequantized", "repacked", "kept") if counts[key]
    )
    return f"{actions}; {format_bytes(counts['bytes_in'])} -> {format_bytes(counts['bytes_out'])}"
