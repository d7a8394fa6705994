"""Every default kernel compiled for an H200, without a GPU: tensor cores used, nothing spilled, memory kept, and the
same code as the committed table says."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels need triton")

from qconvert_kernels.compiled import Case, Compiled, all_cases, complaints
from qconvert_kernels.compiled.table import parse, render

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "kernels/compiled/sm_90a.json"
CASES = {case.name: case for case in all_cases()}
RENEW = "python -m qconvert_kernels.compiled --write kernels/compiled/sm_90a.json"


def run(folder: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    """A process of its own: compiling and interpreting exclude each other, and the cache must be empty."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env |= {"TRITON_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": str(ROOT / "kernels")}
    return subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Compiled]:
    folder = tmp_path_factory.mktemp("compiled")
    done = run(folder, "-m", "qconvert_kernels.compiled", "--write", str(folder / "table.json"))
    assert (folder / "table.json").is_file(), done.stderr
    return parse((folder / "table.json").read_text())[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_no_complaints(name: str, made: dict[str, Compiled]) -> None:
    assert complaints(CASES[name], made[name]) == []


@pytest.mark.slow
def test_the_table_is_that_of_this_code(made: dict[str, Compiled]) -> None:
    import triton

    version, committed = parse(TABLE.read_text())
    assert version == triton.__version__, f"the table was made with triton {version}; renew it: {RENEW}"
    differing = {name for name in committed | made if committed.get(name) != made.get(name)}
    assert not differing, f"compiled code changed in {sorted(differing)}; if it may, renew the table: {RENEW}"


def test_names_are_unique_and_the_table_is_rendered() -> None:
    assert len(CASES) == len(list(all_cases()))
    text = TABLE.read_text()
    assert render(*parse(text)) == text


def test_complaints() -> None:
    """Every complaint, provoked."""
    case = Case("x", "m", "f", {}, factors="e4m3.e4m3", memory=1000, without=("STS",))
    good = Compiled(64, 0, 1000, {"wgmma.mma_async.sync.aligned.m64n16k32.f32.e4m3.e4m3": 4}, {})
    assert complaints(case, good) == []
    widened = {"mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32": 8}
    for made, text in [
        (replace(good, stack=8), "8 bytes of registers are spilled"),
        (replace(good, instructions={"STL": 2}), "spilled"),
        (replace(good, instructions={"STS": 1}), "expected no STS"),
        (replace(good, instructions={"inexact": 3}), "found 3 that are fused or less than IEEE"),
        (replace(good, shared_memory=1001), "1000 were reckoned with"),
        (replace(good, shared_memory=240_000), "232448 are there"),
        (replace(good, tensor_core=widened), "expected wgmma on e4m3.e4m3, found mma.sync"),
        (replace(good, tensor_core={}), "found no tensor-core instruction"),
    ]:
        assert any(text in complaint for complaint in complaints(case, made)), text


@pytest.mark.slow
def test_the_compiler_is_seen_to_fail(tmp_path: Path) -> None:
    """Real bad tilings give the complaints: eight tokens leave the fp8 tensor core, too large a tile spills. So does
    contraction, which the launch of weight quantization forbids."""
    script = """
from dataclasses import replace
from qconvert_kernels.compiled import all_cases, compile_case, complaints
case = next(case for case in all_cases() if case.name == "fp8_w8a8 few_tokens 16x64")
for tokens, weights in ((8, 64), (128, 128)):
    bad = replace(case, constants=case.constants | {"BLOCK_TOKENS": tokens, "BLOCK_WEIGHTS": weights}, memory=10**6)
    print(complaints(bad, compile_case(bad)))

import triton
compile = triton.compile
triton.compile = lambda *a, **k: compile(*a, **k | {"options": k["options"] | {"enable_fp_fusion": True}})
case = next(case for case in all_cases() if case.name == "quantize int4_g128 mse asymmetric")
print(complaints(case, compile_case(case)))
"""
    few, large, fused = run(tmp_path, "-c", script).stdout.splitlines()
    assert "found mma.sync" in few
    assert "spilled" in large
    assert "fused" in fused
