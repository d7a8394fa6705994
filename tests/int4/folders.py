"""What the tests of INT4 folders share: the tiny checkpoint's config, running the command line, damaging a folder."""

from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner, Result
from torch import Tensor

from qconvert.checkpoint import load_safetensors, save_safetensors
from qconvert.cli import main
from tests.tiny import tiny_config

CALIBRATED = ("imatrix", "gptq")
FORMATS = ["compressed-tensors", "gptq", "awq", "auto-round"]
EXPERT = "model.layers.1.mlp.experts.1.up_proj"
DOWN = "model.layers.1.mlp.experts.0.down_proj"
CONFIG = tiny_config(num_hidden_layers=2, layer_types=["linear_attention", "full_attention"], num_experts=2)

Tensors = dict[str, Tensor]


def run(*arguments: object) -> Result:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def damage(folder: Path, change: Callable[[Tensors], object]) -> None:
    path = folder / "model.safetensors"
    tensors = load_safetensors(path)
    change(tensors)
    save_safetensors(path, tensors)
