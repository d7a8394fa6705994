"""Folders that other people's tools made of one tiny checkpoint, kept as what they changed.

    fixtures/<case>.safetensors   the tensors that the tool wrote and the source has not, or has otherwise
    fixtures/<case>.json          {"made_by": {package: version}, "call": text, "removed": [names], "config": block,
                                   "decoded": {weight: sha256 of what the tool's own code makes of its numbers}}

`write_source` draws the source from integers, so that it is the same bits on every machine and with every torch.
`save` is for the scripts `made_by_*.py`, which are run by hand in an environment of the tool; `restore` for tests. A
folder whose kept tensors the tool changed cannot be saved unnoticed: they would be stored, too.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qconvert.checkpoint import load_safetensors, read_config, save_safetensors, write_checkpoint
from qconvert.families import family_of
from tests.tiny import tiny_config

Decode = Callable[[dict[str, Tensor]], Tensor]

FIXTURES = Path(__file__).parent / "fixtures"
CONFIG = tiny_config(
    num_hidden_layers=1, layer_types=["linear_attention"], num_experts=2, hidden_size=64, moe_intermediate_size=32,
    shared_expert_intermediate_size=32, head_dim=32, num_attention_heads=2, num_key_value_heads=1,
    linear_key_head_dim=16, linear_value_head_dim=16, vocab_size=32,
)  # fmt: skip


def bell(shape: tuple[int, ...], seed: int, tail: int = 0) -> Tensor:
    """Sums of four uniform integers times 2^-12, BF16: nearly Gaussian with deviation 0.03; every `tail`-th is 8 times
    as large."""
    draws = torch.randint(-100, 101, (4, *shape), generator=torch.Generator().manual_seed(seed)).sum(0)  # exact
    if tail:
        draws.view(-1)[::tail] *= 8
    return (draws.float() * 2.0**-12).bfloat16()


def source_tensors() -> dict[str, Tensor]:
    """Every tensor of the tiny model, in the inventory's order."""
    shapes = family_of(CONFIG).inventory(CONFIG)
    return {name: bell(shape, seed) for seed, (name, shape) in enumerate(shapes.items())}


def matrices() -> dict[str, Tensor]:
    """Weights of the shapes and kinds at which rules for scales part ways."""
    found = {"bell": bell((24, 256), 1000), "tails": bell((24, 256), 1001, tail=37), "square": bell((160, 256), 1002)}
    edges = bell((16, 256), 1003)
    edges[0] = 0  # a row of zeros
    edges[1, :128] = 0
    edges[2] = edges[2].abs()  # one side only
    edges[3] = -edges[3].abs()
    edges[4] = 0.25  # one number
    edges[5, 0] = 8.0  # an outlier that leaves the rest to one code
    edges[6] *= 2.0**-60
    edges[7] *= 2.0**60
    return found | {"edges": edges}


def write_source(folder: Path) -> Path:
    """The checkpoint that all tools were given."""
    return write_checkpoint(folder, CONFIG, source_tensors(), shards=1)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder."""
    return {
        name: data for path in sorted(folder.glob("*.safetensors")) for name, data in load_safetensors(path).items()
    }


def sha256(weight: Tensor) -> str:
    """Of a weight [N, K] in its own type; -0 counts as 0, as some tools decode by multiplying the identity."""
    weight = weight + 0  # -0 + 0 is 0
    return hashlib.sha256(weight.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def save(
    case: str, folder: Path, before: dict[str, Tensor], call: str, *packages: str, decode: Decode | None = None
) -> None:
    """Keep what a tool changed. `decode` makes a weight [N, K], in the type of its scales, of a module's tensors."""
    after = read_tensors(folder)
    own = {
        name: data.contiguous()
        for name, data in after.items()
        if name not in before or data.dtype != before[name].dtype or not torch.equal(data, before[name])
    }
    save_safetensors(FIXTURES / f"{case}.safetensors", own)
    block = read_config(folder)[1]["quantization_config"]
    block.get("meta", {}).pop("offload_to_disk_path", None)  # of the machine that the tool ran on
    removed = sorted(name for name in before if name not in after)
    packed = [name for name in removed if module_parts(own, name)]  # the others are lost
    record = {
        "made_by": {package: importlib.metadata.version(package) for package in packages},
        "call": call,
        "removed": removed,
        "config": block,
        "decoded": {} if decode is None else {name: sha256(decode(module_parts(own, name))) for name in packed},
    }
    (FIXTURES / f"{case}.json").write_text(json.dumps(record, indent=1) + "\n")


def module_parts(tensors: dict[str, Tensor], weight: str) -> dict[str, Tensor]:
    """The tensors of one module by their last names."""
    module = weight.removesuffix("weight")
    return {name.removeprefix(module): data for name, data in tensors.items() if name.startswith(module)}


def load(case: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the record of a fixture."""
    return load_safetensors(FIXTURES / f"{case}.safetensors"), json.loads((FIXTURES / f"{case}.json").read_text())


def restore(case: str, folder: Path, **settings: Any) -> Path:
    """The folder as the tool left it, but for files other than weights and config.json, and for other settings."""
    own, record = load(case)
    tensors = {name: data for name, data in source_tensors().items() if name not in record["removed"]} | own
    return write_checkpoint(folder, CONFIG | {"quantization_config": record["config"] | settings}, tensors, shards=1)
