"""Benchmarks on another device than the CPU: nothing forgets to move. Scores may differ in the order of sums only."""

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from qconvert_evals.tasks.lane_run import run_lane
from qconvert_evals.tasks.loading import load_tasks
from qconvert_evals.tasks.settings import TaskSettings
from qconvert_reference.lane import Lane
from qconvert_reference.linear import Numerics
from tests.elsewhere import second_device
from tests.tasks.conftest import quiet, write_model

SETTINGS = TaskSettings(("small_math", "small_code", "small_context_32", "small_needle_128"), limit=2, max_gen_toks=3)


@pytest.fixture(autouse=True)
def _inference() -> None:
    """Tensors of the pretended device know no inference mode, which the folder's other tests run in."""


def test_every_score_is_that_of_the_cpu(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "bf16")
    lane = Lane.open("bf16", folder, Numerics())
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        here = run_lane(lane, load_tasks(SETTINGS), SETTINGS, quiet)
        loaded = load_tasks(SETTINGS)
        with second_device() as device:
            there = run_lane(Lane("bf16", lane.weights, lane.numerics, device), loaded, SETTINGS, quiet)
    assert {key: one.values for key, one in there.series.items()} == {
        key: one.values for key, one in here.series.items()
    }
