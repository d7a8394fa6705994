"""Configurations: every committed file is possible, the nearest entry is found, the impossible is refused."""

import json
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path

import pytest

from qconvert_kernels import configurations
from qconvert_kernels.configurations import Entry, choose, nearest, parse
from qconvert_kernels.tiling import STEP_BYTES, Tiling, problems, shared_memory

GOOD = Tiling("few_tokens", 16, 64, 1, 4, 4)
FOLDER = files("qconvert_kernels.configurations")
FILES = sorted(file.name for file in FOLDER.iterdir() if file.name.endswith(".json"))


@pytest.mark.parametrize("name", [name for name in FILES if name.split(".")[0] in STEP_BYTES])
def test_committed_files_are_possible(name: str) -> None:
    text = (FOLDER / name).read_text()
    assert parse(name.split(".")[0], text, name)
    assert "measured" in json.loads(text)


@pytest.mark.parametrize("kernel", STEP_BYTES)
def test_every_kernel_has_a_default_for_any_size(kernel: str) -> None:
    for m in (1, 16, 17, 1000, 10**7):
        for n, k in [(1, 1), (512, 2048), (151936, 2048), (10**6, 10**6)]:
            assert problems(kernel, choose(kernel, "no such device", m, n, k)) == []


def test_nearest_shape_first_then_enough_tokens() -> None:
    every = tuple(
        Entry(m, n, k, replace(GOOD, num_stages=stages))
        for stages, (m, n, k) in enumerate([(64, 512, 2048), (16, 512, 2048), (16, 4096, 2048), (32, 512, 512)], 1)
    )
    stages = {
        (1, 512, 2048): 2,
        (16, 600, 2000): 2,
        (17, 512, 2048): 1,
        (9999, 512, 2048): 1,  # more tokens than any entry: the largest
        (64, 4000, 2048): 3,  # the shape decides before the tokens
        (1, 512, 600): 4,
    }
    for (m, n, k), want in stages.items():
        assert nearest(every, m, n, k).num_stages == want, (m, n, k)


def test_a_device_of_its_own_is_preferred(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for device, stages in [("default", 4), ("NVIDIA_H200", 5)]:
        entry = {"M": 16, "N": 512, "K": 2048} | asdict(replace(GOOD, num_stages=stages))
        (tmp_path / f"fp8_w8a8.{device}.json").write_text(json.dumps({"measured": None, "entries": [entry]}))
    monkeypatch.setattr(configurations, "files", lambda _: tmp_path)
    configurations.entries.cache_clear()
    try:
        assert choose("fp8_w8a8", "NVIDIA H200", 1, 512, 2048).num_stages == 5
        assert choose("fp8_w8a8", "NVIDIA H200 NVL", 1, 512, 2048).num_stages == 4
    finally:
        configurations.entries.cache_clear()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"path": "elsewhere"}, "unknown path"),
        ({"block_tokens": 8}, "block_tokens 8"),
        ({"block_weights": 256}, "a divisor of the scale's block"),
        ({"num_warps": 2}, "whole warp groups"),
        ({"num_stages": 0}, "1 or more"),
        ({"num_stages": 40}, "bytes of shared memory"),
        ({"path": "many_tokens", "block_tokens": 64, "splits": 2}, "does not split K"),
    ],
)
def test_impossible_tilings_are_refused(change: dict[str, object], text: str) -> None:
    bad = replace(GOOD, **change)  # type: ignore[arg-type]
    assert any(text in problem for problem in problems("fp8_w8a8", bad))
    entry = {"M": 1, "N": 1, "K": 1} | asdict(bad)
    with pytest.raises(ValueError, match=r"here\.json"):
        parse("fp8_w8a8", json.dumps({"entries": [entry]}), "here.json")


def test_unknown_kernels_and_wrong_paths() -> None:
    assert "unknown kernel 'x'" in problems("x", GOOD)[0]
    assert problems("int4_w4a16", Tiling("many_tokens", 64, 64, 1, 4, 4))


def test_memory_counts_stages_and_the_result() -> None:
    few = Tiling("few_tokens", 16, 64, 1, 4, 4)
    assert shared_memory("fp8_w8a8", few) == 4 * (64 + 16) * 128 + 1024
    assert shared_memory("int4_w4a16", few) == 4 * (64 * 64 + 16 * 256) + 1024
    assert shared_memory("fp8_w8a8", Tiling("many_tokens", 128, 128, 1, 8, 5)) == 5 * 256 * 128 + 128 * 128 * 4 + 1024
