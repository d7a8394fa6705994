"""What the dotted measurement names mean to a reader, and how a number of each unit is written.

Left out on purpose: a closed list. A measurement that is not named here is shown under its dotted name, so a new metric
needs no edit in this room.
"""

from __future__ import annotations

from qconvert_evals.results import Measurement
from qconvert_evals.slices import conditions as conditions

# Dotted name -> (what a reader calls it, which way is better: "lower", "higher" or "" where neither is).
LABELS: dict[str, tuple[str, str]] = {
    "logits.kl_mean": ("KL divergence from BF16, mean", "lower"),
    "logits.top1_agreement": ("Same most likely token", "higher"),
    "logits.top5_overlap": ("Overlap of the five most likely tokens", "higher"),
    "logits.ppl": ("Perplexity", "lower"),
    "logits.ppl_ratio": ("Perplexity, candidate / BF16", "lower"),
    "logits.ln_ppl_ratio": ("ln(perplexity ratio)", "lower"),
    "logits.ppl_difference": ("Perplexity, candidate − BF16", "lower"),
    "logits.ln_ppl_correlation": ("Correlation of per-token ln perplexity", "higher"),
    "logits.sampled_overlap": ("Overlap of the distributions, sum of min(p, q)", "higher"),
    "logits.nonfinite_tokens": ("Tokens without finite probabilities", "lower"),
    "logits.dp_mean": ("Change of the true token's probability, mean", ""),
    "logits.dp_rms": ("Change of the true token's probability, RMS", "lower"),
    "hidden.relative_error": ("Relative error of the hidden states", "lower"),
    "router.set_match": ("Same set of experts", "higher"),
    "router.topk_overlap": ("Overlap of the chosen experts", "higher"),
    "router.jaccard": ("Jaccard index of the chosen experts", "higher"),
    "router.top1_match": ("Same first expert", "higher"),
    "router.kl": ("KL divergence of the router", "lower"),
    "router.shared_weight": ("Routing weight on experts that both chose", "higher"),
    "router.margin_flipped": ("Router margin where the set changed", ""),
    "router.margin_kept": ("Router margin where it did not", ""),
    "router.tie_rate": ("Ties between the last expert chosen and the next", ""),
    "router.load_distance": ("Distance of the expert load histograms", "lower"),
    "mtp.acceptance_greedy": ("Draft acceptance, greedy, teacher-forced", "higher"),
    "mtp.acceptance_sampled_greedy_drafts": ("Draft acceptance, sampling with greedy drafts, teacher-forced", "higher"),
    "mtp.acceptance_sampled": ("Draft acceptance, sampling with sampled drafts, teacher-forced", "higher"),
    "mtp.accept_length": ("Tokens per step, greedy, teacher-forced", "higher"),
    "mtp.acceptance_live": ("Draft acceptance, greedy, live decoding", "higher"),
    "mtp.accept_length_live": ("Tokens per step, greedy, live decoding", "higher"),
    "mtp.live_replay_gap": ("Drafts accepted live − by the loop's own text", ""),
    "mtp.live_replay_gap_length": ("Tokens per step, live − by the loop's own text", ""),
    "mtp.live_replay_exact": ("Prompts whose live decoding its own text replays exactly", "higher"),
    "weights.relative_error": ("Weight error, all quantized weights", "lower"),
    "weights.relative_error_max": ("Weight error, worst tensor", "lower"),
    "mtp.acceptance_conditional": ("Draft acceptance given the step before, greedy, teacher-forced", "higher"),
    "mtp.accept_length_sampled_greedy_drafts": (
        "Tokens per step, sampling with greedy drafts, teacher-forced",
        "higher",
    ),
    "mtp.accept_length_sampled": ("Tokens per step, sampling with sampled drafts, teacher-forced", "higher"),
    "weights.block_error_max": ("Weight error, worst block of one scale", "lower"),
    "weights.max_abs": ("Weight error, largest single one", "lower"),
    "weights.quantized_tensors": ("Quantized tensors", ""),
    "weights.kept_changed": ("Kept tensors that changed", "lower"),
    "weights.missing_tensors": ("Tensors that are missing", "lower"),
    "weights.unloadable": ("Quantized tensors that no engine loads", "lower"),
    "weights.extra_tensors": ("Tensors that BF16 does not have", "lower"),
    "model.bytes": ("Bytes of the checkpoint's tensors", "lower"),
    "model.parameters": ("Parameters", ""),
    "weights.sqnr_db": ("Signal to quantization noise", "higher"),
}
# Names of quantiles are made from their stem: logits.kl_p99_9, logits.dp_min, ...
STEMS = {"logits.kl": "KL", "logits.dp": "Δp of the true token"}
FAMILIES = {
    "logits": "Logits",
    "router": "Router",
    "hidden": "Hidden states",
    "mtp": "Multi-token prediction",
    "weights": "Weights",
    "model": "Model",
    "bench": "Benchmarks",
    "latency": "Latency",
}


def label(name: str) -> str:
    """`logits.kl_mean` -> "KL divergence from BF16, mean"; an unknown name stays as it is."""
    if name.endswith("_difference") and name.removesuffix("_difference") in LABELS:
        return f"{label(name.removesuffix('_difference'))}: candidate − BF16"
    if name in LABELS:
        return LABELS[name][0]
    stem, _, level = name.partition("_")
    if stem not in STEMS:
        return name
    words = {"max": "maximum", "min": "minimum", "median": "median"}
    return f"{STEMS[stem]}, {words.get(level) or level.removeprefix('p').replace('_', '.') + '% quantile'}"


def family(name: str) -> str:
    """`logits.kl_mean` -> "logits"."""
    return name.partition(".")[0]


def show_value(value: float | None, unit: str) -> str:
    """A number as people read it: fractions in percent, bytes in GB, else four significant digits; "–" for none."""
    if value is None:
        return "–"
    if unit == "fraction":
        return f"{100 * value:.2f}%"
    if unit == "%":
        return f"{value:.2f}%"
    if unit == "bytes":
        return f"{value / 1e9:.3f} GB" if abs(value) >= 1e8 else f"{value / 1e6:.2f} MB"
    if unit in ("count", "parameters"):
        return f"{value:,.0f}"
    return f"{_digits(value)} {unit}" if unit in ("dB", "pp") else _digits(value)


def show_difference(value: float | None, unit: str) -> str:
    """A difference, with its sign; one of fractions is in percentage points."""
    if value is None:
        return "–"
    if unit == "fraction":
        return f"{100 * value:+.2f} pp"
    return ("+" if value > 0 else "") + show_value(value, unit)


def _digits(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) < 1e-3 or abs(value) >= 1e6:
        return f"{value:.2e}"
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def show_interval(one: Measurement) -> str:
    """The 95% interval in brackets, or nothing where there is none or no width to it."""
    if one.ci_low is None or one.ci_high is None or one.ci_low == one.ci_high:
        return ""
    return f"[{show_value(one.ci_low, one.unit)}, {show_value(one.ci_high, one.unit)}]"


def show_slice(slice_: str) -> str:
    """`position=1,domain=code` -> "draft step 1, code"; `layer=7,feed=local` -> "layer 7, BF16 input"."""
    return ", ".join(_condition(*part.partition("=")[::2]) for part in slice_.split(","))


def _condition(key: str, value: str) -> str:
    if key == "feed":
        return {"local": "BF16 input", "free": "own input"}.get(value, value)
    if key in ("domain", "kind", "context"):
        return value
    name = {"position": "draft step", "at": "tokens", "all": "all", "": ""}.get(key, key)
    return f"{name} {value}".strip()


def sample_noun(name: str) -> str:
    """What the n of a measurement counts: "tokens", "drafts", "documents"."""
    tensors = dict.fromkeys(("weights", "model"), "tensors")
    nouns = {"mtp": "drafts", "hidden": "documents", "bench": "documents", "latency": "rounds", **tensors}
    return nouns.get(family(name), "tokens")
