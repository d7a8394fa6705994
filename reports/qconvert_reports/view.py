"""The tables that HTML and Markdown both show, made once from the record as plain cells.

Every number stands with its 95% interval and beside the noise floor where the record has them. A number that is not
there is shown as a dash, and the section of missing measurements says why. Left out: any judgement; that is `drift`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from qconvert_evals.results import BASE_LANE, LaneIdentity, Measurement, Results, reference_of
from qconvert_reports.labels import FAMILIES, conditions, family, label, show_interval, show_slice, show_value

LOGITS = (  # in the order of llama.cpp's table
    "kl_mean kl_max kl_p99_9 kl_p99 kl_p95 kl_p90 kl_median kl_p10 kl_p5 kl_p1 kl_p0_1 kl_min "
    "top1_agreement top5_overlap sampled_overlap ppl ppl_ratio ln_ppl_ratio ppl_difference ln_ppl_correlation "
    "dp_mean dp_rms dp_max dp_p99_9 dp_p99 dp_p95 dp_p90 dp_p75 dp_median dp_p25 dp_p10 dp_p5 dp_p1 dp_p0_1 dp_min"
)
ROUTER = (
    ("same set", "router.set_match"),
    ("overlap", "router.topk_overlap"),
    ("same first", "router.top1_match"),
    ("weight on shared", "router.shared_weight"),
    ("KL", "router.kl"),
)
SUMMARY = (
    ("KL mean", "logits.kl_mean", ("all",)),
    ("KL 99.9%", "logits.kl_p99_9", ("all",)),
    ("same top token", "logits.top1_agreement", ("all",)),
    ("perplexity ratio", "logits.ppl_ratio", ("all",)),
    ("same experts", "router.set_match", ("feed=local", "all")),
    ("draft step 1, forced", "mtp.acceptance_greedy", ("position=1",)),
    ("tokens per step, forced", "mtp.accept_length", ("all",)),
    ("tokens per step, live", "mtp.accept_length_live", ("all",)),
    ("weight error", "weights.relative_error", ("all",)),
)

TIES = "router.tie_rate"
NOISE = "noise floor"


@dataclass(frozen=True)
class Cell:
    """One number or word of a table."""

    text: str
    interval: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells under column heads; the first cell of a row names it."""

    title: str
    columns: tuple[str, ...]
    rows: list[list[Cell]] = field(default_factory=list)


class Index:
    """Measurements by (name, lane, slice), and the lanes by role."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.by_key = {(m.name, m.lane, m.slice): m for m in results.measurements}
        self.base = next((one.name for one in results.lanes if one.role == "base"), "bf16")
        self.noise = [one.name for one in results.lanes if one.role == "noise"]
        self.candidates = [one.name for one in results.lanes if one.role == "candidate"]

    def cell(self, name: str, lane: str, slice_: str) -> Cell:
        """The number with its interval; a dash where there is none."""
        return as_cell(self.by_key.get((name, lane, slice_)))

    def first(self, name: str, lane: str, slices: Sequence[str]) -> Measurement | None:
        """The measurement in the first of these slices that has it."""
        found = (self.by_key.get((name, lane, at)) for at in slices)
        return next((one for one in found if one is not None and one.value is not None), None)

    def slices(self, name: str, *keys: str) -> list[str]:
        """Slices of a measurement that have exactly these keys, in the record's order."""
        wanted = set(keys)
        found = (at for one, _, at in self.by_key if one == name)
        return [at for at in dict.fromkeys(found) if conditions(at).keys() == wanted]


def lane_words(lane: str, noise: Sequence[str]) -> str:
    """A lane by its name; a noise lane by what it is, and of whom where that is not BF16."""
    if lane not in noise:
        return lane
    return NOISE if reference_of(lane) == BASE_LANE else f"{NOISE}, {reference_of(lane)}"


def as_cell(one: Measurement | None) -> Cell:
    """A measurement as a cell."""
    return Cell("–") if one is None else Cell(show_value(one.value, one.unit), show_interval(one))


def summary(index: Index) -> Table:
    """One line a lane."""
    shown = [row for row in SUMMARY if any(index.first(row[1], lane, row[2]) for lane in index.candidates)]
    table = Table("Lanes at a glance", ("lane", *(head for head, _, _ in shown)))
    for lane in (one.name for one in index.results.lanes):
        table.rows.append([Cell(lane), *(as_cell(index.first(name, lane, at)) for _, name, at in shown)])
    return table


def logits_table(index: Index) -> Table:
    """Every statistic over all tokens, a column a lane."""
    known = [f"logits.{name}" for name in LOGITS.split()]
    named = dict.fromkeys(name for name, _, at in index.by_key if family(name) == "logits" and at == "all")
    names = [name for name in known if name in named] + [name for name in named if name not in known]
    return _matrix(index, "All statistics", [(label(name), name, "all") for name in names])


def domain_table(index: Index) -> Table:
    """The numbers that move first, a line for each domain and lane."""
    columns = (
        ("KL mean", "logits.kl_mean", "{}"),
        ("KL 99%", "logits.kl_p99", "{}"),
        ("same top token", "logits.top1_agreement", "{}"),
        ("perplexity ratio", "logits.ppl_ratio", "{}"),
        ("same experts", "router.set_match", "{},feed=local"),
        ("draft step 1, forced", "mtp.acceptance_greedy", "position=1,{}"),
    )
    return _by_lane(index, "By domain", index.slices("logits.kl_mean", "domain"), columns)


def position_table(index: Index) -> Table:
    """How the numbers change along the context; no rows where all text is shorter than the first stretch."""
    columns = (
        ("KL mean", "logits.kl_mean", "{}"),
        ("same top token", "logits.top1_agreement", "{}"),
        ("perplexity ratio", "logits.ppl_ratio", "{}"),
        ("same experts", "router.set_match", "{},feed=local"),
        ("draft step 1, forced", "mtp.acceptance_greedy", "position=1,{}"),
        ("tokens per step, forced", "mtp.accept_length", "{}"),
    )
    return _by_lane(index, "By position in the context", index.slices("logits.kl_mean", "at"), columns)


def layer_tables(index: Index) -> list[Table]:
    """Every layer of both feeds, for readers with room; what is read first is drawn over the layers."""
    columns = tuple((head, name, "{}") for head, name in ROUTER[:3])
    slices = index.slices("router.set_match", "layer", "feed")
    feeds = dict.fromkeys(conditions(at)["feed"] for at in slices)
    return [
        _by_lane(
            index, f"By layer, {show_slice(f'feed={feed}')}", [at for at in slices if f"feed={feed}" in at], columns
        )
        for feed in feeds
    ]


def router_tables(index: Index) -> list[Table]:
    """Router measurements over all layers, a line for each feed and lane: what is read first, the rest, and how often
    logits tie, which BF16 has alone too."""
    names = list(dict.fromkeys(name for name, _, _ in index.by_key if family(name) == "router"))
    slices = list(dict.fromkeys(at for name in names for at in index.slices(name, "feed")))
    first = tuple((head, name, "{}") for head, name in ROUTER if name in names)
    placed = {*(name for _, name in ROUTER), TIES}
    rest = tuple((label(name), name, "{}") for name in names if name not in placed)
    return [
        _by_lane(index, "All layers together", slices, first),
        _by_lane(index, "Further numbers", slices, rest),
        _by_lane(index, label(TIES), slices, (("share of tokens", TIES, "{}"),), with_base=True),
    ]


def _by_lane(
    index: Index,
    title: str,
    slices: Sequence[str],
    columns: Sequence[tuple[str, str, str]],
    with_base: bool = False,
) -> Table:
    """A line for each slice and lane, a column for each measurement; its third part holds the place of the slice."""
    lanes = [*([index.base] if with_base else []), *index.candidates, *index.noise]
    keys = {(name, place, at): _placed(place, at) for _, name, place in columns for at in slices}
    held = [
        (head, name, place)
        for head, name, place in columns
        if any((name, lane, keys[name, place, at]) in index.by_key for lane in lanes for at in slices)
    ]
    table = Table(title, ("", "lane", *(head for head, _, _ in held)))
    for at in slices if held else ():
        for number, lane in enumerate(lanes):
            words = show_slice(at) if number == 0 else ""
            cells = [index.cell(name, lane, keys[name, place, at]) for _, name, place in held]
            table.rows.append([Cell(words), Cell(lane_words(lane, index.noise)), *cells])
    return table


def _placed(place: str, slice_: str) -> str:
    """`position=1,{}` with `domain=code` is `position=1,domain=code`, with `all` just `position=1`."""
    parts = [part for part in place.format(slice_).split(",") if part != "all"]
    return ",".join(parts) or "all"


def acceptance_tables(index: Index) -> list[Table]:
    """Acceptance teacher-forced on the documents' text, greedy and as a sampling server would print it; then in real
    decoding, beside the same text teacher-forced."""
    greedy, drawn, overlap, live = (
        f"mtp.acceptance_{kind}" for kind in ("greedy", "sampled_greedy_drafts", "sampled", "live")
    )
    steps = [at.removeprefix("position=") for at in index.slices(greedy, "position")]
    domains = ["all", *index.slices("mtp.accept_length", "domain")]

    def each(head: str, name: str, more: str = "") -> list[tuple[str, str, str]]:
        return [(f"{head} {step}", name, f"position={step},{{}}{more}") for step in steps]

    text = [*each("draft", greedy), ("tokens per step", "mtp.accept_length", "{}")]
    sampled = [
        *each("greedy draft", drawn),
        ("tokens per step", "mtp.accept_length_sampled_greedy_drafts", "{}"),
        *each("sampled draft", overlap),
        ("tokens per step, sampled drafts", "mtp.accept_length_sampled", "{}"),
    ]
    real = [
        *each("live", live),
        *each("forced", greedy, ",context=generated"),
        ("tokens per step, live", "mtp.accept_length_live", "{}"),
        ("forced", "mtp.accept_length", "{},context=generated"),
        ("draft 1, live − replayed", "mtp.live_replay_gap", "position=1,{}"),
        ("prompts replayed exactly", "mtp.live_replay_exact", "{}"),
    ]
    return [
        _by_lane(index, "Greedy, teacher-forced on the documents' text", domains, text, with_base=True),
        _by_lane(index, f"Sampling{_how(index)}, teacher-forced on the same text", domains, sampled, with_base=True),
        _by_lane(index, "In real decoding, beside the same text teacher-forced", ["all"], real, with_base=True),
    ]


def _how(index: Index) -> str:
    """What greedy drafts are accepted under, as far as the record says so."""
    sampling = index.results.tool.get("sampling")
    if not sampling:
        return ""
    words = [f"temperature {sampling['temperature']:g}"]
    words += [f"top-k {sampling['top_k']}"] if sampling["top_k"] > 0 else []
    words += [f"top-p {sampling['top_p']:g}"] if sampling["top_p"] < 1 else []
    unread = f"; not applied: {', '.join(sampling['unread'])}" if sampling["unread"] else ""
    return f" (greedy drafts at {', '.join(words)}{unread})"


def weights_table(index: Index) -> Table:
    """What quantization did to the weights themselves."""
    names = dict.fromkeys(name for name, _, at in index.by_key if family(name) in ("weights", "model") and at == "all")
    return _matrix(index, "All tensors", [(label(name), name, "all") for name in names])


def other_tables(index: Index) -> list[Table]:
    """Families of measurements that have no section of their own, over everything."""
    placed = {"logits", "router", "mtp", "weights", "model", "bench"}
    names = dict.fromkeys(name for name, _, at in index.by_key if at == "all" and family(name) not in placed)
    families = dict.fromkeys(family(name) for name in names)
    return [
        _matrix(
            index,
            FAMILIES.get(one, one),
            [(label(name), name, "all") for name in names if family(name) == one],
        )
        for one in families
    ]


def _matrix(index: Index, title: str, rows: list[tuple[str, str, str]]) -> Table:
    """A row a measurement, a column a lane; noise lanes are columns "noise floor"."""
    held = {lane for _, name, at in rows for lane in (index.base, *index.noise) if (name, lane, at) in index.by_key}
    base = [index.base] if index.base in held else []
    lanes = [*base, *index.candidates, *(lane for lane in index.noise if lane in held)]
    table = Table(title, ("", *(lane_words(lane, index.noise) for lane in lanes)))
    for words, name, at in rows:
        table.rows.append([Cell(words), *(index.cell(name, lane, at) for lane in lanes)])
    return table


def identity(lane: LaneIdentity) -> list[tuple[str, str]]:
    """What a lane is, as (what, value) lines."""
    lines = [("path", lane.path), ("revision", lane.revision or "–")]
    for words, pairs in (("recipe", lane.recipe), ("numerics", lane.numerics), ("versions", lane.versions)):
        if pairs:
            lines.append((words, ", ".join(f"{key} {value}" for key, value in pairs.items())))
    lines += [(f"sha256 {name}", digest) for name, digest in sorted(lane.files.items())]
    return lines
