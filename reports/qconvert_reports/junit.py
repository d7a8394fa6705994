"""junit.xml: one test case for each budget row, lane and slice, as CI systems read it.

    <testsuites> <testsuite name="fp8" tests failures skipped>
      <testcase classname="qconvert.fp8" name="logits.kl_mean (all) ≤ 0.02">
        <properties> rule, status, decided, n, needed_n, value, ci_low, ci_high, noise_floor </properties>
        <failure message="the gate line"/>   or   <skipped message="the gate line"/>   or nothing: pass, improved

Inconclusive is `skipped`, never a pass; so is a row that does not apply. Characters that XML 1.0 cannot hold are
replaced, because names come from files. Left out: times; nothing here ran a test.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

from qconvert_evals.results import Measurement, Results, VerdictRow
from qconvert_reports.baseline import RULE, Against, change_row
from qconvert_reports.verdict_view import gate_line

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render_junit(results: Results, against: Against | None = None) -> str:
    """The file as text; a record without a verdict gives one skipped case, so that it can never look green."""
    rows = results.verdict.rows if results.verdict is not None else []
    if not rows:
        rows = [
            VerdictRow("inconclusive", "-", "-", "-", "-", None, (None, None), "", "the record has not been judged")
        ]
    by_key = {(m.name, m.lane, m.slice): m for m in results.measurements}
    root = ET.Element("testsuites", name="qconvert drift")
    for lane in dict.fromkeys(row.lane for row in rows):
        mine = [row for row in rows if row.lane == lane]
        failures, skipped = (sum(_kind(row) == kind for row in mine) for kind in ("failure", "skipped"))
        suite = ET.SubElement(root, "testsuite", name=_text(lane), timestamp=_text(results.created), errors="0")
        for key, number in (("tests", len(mine)), ("failures", failures), ("skipped", skipped)):
            suite.set(key, str(number))
        for row in mine:
            _case(suite, row, by_key.get((row.measurement, row.lane, row.slice)))
    if against is not None and not any(row.rule == RULE for row in rows):
        _informative(root, against, results.created)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _case(suite: ET.Element, row: VerdictRow, measurement: Measurement | None) -> None:
    name = f"{row.measurement} ({row.slice}) {row.bound}".strip()
    case = ET.SubElement(suite, "testcase", classname=_text(f"qconvert.{row.lane}"), name=_text(name))
    known: dict[str, str | float | None] = {"rule": row.rule, "status": row.status, "decided": row.decided or None}
    known |= {"value": row.value, "ci_low": row.ci[0], "ci_high": row.ci[1], "n": row.n, "needed_n": row.needed_n}
    known["margin"] = row.margin
    if measurement is not None:
        known |= {"n": measurement.n if row.n is None else row.n, "noise_floor": measurement.noise_floor}
    properties = ET.SubElement(case, "properties")
    for key, value in known.items():
        if value is not None:
            ET.SubElement(properties, "property", name=key, value=_text(str(value)))
    kind = _kind(row)
    if kind:
        ET.SubElement(case, kind, message=_text(gate_line(row)))


def _informative(root: ET.Element, against: Against, created: str) -> None:
    """Changes for the worse that do not gate: skipped, so that they are seen and never counted as passes."""
    worse = [replace(change_row(one, against), status=f"changed ({one.kind})") for one in against.worse]
    suite = ET.SubElement(root, "testsuite", name="baseline", timestamp=_text(created), errors="0", failures="0")
    suite.set("tests", str(len(worse)))
    suite.set("skipped", str(len(worse)))
    for row in worse:
        _case(suite, row, None)


def _kind(row: VerdictRow) -> str:
    return {"pass": "", "improved": "", "fail": "failure"}.get(row.status, "skipped")


def _text(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
