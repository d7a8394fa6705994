"""The latency page: decoding with and without the head from the measurements' own formula, and models without one."""

from __future__ import annotations

import pytest

from qconvert_evals.results import Measurement
from qconvert_reports.latency_page import Timed, plots, render_latency


def measurements(head: bool = True) -> list[Measurement]:
    found = []
    for number, lane in enumerate(("bf16", "fp8<b>")):
        for length in (128, 2048):
            at = f"context={length}"
            values = {"prefill": length / 1e3, "decode": 0.02 * (1 + number), "verify": 0.03, "cache_bytes": 1e6}
            values |= {"draft": 0.002, "tokens_per_step": 2.4, "mtp_speed_up": 1.25} if head else {}
            found += [Measurement(f"latency.{name}", lane, at, value, "s", 3) for name, value in values.items()]
            if not head:
                found.append(Measurement("latency.mtp_speed_up", lane, at, None, "ratio", 0))
        found.append(Measurement("latency.weight_bytes", lane, "all", 5e6, "bytes", 9))
    return found


def test_decoding_with_the_head_is_the_speed_up_times_decoding_without() -> None:
    timed = Timed(measurements())
    assert timed.lanes == ["bf16", "fp8<b>"] and timed.lengths == [128, 2048]
    assert timed.decoding("bf16", False) == [(128, pytest.approx(50)), (2048, pytest.approx(50))]
    assert timed.decoding("fp8<b>", True) == [(128, pytest.approx(31.25)), (2048, pytest.approx(31.25))]


def test_page_shows_every_lane_and_runs_nothing() -> None:
    text = render_latency(measurements(), {"command": "<script>x</script>"})
    assert "<script" not in text and "fp8&lt;b&gt;" in text
    assert text.count("<img") == 5


def test_a_model_without_head_has_no_dashed_lines_and_no_speed_up() -> None:
    timed = Timed(measurements(head=False))
    assert [one.title for one in plots(timed)] == ["Prefill", "Decoding", "Cache"]
    assert timed.decoding("bf16", True) == []
    assert "–" in render_latency(measurements(head=False), {})
