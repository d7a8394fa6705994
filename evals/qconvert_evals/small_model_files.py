"""Where the trained model and the held-out texts of the package lie: `qconvert_evals/small_model/` and
`qconvert_evals/texts/`.

Left out: packages that are imported from inside an archive. A checkpoint is read by path, so it has to be a folder.
"""

from importlib.resources import files
from pathlib import Path

DOMAINS = ("code", "prose", "math", "recall")


def small_model_path() -> Path:
    """The checkpoint folder: config.json, model.safetensors, tokenizer.json, model card."""
    return _inside("small_model")


def text_paths() -> dict[str, Path]:
    """One JSON Lines file of held-out documents for each domain."""
    return {domain: _inside("texts") / f"{domain}.jsonl" for domain in DOMAINS}


def _inside(name: str) -> Path:
    return Path(str(files("qconvert_evals").joinpath(name)))
