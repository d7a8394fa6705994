"""What is in a checkpoint, what each scheme would make of it, what serving it takes, and what engines will do wrong
with it.

Everything comes from metadata: config.json, the family's inventory, and the headers of the tensor files. A folder
with nothing but a config.json is enough for the sizes. Left out: the values of the tensors, which `verify` reads;
only the scales of one weight are looked at, to see whether they are powers of two.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from qconvert.checkpoint import Checkpoint, TensorSpec, is_local, read_config, resolve_source
from qconvert.errors import UserError
from qconvert.families import Family, family_of
from qconvert.formats import get_format
from qconvert.inspection.contents import Contents, contents_of_config, contents_of_folder
from qconvert.inspection.engines import engine_warnings
from qconvert.inspection.report import CachePlan, EngineWarning, InspectReport, Kind, Totals
from qconvert.recipe import KEEP, Recipe
from qconvert.scheme_options import default_format
from qconvert.schemes import get_scheme, scheme_names

__all__ = ["CachePlan", "EngineWarning", "InspectReport", "Kind", "Totals", "inspect"]

Sizes = dict[str, tuple[int, int]]  # weight -> tensors on disk, bytes on disk


def inspect(source: str | Path) -> InspectReport:
    """Inspect a folder, or by its config.json alone a model of the hub."""
    # Tensor files are never fetched: the sizes follow from the config, and 163 GB are a high price for a table.
    # Nor are those used that the cache happens to hold, perhaps not all of them: the answer would depend on the past.
    local = is_local(str(source))
    folder = resolve_source(str(source), patterns=["config.json"])
    # An index alone counts as tensor files: the reader will name the shards that are missing.
    if local and any(folder.glob("*.safetensors*")):
        contents = contents_of_folder(Checkpoint.open(folder))
    else:
        _, config = read_config(folder)
        contents = contents_of_config(config)
    family = family_of(contents.config)
    schemes = {name: scheme_sizes(contents, family, name) for name in scheme_names()}
    cache = family.cache_bytes(contents.config)
    return InspectReport(
        source=str(source),
        model_type=family.model_type,
        format=contents.format,
        metadata=contents.metadata,
        now=_totals(contents, contents.now),
        schemes={name: _totals(contents, sizes) for name, sizes in schemes.items()},
        kinds=_kinds(contents, family, schemes),
        cache=CachePlan(cache.per_token, cache.per_sequence, int(contents.config.get("max_position_embeddings") or 0)),
        warnings=engine_warnings(contents, family),
        notes=contents.notes,
    )


def scheme_sizes(contents: Contents, family: Family, name: str) -> Sizes:
    """What each weight takes under a scheme's default recipe, in the format that `quantize` takes; what is kept
    stays as it is (BF16 if quantized now), and so does what the scheme does not fit."""
    recipe, scheme = Recipe("default", family.default_rules(name)), get_scheme(name)
    layout = get_format(default_format(name)).configured(scheme)
    sizes: Sizes = {}
    for weight, shape in contents.shapes.items():
        parts: list[TensorSpec] = []
        if weight not in contents.unknown and recipe.action(weight) != KEEP:
            with contextlib.suppress(UserError):
                stored = layout.layout(scheme, (shape[0], shape[1])).values()
                parts = [TensorSpec(weight, dtype, dims) for dtype, dims in stored]
        if not parts:
            dtype = "BF16" if weight in contents.quantized else contents.types[weight]
            parts = [TensorSpec(weight, dtype, shape)]
        sizes[weight] = (len(parts), sum(part.nbytes for part in parts))
    return sizes


def _totals(contents: Contents, sizes: Sizes) -> Totals:
    return Totals(
        tensors=sum(count for count, _ in sizes.values()),
        parameters=sum(contents.parameters(weight) for weight in contents.shapes),
        bytes=sum(size for _, size in sizes.values()),
    )


def _kinds(contents: Contents, family: Family, schemes: Mapping[str, Sizes]) -> list[Kind]:
    """Weights grouped by kind, in the order in which the kinds first appear."""
    groups: dict[str, list[str]] = {}
    for weight in contents.shapes:
        groups.setdefault(family.kind(weight), []).append(weight)
    return [
        Kind(
            name=kind,
            shapes=tuple(dict.fromkeys(contents.shapes[weight] for weight in weights)),
            tensors=len(weights),
            parameters=sum(contents.parameters(weight) for weight in weights),
            bytes=sum(contents.now[weight][1] for weight in weights),
            schemes={name: sum(sizes[weight][1] for weight in weights) for name, sizes in schemes.items()},
        )
        for kind, weights in groups.items()
    ]
