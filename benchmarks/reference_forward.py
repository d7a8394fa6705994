"""BF16 forward of the reference model beside transformers' on the same weights, tokens and machine.

    python benchmarks/reference_forward.py [--tokens 2048] [--rounds 5] [--threads N]

A random model of about 300 million parameters, 8 layers (6 Gated DeltaNet, 2 attention), 32 experts. Both compute the
logits of every token, in turn, after one warm-up each; medians and their ratio are printed as JSON. `logit_cosine` says
that both computed the same function up to BF16 rounding, which router flips magnify; in fp32 the tests demand 1e-4.

`share_of_best` holds our forward against what torch itself can do here, measured in turn with it: the multiply-adds of
the linear layers alone (attention, the delta rule and the rest are not counted) by the whole time, over the better of
torch's BF16 and fp32 rates for one large product. ONEDNN_MAX_CPU_ISA=AVX2, AVX512_CORE or AVX512_CORE_BF16 imitates
other processors, AVX2 with ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 beside it. QCONVERT_PRODUCTS=bf16 is
the one way that every machine took before the reference looked for the fastest.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

from qconvert.machine import processor, settle

settle()  # as the command line does it, before torch is imported

import torch  # noqa: E402
import transformers  # noqa: E402

from qconvert_reference import products  # noqa: E402
from qconvert_reference.lane import Lane  # noqa: E402
from qconvert_reference.linear import Numerics  # noqa: E402

CONFIG: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "linear_num_key_heads": 8,
    "linear_key_head_dim": 64,
    "linear_num_value_heads": 16,
    "linear_value_head_dim": 64,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 256,
    "shared_expert_intermediate_size": 256,
    "max_position_embeddings": 8192,
    "rope_theta": 10000000.0,
}


def timed(run: Callable[[], Any]) -> float:
    """Seconds of one call."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def linear_gflop(model: Any, tokens: int) -> float:
    """Multiply-adds of the linear layers, counted twice as usual, in billions; of the experts those that are chosen."""
    numbers = 0.0
    for name, parameter in model.named_parameters():
        if "experts" in name and parameter.ndim == 3:
            numbers += parameter.numel() * CONFIG["num_experts_per_tok"] / CONFIG["num_experts"]
        elif parameter.ndim == 2 and "embed_tokens" not in name:
            numbers += parameter.numel()
    return 2 * numbers * tokens / 1e9


def product_rates(tokens: int) -> dict[str, Callable[[], Any]]:
    """torch's own product of [tokens, 1024] and [1024, 3072] in both dtypes."""
    x, weight = torch.randn(tokens, 1024), torch.randn(3072, 1024)
    half = x.bfloat16(), weight.bfloat16()
    return {
        "torch fp32": lambda: torch.nn.functional.linear(x, weight),
        "torch bf16": lambda: torch.nn.functional.linear(*half),
    }


def random_model() -> Any:
    """Weights at the scale of a trained model; the default ones forget at once, which magnifies rounding."""
    model = transformers.Qwen3NextForCausalLM(transformers.Qwen3NextConfig(**CONFIG))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
            elif name.endswith("A_log"):
                parameter.fill_(-2.0)
    return model.bfloat16().eval()


def main() -> None:
    """Build both models from one folder, run them in turn, print the medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    theirs = random_model()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = Lane.open("bf16", folder, Numerics(products="auto")).model()
    tokens = torch.randint(0, CONFIG["vocab_size"], (1, options.tokens))
    with torch.no_grad():
        runs = {"ours": lambda: ours(tokens).logits, "transformers": lambda: theirs(tokens, use_cache=False).logits}
        cosine = torch.nn.functional.cosine_similarity(*(run().float().flatten() for run in runs.values()), dim=0)
        runs |= product_rates(options.tokens)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(options.rounds):
            for name, run in runs.items():
                seconds[name].append(timed(run))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rates = {name: 2 * options.tokens * 1024 * 3072 / 1e9 / medians[f"torch {name}"] for name in ("fp32", "bf16")}
    rate = linear_gflop(theirs, options.tokens) / medians["ours"]
    report = {
        "parameters": sum(parameter.numel() for parameter in theirs.parameters()),
        "tokens": options.tokens,
        "threads": options.threads,
        "seconds": {name: [round(value, 3) for value in values] for name, values in seconds.items()},
        "median_seconds": {name: round(value, 3) for name, value in medians.items()},
        "transformers_over_ours": round(medians["transformers"] / medians["ours"], 2),
        "share_of_best": round(rate / max(rates.values()), 3),
        "gflops": {name: round(value, 1) for name, value in {"ours": rate, **rates}.items()},
        "products": products.chosen(),
        "logit_cosine": round(float(cosine), 4),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "processor": processor(),
        },
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
