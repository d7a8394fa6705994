"""Train the small model that is shipped with the package.

    PYTHONPATH=.:reference:evals python evals/training/train.py --out FOLDER --minutes 45 --seed 0
    PYTHONPATH=.:reference:evals python evals/training/card.py  --out FOLDER

The clock rules: the learning rate follows the share of `--minutes` that is spent, so a run ends decayed on any machine.
FOLDER receives tokens, checkpoints and `log.jsonl`; started again, the run goes on where the last checkpoint was.
`export/` in it is the finished checkpoint folder, rewritten at every checkpoint with the weights of that moment rounded
to BF16. Compute is BF16, weights are fp32. The second command measures the export with the reference as it stands and
writes its model card.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from qconvert.checkpoint import write_checkpoint
from qconvert_reference import attention, gated_delta_net, layer, mtp
from qconvert_reference.models import qwen3_next
from qconvert_reference.moe import SparseMoe
from training.data import DOMAINS, build_corpus, save_held_out
from training.experts import run_experts
from training.measure import measure
from training.model import CONFIG, build, first_weights, losses
from training.optimizer import Optimizer, learning_rate
from training.tokenizer import END_ID, save_tokenizer, train_tokenizer

ROWS, LENGTH = 4, 1024
SHARES = {"code": 0.38, "prose": 0.27, "math": 0.17, "recall": 0.18}
TOKENIZER_CHARACTERS = {"code": 2_500_000, "prose": 1_500_000, "math": 300_000, "recall": 400_000}
CLIP = 1.0
LOG_EVERY, SAVE_SECONDS, MEASURE_DOCUMENTS = 20, 240, 5
Documents: TypeAlias = "list[tuple[str, list[int]]]"
# Functions of tensors alone, compiled for training: the reference makes a pass over memory for each operation.
COMPILED = (
    (gated_delta_net, "chunked_delta_rule"),
    (gated_delta_net, "causal_conv"),
    (gated_delta_net, "gated_rms_norm"),
    (gated_delta_net, "l2_norm"),
    (layer, "rms_norm"),
    (mtp, "rms_norm"),
    (attention, "rms_norm"),
    (qwen3_next, "rms_norm"),
)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=45.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prepare-only", action="store_true", help="make texts, tokenizer and tokens, then stop")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    prepare(arguments.out, arguments.seed)
    if not arguments.prepare_only:
        Run(arguments.out, arguments.minutes, arguments.seed).train()


def prepare(out: Path, seed: int) -> None:
    """Texts, tokenizer and token streams, unless an earlier start made them."""
    if (out / "data.pt").exists():
        return
    corpus = build_corpus(seed)
    save_held_out(corpus.held_out, out / "texts")
    tokenizer = train_tokenizer(_sample(corpus.train, seed))
    save_tokenizer(tokenizer, out / "export", CONFIG["max_position_embeddings"])
    streams = {domain: _stream(tokenizer, texts, seed) for domain, texts in corpus.train.items()}
    held_out = [(d.domain, tokenizer.encode(d.text).ids) for d in corpus.held_out]
    facts: dict[str, Any] = {**corpus.facts, "train_documents": {d: len(t) for d, t in corpus.train.items()}}
    facts["train_characters"] = {d: sum(map(len, t)) for d, t in corpus.train.items()}
    facts["train_tokens"] = {domain: len(stream) for domain, stream in streams.items()}
    torch.save({"streams": streams, "held_out": held_out, "facts": facts}, out / "data.pt")


def _sample(train: dict[str, list[str]], seed: int) -> list[str]:
    """A fixed number of characters of each domain, for the tokenizer."""
    texts: list[str] = []
    for domain, limit in TOKENIZER_CHARACTERS.items():
        taken = 0
        for text in Random(f"{seed} {domain}").sample(train[domain], len(train[domain])):
            if taken < limit:
                texts.append(text)
                taken += len(text)
    return texts


def _stream(tokenizer: Tokenizer, texts: list[str], seed: int) -> Tensor:
    """All documents of a domain in random order, an end-of-text token before each."""
    order = Random(seed).sample(texts, len(texts))
    ids = [[END_ID, *encoding.ids] for encoding in tokenizer.encode_batch(order)]
    return torch.cat([torch.tensor(part, dtype=torch.int16) for part in ids])


class Run:
    """One training run: model, optimizer, clock and log."""

    def __init__(self, out: Path, minutes: float, seed: int) -> None:
        self.out, self.minutes, self.seed = out, minutes, seed
        data = torch.load(out / "data.pt")
        self.streams: dict[str, Tensor] = data["streams"]
        self.held_out: Documents = data["held_out"]
        self.facts: dict[str, Any] = data["facts"]
        self.parameters = first_weights(CONFIG, seed)
        self.optimizer = Optimizer(self.parameters)
        self.generator = torch.Generator().manual_seed(seed)
        self.step, self.seconds = 0, 0.0
        if (out / "checkpoint.pt").exists():
            self._restore()

    def train(self) -> None:
        """Until the clock says so."""
        _compile()
        model = build(self.parameters)
        begin, saved = time.monotonic() - self.seconds, self.seconds
        while (progress := self.seconds / (60 * self.minutes)) < 1:
            loss, parts = losses(model, self._batch(), draft_steps=1 if progress < 0.5 else 2)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(self.parameters.values(), CLIP)
            share = learning_rate(progress, self.step)
            self.optimizer.step(share)
            self.step += 1
            self.seconds = time.monotonic() - begin
            if self.step % LOG_EVERY == 0:
                self._log(loss=loss.item(), norm=norm.item(), rate=share, **{k: v.item() for k, v in parts.items()})
            if self.seconds - saved > SAVE_SECONDS:
                saved = self.seconds
                self._save()
        self._save(final=True)

    def _batch(self) -> Tensor:
        """Rows [ROWS, LENGTH + 3], each from a domain drawn by its share, at a random place."""
        shares = torch.tensor([SHARES[domain] for domain in DOMAINS])
        rows = []
        for choice in torch.multinomial(shares, ROWS, replacement=True, generator=self.generator).tolist():
            stream = self.streams[DOMAINS[choice]]
            start = int(torch.randint(len(stream) - LENGTH - 3, (), generator=self.generator))
            rows.append(stream[start : start + LENGTH + 3])
        return torch.stack(rows).long()

    def _log(self, **numbers: Any) -> None:
        entry = {"step": self.step, "seconds": round(self.seconds, 1), "tokens": self.step * ROWS * LENGTH}
        entry |= {k: round(v, 4) if isinstance(v, float) else v for k, v in numbers.items()}
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def _save(self, *, final: bool = False) -> None:
        """Export, measure what was exported, and keep everything needed to go on."""
        rounded = {name: p.detach().bfloat16() for name, p in self.parameters.items()}
        write_checkpoint(self.out / "export", CONFIG, rounded)
        found = measure(build(rounded), self.held_out if final else self._few(), LENGTH)
        self._log(measured=found)
        state = {"step": self.step, "seconds": self.seconds, "generator": self.generator.get_state()}
        state |= {
            "parameters": {n: p.detach() for n, p in self.parameters.items()},
            "optimizer": self.optimizer.state(),
        }
        torch.save(state, self.out / "checkpoint.tmp")
        (self.out / "checkpoint.tmp").replace(self.out / "checkpoint.pt")

    def _few(self) -> Documents:
        """A few documents of each domain, for the log."""
        return [d for domain in DOMAINS for d in [x for x in self.held_out if x[0] == domain][:MEASURE_DOCUMENTS]]

    def _restore(self) -> None:
        state = torch.load(self.out / "checkpoint.pt")
        self.step, self.seconds = state["step"], state["seconds"]
        self.generator.set_state(state["generator"])
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state["parameters"][name])
        self.optimizer.restore(state["optimizer"])


def _compile() -> None:
    """Fuse the element-wise parts, batch the experts, and let fp32 products use the BF16 units of the processor."""
    torch._dynamo.config.recompile_limit = 64
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # type: ignore[attr-defined]
    for module, name in COMPILED:
        setattr(module, name, torch.compile(getattr(module, name), dynamic=False))
    SparseMoe._run_experts = run_experts  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    main()
