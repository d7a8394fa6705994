"""The plan that turns a plain checkpoint into a quantized one, and every reason to refuse.

Refused: sources that are quantized already; tensors that the family's inventory has and the checkpoint lacks (only
the multi-token-prediction head may be absent, as a whole); wrong shapes; tensors that no rule covers; rules that
would quantize something that is no matrix of floats, that engines cannot load quantized, or a part of what they merge.
Tensors beyond the inventory that a rule covers are converted and reported. With a calibrated method tensors go in the
order of the layers, since the model is walked once.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qconvert.calibrated import KEY, calibration_settings
from qconvert.checkpoint import Checkpoint, TensorInfo, TensorSpec
from qconvert.engine_config import config_block, config_text
from qconvert.errors import UserError
from qconvert.families import Family, family_of
from qconvert.formats import CONFIG_KEY, Format, get_format
from qconvert.opening import open_source
from qconvert.plan import MAX_SHARD_SIZE, PLAIN, Plan, TensorJob, assign_shards, left_out_notes, source_state
from qconvert.recipe import KEEP, Recipe, Rule, load_recipe
from qconvert.scheme_options import DEFAULT_METHOD, FP8, INT4, default_format, options_by_scheme
from qconvert.schemes import Scheme, get_scheme, scheme_names

QUANTIZABLE = ("BF16", "F16", "F32")


def plan_quantize(
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
    overwrite: bool = False,
) -> Plan:
    """Everything that `quantize` will do, or a UserError that says why not."""
    source, checkpoint = open_source(src, dst, overwrite=overwrite)
    _refuse_quantized(checkpoint)
    family = family_of(checkpoint.config)
    notes = _check_inventory(family, checkpoint)
    rules = choose_recipe(family, recipe, scheme)
    options = options_by_scheme(rules.schemes, scheme, scales=scales, method=method, asymmetric=asymmetric)
    schemes = {name: get_scheme(name, **given) for name, given in options.items()}
    layout = get_format(file_format or default_format(*schemes))
    layouts = {name: layout.configured(numbers) for name, numbers in schemes.items()}
    actions = {name: rules.action(name) for name in checkpoint.tensors}
    tensors = [_job(info, actions[info.name], schemes, layouts, family) for info in checkpoint.tensors.values()]
    _check_fused_groups(family, tensors)
    shapes = {info.name: info.shape for info in checkpoint.tensors.values()}
    quantized = {name: schemes[action] for name, action in actions.items() if action != KEEP}
    block = config_block(family, layouts[scheme], shapes, quantized, schemes[scheme])
    settings: dict[str, Any] = {"scheme": scheme, "scales": scales, "format": layout.name, "schemes": options}
    if method or scheme != FP8:
        settings |= {"method": method or DEFAULT_METHOD, "asymmetric": asymmetric}
    settings |= calibration_settings(source, method, calibration, calibration_tokens, min_tokens)
    if KEY in settings:
        tensors.sort(key=lambda tensor: family.place(tensor.name)[0])
        notes += _calibration_notes(settings[KEY])
    names = {name: numbers.name for name, numbers in quantized.items()}
    warned = [
        *layouts[scheme].warnings(checkpoint.config),
        *family.precision_warnings(checkpoint.config, shapes, names),
    ]
    return Plan(
        operation="quantize",
        source=str(source),
        destination=str(dst),
        recipe={"name": rules.name, **settings, "rules": [asdict(rule) for rule in rules.rules]},
        jobs=assign_shards(tensors, max_shard_size),
        config_text=config_text(checkpoint, block),
        copies=tuple(checkpoint.other_files()),
        source_files=source_state(checkpoint),
        bytes_in=sum(info.nbytes for info in checkpoint.tensors.values()),
        warnings=(*family.warnings(checkpoint.config), *(f"{engine}: {text}" for engine, text in warned)),
        notes=(*notes, *left_out_notes(checkpoint)),
    )


def _calibration_notes(text: Mapping[str, Any]) -> list[str]:
    found, asked = text["tokens"], text["asked"]
    # Domains get equal shares, which may leave a few tokens over.
    return [f"the calibration text gave {found:,} tokens, {asked:,} were asked for"] if found < 0.95 * asked else []


def choose_recipe(family: Family, name: str, scheme: str) -> Recipe:
    """A recipe by its name, or from a file."""
    known = {"default": family.default_rules, "all-linears": family.linear_rules, "mixed": _mixed_rules(family)}
    if name in known:
        return Recipe(name, known[name](scheme))
    if not name.endswith(".toml"):
        raise UserError(f"unknown recipe {name!r}", expected=f"{', '.join(known)}, or a file ending in .toml")
    return load_recipe(name, scheme, scheme_names())


def _mixed_rules(family: Family) -> Callable[[str], tuple[Rule, ...]]:
    def rules(scheme: str) -> tuple[Rule, ...]:
        if not scheme.startswith(INT4):
            raise UserError(
                "the recipe mixed has INT4 experts and FP8 elsewhere",
                expected="--scheme int4-g32, int4-g64 or int4-g128",
                found=scheme,
            )
        return family.mixed_rules(scheme, FP8)

    return rules


def _job(
    info: TensorInfo, action: str, schemes: Mapping[str, Scheme], layouts: Mapping[str, Format], family: Family
) -> TensorJob:
    if action == KEEP:
        return TensorJob(
            info.name, KEEP, None, {PLAIN: info.name}, {PLAIN: TensorSpec(info.name, info.dtype, info.shape)}
        )
    if len(info.shape) != 2 or info.dtype not in QUANTIZABLE:
        raise UserError(
            f"{info.name} cannot be quantized",
            expected=f"a matrix of type {', '.join(QUANTIZABLE)}",
            found=f"{info.dtype} {list(info.shape)}",
            fix="keep it by a rule of the recipe",
        )
    reason = family.unloadable(info.name)
    if reason is not None:
        raise UserError(f"{info.name} cannot be quantized", found=reason, fix="keep it by a rule of the recipe")
    outputs = output_specs(layouts[action], schemes[action], info.name, (info.shape[0], info.shape[1]))
    return TensorJob(info.name, "quantize", action, {PLAIN: info.name}, outputs)


def output_specs(
    layout: Format, scheme: Scheme, name: str, shape: tuple[int, int], scale_type: str | None = None
) -> dict[str, TensorSpec]:
    """The tensors on disk that a weight becomes."""
    names = layout.part_names(name)
    try:
        parts = layout.layout(scheme, shape, scale_type)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    return {part: TensorSpec(names[part], dtype, dims) for part, (dtype, dims) in parts.items()}


def _refuse_quantized(checkpoint: Checkpoint) -> None:
    block = checkpoint.config.get(CONFIG_KEY)
    if block is None:
        return
    method = block.get("quant_method") if isinstance(block, dict) else block
    raise UserError(
        f"the source is quantized already: quant_method {method!r}",
        where=f"{CONFIG_KEY} in {checkpoint.root / 'config.json'}",
        fix="quantize the BF16 original, or use `qconvert dequantize` first",
    )


def _check_inventory(family: Family, checkpoint: Checkpoint) -> list[str]:
    """Compare names and shapes with what config.json calls for."""
    inventory, tensors = family.inventory(checkpoint.config), checkpoint.tensors
    notes = []
    if not any(name.startswith(family.mtp_prefix) for name in tensors):
        inventory = {name: shape for name, shape in inventory.items() if not name.startswith(family.mtp_prefix)}
        notes.append("the source has no multi-token-prediction head (mtp.*); neither has the output")
    missing = [name for name in inventory if name not in tensors]
    if missing:
        raise UserError(
            f"tensor {missing[0]} is missing",
            where=str(checkpoint.root),
            expected=f"{len(inventory)} tensors, by config.json",
            found=f"{len(missing)} of them are missing",
            fix="download the checkpoint again, or mend config.json",
        )
    for name, shape in inventory.items():
        if tensors[name].shape != shape:
            raise UserError(
                f"{name} does not have the shape that config.json calls for",
                expected=str(list(shape)),
                found=str(list(tensors[name].shape)),
                fix="mend config.json, or download this shard again",
            )
    extra = [name for name in tensors if name not in inventory]
    if extra:
        notes.append(f"{len(extra)} tensors are not in the model that config.json describes, the first is {extra[0]}")
    return notes


def _check_fused_groups(family: Family, tensors: Iterable[TensorJob]) -> None:
    """All members of a group share one precision."""
    first: dict[str, TensorJob] = {}
    for tensor in tensors:
        group = family.fused_group(tensor.name)
        if group is None:
            continue
        other = first.setdefault(group, tensor)
        if other.scheme != tensor.scheme:
            raise UserError(
                f"engines load {group} as one tensor, but the recipe gives its parts different precisions",
                found=f"{other.name}: {other.scheme or KEEP}; {tensor.name}: {tensor.scheme or KEEP}",
                fix="let the same rule cover all of them",
            )
