"""What vLLM and SGLang can do with INT4 folders: tensor-parallel sizes, groups and zero points that their kernels take.

Read in vLLM 0.33 and SGLang 0.5.23. Left out: kernels for single GPUs that neither chooses by itself.
"""

from collections.abc import Iterator, Mapping

from qconvert.formats import CONFIG_KEY
from qconvert.formats.auto_round import PLAIN_ZEROS
from qconvert.inspection.contents import Contents, config_type
from qconvert.inspection.report import EngineWarning
from qconvert.schemes import Scheme
from qconvert.verification.structure import guessed_by_vllm

PARALLEL_SIZES = (1, 2, 4, 8, 16, 32)
PREFIX = "int4-g"


def int4_warnings(contents: Contents, quantized: Mapping[str, Scheme]) -> Iterator[EngineWarning]:
    """All that applies to the INT4 weights of a folder."""
    schemes = {scheme.name: scheme for scheme in quantized.values() if scheme.name.startswith(PREFIX)}
    file_format = contents.stored.format.name if contents.stored is not None and contents.stored.format else ""
    for name, scheme in schemes.items():
        group = int(name.removeprefix(PREFIX))
        yield from _parallel_sizes(contents, quantized, name, group)
        if group == 64:
            yield EngineWarning("SGLang", "on Blackwell, its experts' kernel takes groups of 32 or 128, not of 64")
        if "zeros" in scheme.layout((8, group)):
            yield from _zero_points(file_format)
    if schemes and contents.stored is not None:
        yield from _settings(contents)


def _parallel_sizes(
    contents: Contents, quantized: Mapping[str, Scheme], scheme: str, group: int
) -> Iterator[EngineWarning]:
    """down_proj is split along its inputs: each rank must hold whole groups."""
    parts = {"moe_intermediate_size": ".experts.", "shared_expert_intermediate_size": ".shared_expert."}
    names = [name for name, own in quantized.items() if own.name == scheme]
    widths = {
        key: int(contents.config[key])
        for key, part in parts.items()
        if contents.config.get(key) and any(part in name for name in names)
    }
    fitting = [size for size in PARALLEL_SIZES if all(width % (size * group) == 0 for width in widths.values())]
    if widths and len(fitting) < len(PARALLEL_SIZES):
        sizes = ", ".join(map(str, fitting)) or "none"
        settings = ", ".join(f"{key} {width}" for key, width in widths.items())
        yield EngineWarning(
            "vLLM, SGLang",
            f"tensor-parallel sizes that give whole groups of {group}: {sizes} ({settings}); more GPUs need expert "
            "parallelism",
        )


def _settings(contents: Contents) -> Iterator[EngineWarning]:
    """What other tools write into config.json and engines do not take."""
    assert contents.stored is not None
    block = contents.config[CONFIG_KEY]
    if block.get("desc_act"):
        yield EngineWarning("vLLM", "refuses desc_act (act-order), even where the groups turn out to be in order")
    packing = block.get("packing_format")
    if packing in PLAIN_ZEROS:
        yield EngineWarning("vLLM", f"refuses the packing {packing!r}; convert to compressed-tensors or awq")
    types = {weight.layout["scales"][0] for weight in contents.stored.weights.values() if "scales" in weight.layout}
    model = config_type(contents.config)
    if types - {model}:
        yield EngineWarning(
            "vLLM, SGLang",
            f"hold scales in the model's type, {model}, and round those stored as {', '.join(sorted(types))} at load: "
            "weights move by up to 2^-9 of their size",
        )
    guessed = guessed_by_vllm(contents.stored)
    if guessed:
        yield EngineWarning(
            "SGLang",
            f"takes {len(guessed):,} modules in full precision for quantized, as no entry of config.json excludes them "
            f"({guessed[0]}); vLLM guesses right. Converting to another format writes the entries",
        )


def _zero_points(file_format: str) -> Iterator[EngineWarning]:
    if file_format in ("gptq", "auto-round"):
        yield EngineWarning("vLLM", "refuses asymmetric GPTQ; convert to compressed-tensors or awq")
    if file_format == "compressed-tensors":
        yield EngineWarning("vLLM", "takes experts with zero points in this format since mid-2026, not in 0.19")
        yield EngineWarning("SGLang", "refuses experts with zero points on Blackwell; elsewhere they are untested")
