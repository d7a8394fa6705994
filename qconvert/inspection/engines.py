"""What vLLM, SGLang and transformers do wrong, or cannot do, with a folder. Each rule states the behaviour that it
warns of.

The behaviours were read in vLLM 0.33, SGLang 0.5.23 and transformers 5.23. For an unquantized folder the rules speak
of what its FP8 version will meet. A folder's own defects come from the structural checks of `verify`, so that both
commands agree. Left out: what depends on an engine's command line or the machine, except where a setting is the way
out.
"""

from collections.abc import Iterator

from qconvert.checkpoint import INDEX
from qconvert.families import Family
from qconvert.inspection.contents import Contents
from qconvert.inspection.int4_engines import int4_warnings
from qconvert.inspection.report import EngineWarning
from qconvert.recipe import KEEP, Recipe
from qconvert.schemes import Scheme, get_scheme
from qconvert.verification.structure import check_names, check_precision, check_shapes, check_skip_list

DEFAULT_SCHEME = "fp8-block128"
PARALLEL_SIZES = (1, 2, 4, 8, 16)
BOTH = "vLLM, SGLang"
EVERY = "vLLM, SGLang, transformers"


def engine_warnings(contents: Contents, family: Family) -> list[EngineWarning]:
    """All that applies, gravest first."""
    quantized = contents.quantized or _planned(contents, family)
    prefix = "" if contents.quantized else f"quantized to {DEFAULT_SCHEME}: "
    found = list(_defects(contents))
    found += [EngineWarning("SGLang", text) for text in family.warnings(contents.config)]
    found += _head(contents, family)
    found += _files(contents)
    if contents.stored is not None and contents.stored.format is not None:
        found += [EngineWarning(*pair) for pair in contents.stored.format.warnings(contents.config)]
    if quantized:
        blocks = {name: scheme for name, scheme in quantized.items() if scheme.name == DEFAULT_SCHEME}
        later = list(int4_warnings(contents, quantized))
        if blocks:
            later += [
                *_partial_blocks(contents, blocks),
                *_parallel_sizes(contents, blocks),
                *_rounded_scales(contents),
            ]
        if contents.quantized:
            names = {name: scheme.name for name, scheme in quantized.items()}
            later += [
                EngineWarning(*pair) for pair in family.precision_warnings(contents.config, contents.shapes, names)
            ]
        found += [EngineWarning(warning.engine, prefix + warning.text) for warning in later]
    return found


def _planned(contents: Contents, family: Family) -> dict[str, Scheme]:
    """What the default recipe would quantize."""
    recipe, scheme = Recipe("default", family.default_rules(DEFAULT_SCHEME)), get_scheme(DEFAULT_SCHEME)
    known = (name for name in contents.shapes if name not in contents.unknown)
    return {name: scheme for name in known if recipe.action(name) != KEEP}


def _defects(contents: Contents) -> Iterator[EngineWarning]:
    """The structural checks of `verify` that fail."""
    if contents.stored is None:
        return
    for check in (check_names, check_shapes, check_precision, check_skip_list):
        result = check(contents.stored)
        if result is not None and not result.ok:
            first = result.detail.splitlines()[0]
            yield EngineWarning(EVERY, f"{first} ({result.failures} such, see `qconvert verify`)")


def _head(contents: Contents, family: Family) -> Iterator[EngineWarning]:
    """The multi-token-prediction head is what conversions lose most often, and engines do not say so."""
    if any(name.startswith(family.mtp_prefix) for name in contents.shapes):
        text = f"ignores {family.mtp_prefix}* on load, so save_pretrained writes a folder without the prediction head"
        yield EngineWarning("transformers", text)
    else:
        yield EngineWarning(
            BOTH,
            f"no {family.mtp_prefix}* tensors: speculation with the model's own head is impossible, and vLLM starts "
            "a quantized folder with a random head without saying so; if the original has them, take it instead of a "
            "copy that transformers saved",
        )


def _files(contents: Contents) -> Iterator[EngineWarning]:
    """transformers looks for one file name or for the index, and for nothing else."""
    if contents.stored is None:
        return
    checkpoint = contents.stored.checkpoint
    if not (checkpoint.root / INDEX).exists() and checkpoint.shards != ("model.safetensors",):
        yield EngineWarning(
            "transformers", f"finds no weights without {INDEX}, unless they are in one file model.safetensors"
        )


def _partial_blocks(contents: Contents, quantized: dict[str, Scheme]) -> Iterator[EngineWarning]:
    """Where a dimension is no multiple of the block, readers disagree about the shape of the last block."""
    names = [n for n, scheme in quantized.items() if any(length % scheme.row_step for length in contents.shapes[n])]
    if names:
        first = f"{names[0]}: {'x'.join(map(str, contents.shapes[names[0]]))}"
        yield EngineWarning(
            "transformers, SGLang",
            f"{len(names):,} weights have partial blocks ({first}): on CPU and older GPUs, transformers dequantizes "
            "them with blocks of another size, so to wrong numbers; SGLang refuses them in merged layers",
        )


def _parallel_sizes(contents: Contents, quantized: dict[str, Scheme]) -> Iterator[EngineWarning]:
    """Each rank must hold whole blocks of every expert."""
    step = next(iter(quantized.values())).row_step
    experts = ("moe_intermediate_size", "shared_expert_intermediate_size")
    keys = experts if contents.config.get("num_experts") else ("intermediate_size",)
    widths = {key: int(contents.config[key]) for key in keys if contents.config.get(key)}
    fitting = [size for size in PARALLEL_SIZES if all(width % (size * step) == 0 for width in widths.values())]
    if widths and len(fitting) < len(PARALLEL_SIZES):
        sizes = ", ".join(map(str, fitting)) or "none"
        settings = ", ".join(f"{key} {width}" for key, width in widths.items())
        yield EngineWarning(
            BOTH, f"tensor-parallel sizes that give whole blocks of {step}: {sizes} ({settings}); others fail to load"
        )


def _rounded_scales(contents: Contents) -> Iterator[EngineWarning]:
    """DeepGEMM wants powers of two and makes them itself, from numbers that are already rounded once."""
    if not contents.powers_of_two:
        yield EngineWarning(
            BOTH,
            "on Hopper and Blackwell, DeepGEMM rounds the scales to powers of two at load and quantizes again; "
            "this raises the weight error by 40%. Quantize with --scales pow2, or serve with VLLM_USE_DEEP_GEMM_E8M0=0",
        )
