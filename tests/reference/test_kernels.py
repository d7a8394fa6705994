"""`--kernels`: what is chosen where, and one message where Triton was demanded and cannot run."""

import sys

import pytest
import torch
from click.testing import CliRunner

from qconvert.cli import main
from qconvert.errors import UserError
from qconvert_reference.kernels import choose_kernels


def test_auto_takes_torch_on_a_cpu() -> None:
    assert choose_kernels("auto") == "torch"
    assert choose_kernels("torch", "cuda") == "torch"


def test_demanded_and_no_gpu() -> None:
    with pytest.raises(UserError, match="need a CUDA device, this is cpu"):
        choose_kernels("triton", torch.device("cpu"))
    with pytest.raises(UserError, match="unknown kernels"):
        choose_kernels("cuda")


def test_demanded_and_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "triton" or name.endswith(".numerics")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(UserError, match=r"qconvert\[kernels\]"):
        choose_kernels("triton")
    assert choose_kernels("auto", "cuda") == "torch"


def test_the_command_says_it_in_one_message(tmp_path) -> None:
    from qconvert_evals.small_model_files import small_model_path

    source = str(small_model_path())
    done = CliRunner().invoke(main, ["compare", "--bf16", source, "--fp8", source, "--kernels", "triton"])
    assert done.exit_code == 2 and "the Triton kernels cannot run here" in done.stderr
    assert "Traceback" not in done.stderr
