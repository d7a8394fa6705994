"""What config.json tells engines about a folder: the `quantization_config`, put into the text of the original."""

from collections.abc import Iterable, Mapping
from typing import Any

from qconvert.checkpoint import Checkpoint, insert_key, remove_key
from qconvert.families import Family
from qconvert.formats import CONFIG_KEY, Format
from qconvert.schemes import Scheme


def config_block(
    family: Family,
    layout: Format,
    shapes: Mapping[str, tuple[int, ...]],
    quantized: Mapping[str, Scheme],
    default: Scheme,
) -> dict[str, Any]:
    """The block for weights quantized, each with its scheme (`default` if there are none), among all of these shapes.

    Formats with patterns must know the paths that engines give to merged modules, too.
    """
    kept = [name for name in shapes if name not in quantized]
    matrices = not_converted(family, (name for name in kept if len(shapes[name]) == 2))
    merged = (family.fused_group(f"{module}.weight") for module in matrices)
    excluded = list(dict.fromkeys([*matrices, *(name for name in merged if name)]))
    modules = {name.removesuffix(".weight"): scheme for name, scheme in quantized.items()}
    groups = {family.fused_group(name): scheme for name, scheme in quantized.items()}
    converted = modules | {name: scheme for name, scheme in groups.items() if name}
    if len({scheme.name for scheme in quantized.values()}) > 1:
        return layout.block_of_several(converted, excluded)
    scheme = next(iter(quantized.values()), default)
    if layout.lists_paths:
        return layout.config_block(scheme, not_converted(family, kept))
    return layout.config_block(scheme, excluded, list(converted))


def not_converted(family: Family, kept: Iterable[str]) -> list[str]:
    """Module paths of the kept tensors in the official order: layers by number, names within a layer by alphabet."""
    modules = {name.removesuffix(".weight") for name in kept if family.is_skip_listed(name)}
    return sorted(modules, key=lambda path: [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in path.split(".")])


def config_text(checkpoint: Checkpoint, block: dict[str, Any]) -> str:
    """config.json with the block; an explicit null in its place makes room for it."""
    text = checkpoint.config_text
    return insert_key(remove_key(text, CONFIG_KEY) if CONFIG_KEY in checkpoint.config else text, CONFIG_KEY, block)
