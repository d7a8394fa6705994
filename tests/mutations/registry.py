"""Every fault by name: where it is put, and what at least must flag it.

`verify` are names of checks of `qconvert verify --against`, without the manifest, whose hashes would find any change of
a file and prove nothing about the other checks; `manifest` are checks that need it. `compare` are names of
measurements whose row of the default budget fails; `refused` is a piece of the message with which a comparison will
not start. `blind` marks what nothing flags, and says why; it stands here so that nobody believes otherwise, and so that
the test fails on the day when something does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qconvert_reference.lane import Lane
from tests.mutations import engine_faults as engine
from tests.mutations import folder_faults as folder
from tests.mutations import task_faults as task
from tests.mutations.folder_faults import config_changed, tensors_changed

Base = Literal["fp8", "int4"]
KL, TOP, PPL = "logits.kl_mean", "logits.top1_agreement", "logits.ppl_ratio"
ERROR, TILE, KEPT = "weights.relative_error_max", "weights.block_error_max", "weights.kept_changed"
HIDDEN, UNLOADABLE = "hidden.relative_error", "weights.unloadable"
ROUTER, HEAD, LOST = "router.topk_overlap", "mtp.acceptance_greedy", "weights.missing_tensors"
REPLAY = "mtp.live_replay_gap"

ONE_SCALE = "e4m3 is a floating-point format: with inputs within seven powers of two one scale serves as well"
ROUNDED_LOGITS = "it changes one choice of expert in 150 beyond what FP8 in front of the router changes"


@dataclass(frozen=True)
class Fault:
    """One fault; exactly one of `files`, `run` and `tasks` is given."""

    name: str
    what: str
    base: Base = "fp8"
    files: Callable[[Path], None] | None = None
    run: Callable[[Lane], None] | None = None
    tasks: Callable[[Path], str] | None = None
    verify: tuple[str, ...] = ()
    manifest: tuple[str, ...] = ()
    compare: tuple[str, ...] = ()
    refused: str = ""
    blind: str = ""  # why nothing is expected to flag it
    live: bool = False  # shows in real decoding alone, which is slow: see `run`
    subtle: bool = False  # takes as much text as the health of a clean lane


def _files(what: str, change: Callable[[folder.Tensors], None], base: Base = "fp8", **flags: object) -> Fault:
    return Fault(change.__name__, what, base, files=tensors_changed(change), **flags)  # type: ignore[arg-type]


def _run(what: str, change: Callable[[Lane], None], *compare: str, blind: str = "", **how: bool) -> Fault:
    return Fault(change.__name__, what, run=change, compare=compare, blind=blind, **how)


def _tasks(what: str, change: Callable[[Path], str], refused: str) -> Fault:
    return Fault(change.__name__, what, tasks=change, refused=refused)


FAULTS = (
    _files("one scale of an expert doubled", folder.double_a_scale, verify=("bounds",), compare=(ERROR, TILE)),
    _files("the scales of a matrix lost, read as 1", folder.lose_the_scales, verify=("bounds",), compare=(ERROR, KL)),
    _files("scales stored as their inverse", folder.invert_the_scales, verify=("bounds",), compare=(ERROR, KL)),
    _files("scales transposed", folder.transpose_the_scales, verify=("bounds",), compare=(TILE,)),
    _files("a scale wrong by one step of BF16", folder.shift_a_scale_by_a_step, manifest=("bounds",)),
    _files("an expert's codes all zero", folder.zero_an_expert, verify=("bounds",), compare=(ERROR,)),
    _files("two experts exchanged", folder.exchange_two_experts, verify=("bounds",), compare=(ERROR,)),
    _files("gate and up projection exchanged", folder.exchange_gate_and_up, verify=("bounds",), compare=(ERROR,)),
    _files("rows of a matrix permuted", folder.permute_rows, verify=("bounds",), compare=(ERROR,)),
    _files("the router stored in FP8", folder.quantize_the_router, verify=("precision",), compare=(UNLOADABLE,)),
    _files("the router rounded to FP8, stored in BF16", folder.round_the_router, verify=("kept",), compare=(KEPT,)),
    _files("the shared expert's gate zeroed", folder.drop_the_shared_gate, verify=("kept",), compare=(KEPT,)),
    _files("1 added to a zero-centred norm", folder.fold_the_one_into_a_norm, verify=("kept",), compare=(KEPT, KL)),
    _files("halves of mtp.fc swapped", folder.swap_the_halves_of_fc, verify=("kept",), compare=(KEPT, HEAD)),
    _files("the MTP head left out", folder.lose_the_head, verify=("source",), compare=(LOST, HEAD)),
    _files("one tensor of the MTP head lost", folder.lose_a_tensor_of_the_head, verify=("names",), compare=(HEAD,)),
    _files("one bit of a norm flipped", folder.flip_a_bit, verify=("kept",), compare=(KEPT,)),
    _files("a NaN in lm_head", folder.put_a_nan, verify=("values",), compare=("logits.nonfinite_tokens",)),
    _files(
        "lm_head replaced by the embedding", folder.tie_the_head_to_the_embedding, verify=("kept",), compare=(KEPT, KL)
    ),
    Fault(
        "cut_the_shard_short", "the file cut short", files=folder.cut_the_shard_short, verify=("readable",),
        refused="truncated",
    ),
    Fault(
        "forget_the_head_in_the_exclusions", "MTP entries missing from the list of kept modules",
        files=config_changed(folder.forget_the_head_in_the_exclusions), verify=("skip-list",),
    ),
    Fault(
        "another_rope_theta", "rope_theta of config.json changed", files=config_changed(folder.another_rope_theta),
        manifest=("config",), refused="it differs in rope",
    ),
    Fault(
        "no_normalisation_of_the_top", "norm_topk_prob of config.json changed",
        files=config_changed(folder.no_normalisation_of_the_top), manifest=("config",),
        refused="it differs in norm_topk_prob",
    ),
    Fault(
        "change_the_tokenizer", "another tokenizer.json", files=folder.change_the_tokenizer, manifest=("copies",),
        refused="another tokenizer",
    ),
    _files("INT4: nibbles swapped", folder.swap_nibbles, "int4", verify=("bounds",), compare=(ERROR,)),
    _files("INT4: scales shifted by a group", folder.shift_groups, "int4", verify=("bounds",), compare=(ERROR,)),
    _files("INT4: scales transposed", folder.read_scales_transposed, "int4", verify=("bounds",), compare=(ERROR,)),
    _files("INT4: zero point off by one", folder.shift_zero_points, "int4", verify=("bounds",), compare=(ERROR,)),
    _run("activations cast to FP8 without scales", engine.drop_the_activation_scale, KL),
    _run("one activation scale for a whole batch", engine.one_activation_scale_for_all, blind=ONE_SCALE, subtle=True),
    _run("wrong RoPE theta in the engine", engine.wrong_rope_theta, TOP, subtle=True),
    _run("half of the rotated dimensions", engine.wrong_rotary_width, TOP, subtle=True),
    _run("norm_topk_prob off in the engine", engine.no_norm_topk_prob, HIDDEN),
    _run("one expert too few", engine.one_expert_too_few, ROUTER, subtle=True),
    _run("the shared expert's gate not applied", engine.drop_the_shared_experts_gate, KL),
    _run("the attention's gate not applied", engine.drop_the_attention_gate, HIDDEN, subtle=True),
    _run("w for 1 + w in the norm of q and k", engine.plain_instead_of_zero_centred_norm, KL, subtle=True),
    _run("keys of the delta rule not normalised", engine.no_l2_norm_of_keys, KL, subtle=True),
    _run("the router's logits rounded to FP8", engine.router_in_fp8, blind=ROUNDED_LOGITS, subtle=True),
    _run("the MTP head fed in front of the final norm", engine.feed_the_head_before_the_norm, HEAD, subtle=True),
    _run("the MTP head fed the token before", engine.feed_the_head_the_token_before, HEAD),
    _run(
        "refused drafts left in the delta rule's state", engine.keep_refused_drafts_in_the_delta_state, REPLAY,
        live=True,
    ),
    _tasks("tasks with another few-shot seed", task.other_few_shot_seed, "the prompt differs"),
    _tasks("a chat template missing", task.no_chat_template, "has no chat template"),
    _tasks("another chat template", task.other_chat_template, "another chat template"),
    _tasks("another end-of-text token", task.other_end_of_text, "with other tokens"),
)  # fmt: skip
