"""Two lanes on the same questions: joined by document number, and refused unless document, prompt and target are equal.

The join is pandas' (one row a document and metric, outer, one to one): what stands on one side only, or says something
else there, is the error.

Numbers of two lanes that were asked different things look like any others, and their difference would be called drift.
So a mismatch is an error, not a warning, and says what differs.

    document differs    another data set, or another order of it
    prompt differs      other examples (few-shot seed, number), another chat template, other settings
    target differs      another version of the task
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas

from qconvert.errors import UserError
from qconvert_evals.corpus import TOKENIZER
from qconvert_evals.tasks.chat import ChatTemplate, find_template
from qconvert_evals.tasks.series import Identity, Key, LaneRun
from qconvert_evals.tasks.tokenizing import TaskTokenizer
from qconvert_reference.lane import Lane

PLACE = [*Key._fields, "number"]
CAUSES = {
    "document": "the data sets of both lanes must hold the same documents in the same order",
    "prompt": "few-shot seed, number of examples, chat template and settings must be the same for both lanes",
    "target": "both lanes must run the same version of the task",
}


def check_joined(base: LaneRun, other: LaneRun) -> None:
    """UserError unless both lanes answered exactly the same questions."""
    if base.series.keys() != other.series.keys():
        raise UserError(
            f"lanes {base.lane} and {other.lane} ran different tasks or metrics",
            expected=_names(base),
            found=_names(other),
        )
    ours, theirs = _samples(base), _samples(other)
    joined = ours.merge(theirs, "outer", PLACE, suffixes=("", "_other"), validate="one_to_one", indicator=True)
    alone = joined[joined["_merge"] != "both"]
    if len(alone):
        of = {name: alone.iloc[0][name] for name in Key._fields}  # the first series that differs
        mine, yours, apart = (_count(table, of) for table in (ours, theirs, alone))
        raise UserError(
            f"lanes {base.lane} and {other.lane} answered different documents of task {of['task']}",
            expected=f"{mine} documents",
            found=f"{yours}, {apart} not in common",
        )
    for part, cause in CAUSES.items():
        unlike = joined[joined[part] != joined[f"{part}_other"]]
        if len(unlike):
            first = unlike.iloc[0]
            raise UserError(
                f"lanes {base.lane} and {other.lane} cannot be joined: the {part} differs",
                where=f"task {first['task']}, document {first['number']}",
                expected=f"{part} {first[part][:16]} of lane {base.lane}",
                found=first[f"{part}_other"][:16],
                fix=cause,
            )


def _samples(run: LaneRun) -> pandas.DataFrame:
    """What was asked about each document, for each metric."""
    rows = [
        (*key, number, *identity)
        for key, series in run.series.items()
        for number, identity in series.identities.items()
    ]
    return pandas.DataFrame(rows, columns=[*PLACE, *Identity._fields])


def _count(table: pandas.DataFrame, of: dict[str, str]) -> int:
    return int((table[list(of)] == pandas.Series(of)).all(axis=1).sum())


def _names(run: LaneRun) -> str:
    return ", ".join(sorted({f"{key.task}.{key.metric}" for key in run.series})) or "none"


def check_templates(lanes: Sequence[Lane]) -> dict[str, str]:
    """Every lane's chat template by lane; UserError naming the lane that lacks one or has another than the base."""
    found: dict[str, ChatTemplate] = {}
    for lane in lanes:
        folder = lane.weights.checkpoint.root
        template = find_template(folder)
        if template is None:
            have = f"; lane {lanes[0].name} has one" if found else ""
            raise UserError(
                f"lane {lane.name} has no chat template{have}",
                where=str(folder),
                expected="chat_template.jinja, or chat_template in tokenizer_config.json",
                fix="copy the file from the BF16 checkpoint, or run without --apply-chat-template",
            )
        found[lane.name] = template
    _same(found, lanes)
    return {name: template.source for name, template in found.items()}


def _same(found: Mapping[str, ChatTemplate], lanes: Sequence[Lane]) -> None:
    first = found[lanes[0].name]
    for name, template in found.items():
        if template.source != first.source:
            raise UserError(
                f"lane {name} has another chat template than lane {lanes[0].name}",
                where=template.where,
                expected=f"that of {first.where}",
                fix="copy the file from the BF16 checkpoint",
            )


def check_tokenizers(lanes: Sequence[Lane]) -> None:
    """UserError where a lane lacks a tokenizer, or has another one, or other tokens that begin texts or end outputs."""
    first = lanes[0].weights.checkpoint.root
    base = TaskTokenizer(first)
    for lane in lanes[1:]:
        folder = lane.weights.checkpoint.root
        own = TaskTokenizer(folder)
        if (folder / TOKENIZER).read_bytes() != (first / TOKENIZER).read_bytes():
            raise UserError(
                f"lane {lane.name} has another tokenizer than lane {lanes[0].name}",
                where=str(folder / TOKENIZER),
                expected=f"the bytes of {first / TOKENIZER}",
                fix="copy the file from the BF16 checkpoint",
            )
        if (own.prefix, own.ends) != (base.prefix, base.ends):
            raise UserError(
                f"lane {lane.name} begins texts or ends outputs with other tokens than lane {lanes[0].name}",
                where=f"{folder}: tokenizer_config.json, generation_config.json, config.json",
                expected=f"first {base.prefix}, last {sorted(base.ends)}",
                found=f"first {own.prefix}, last {sorted(own.ends)}",
                fix="copy these files' token settings from the BF16 checkpoint",
            )
