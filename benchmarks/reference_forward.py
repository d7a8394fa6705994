"""BF16 forward of the reference model beside transformers' on the same weights, tokens and machine.

    python benchmarks/reference_forward.py [--tokens 2048] [--rounds 5] [--threads N]

A random model of about 300 million parameters, 8 layers (6 Gated DeltaNet, 2 attention), 32 experts. Both compute the
logits of every token, in turn, after one warm-up each; medians and their ratio are printed as JSON. `logit_cosine` says
that both computed the same function up to BF16 rounding, which router flips magnify; in fp32 the tests demand 1e-4.
"""

import argparse
import json
import logging
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers

from qconvert_reference.lane import Lane
from qconvert_reference.linear import Numerics

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
        ours = Lane.open("bf16", folder, Numerics()).model()
    tokens = torch.randint(0, CONFIG["vocab_size"], (1, options.tokens))
    with torch.no_grad():
        runs = {"ours": lambda: ours(tokens).logits, "transformers": lambda: theirs(tokens, use_cache=False).logits}
        cosine = torch.nn.functional.cosine_similarity(*(run().float().flatten() for run in runs.values()), dim=0)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(options.rounds):
            for name, run in runs.items():
                seconds[name].append(timed(run))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    report = {
        "parameters": sum(parameter.numel() for parameter in theirs.parameters()),
        "tokens": options.tokens,
        "threads": options.threads,
        "seconds": {name: [round(value, 3) for value in values] for name, values in seconds.items()},
        "median_seconds": {name: round(value, 3) for name, value in medians.items()},
        "transformers_over_ours": round(medians["transformers"] / medians["ours"], 2),
        "logit_cosine": round(float(cosine), 4),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "machine": platform.machine(),
        },
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
