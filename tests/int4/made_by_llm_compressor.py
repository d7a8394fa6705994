"""Makes the fixtures of llm-compressor; run by hand, never by the tests, which must not depend on it.

    python -m venv llmc && llmc/bin/pip install torch==2.13.0 llmcompressor==0.14.0.1 click
    PYTHONPATH=. llmc/bin/python -m tests.int4.made_by_llm_compressor

Its data-free path, `model_free_ptq`, is given the tiny checkpoint and a handful of matrices. It needs no GPU.
"""

import json
import tempfile
from pathlib import Path

from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor import model_free_ptq

from qconvert.checkpoint import save_safetensors
from tests.int4.foreign import matrices, save, source_tensors, write_source

IGNORED = [
    "lm_head", "model.embed_tokens", "re:.*mlp.gate$", "re:.*shared_expert_gate$", "re:.*in_proj_ba$",
    "re:.*conv1d$", "re:.*norm.*", "mtp.fc",
]  # fmt: skip
PACKAGES = ("llmcompressor", "compressed-tensors", "torch")


def scheme(group: int, symmetric: bool) -> QuantizationScheme:
    weights = QuantizationArgs(num_bits=4, type="int", symmetric=symmetric, strategy="group", group_size=group)
    return QuantizationScheme(targets=["Linear"], weights=weights)


def name_of(chosen: str | QuantizationScheme) -> str:
    return (
        chosen if isinstance(chosen, str) else json.dumps(chosen.weights.model_dump(mode="json", exclude_defaults=True))
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        model, loose = write_source(work / "model"), work / "loose"
        loose.mkdir()
        weights = {f"{kind}.weight": data for kind, data in matrices().items()}
        save_safetensors(loose / "model.safetensors", weights)
        (loose / "config.json").write_text(json.dumps({"architectures": []}))
        presets = {"g128": "W4A16", "g128-asym": "W4A16_ASYM", "fp8": "FP8_BLOCK"}
        own = {f"g{group}{'' if sym else '-asym'}": scheme(group, sym) for group in (32, 64) for sym in (True, False)}
        for kind, chosen in (presets | own).items():
            model_free_ptq(loose, work / kind, scheme=chosen, max_workers=1)
            save(f"llm-compressor-matrices-{kind}", work / kind, weights, name_of(chosen), *PACKAGES)
        for kind in ("g32", "g32-asym"):  # its FP8_BLOCK cannot save weights whose width is no multiple of 128
            target = work / f"model-{kind}"
            model_free_ptq(model, target, scheme=own[kind], ignore=IGNORED, max_workers=1)
            save(f"llm-compressor-{kind}", target, source_tensors(), name_of(own[kind]), *PACKAGES)


if __name__ == "__main__":
    main()
