"""Where a checkpoint comes from: a local folder, or a model of the Hugging Face hub.

A hub id is `org/name` or `org/name@revision`. Only safetensors, JSON and plain text are fetched: never pickles, which
can run code. A folder of the hub's local cache tells its origin by its own path, so that a manifest can name model
and revision.
"""

from collections.abc import Sequence
from pathlib import Path

from qconvert.errors import UserError

PATTERNS = [
    "*.safetensors",
    "*.json",
    "*.jsonl",
    "*.txt",
    "*.jinja",
    "*.model",
    "*.tiktoken",
    "*.md",
    "LICENSE*",
    "NOTICE*",
]


def resolve_source(source: str, patterns: Sequence[str] = PATTERNS) -> Path:
    """The local folder of a checkpoint, fetched from the hub if the name is not a folder here."""
    local = Path(source).expanduser()
    if local.exists():
        return local
    name, _, revision = source.partition("@")
    parts = name.split("/")
    if len(parts) != 2 or not all(parts) or any(part.startswith(".") for part in parts):
        raise UserError(
            f"no such folder: {source}", fix="give the folder of a checkpoint, or a hub id org/name[@revision]"
        )
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=list(patterns)))
    except Exception as error:  # offline, unknown repository, gated, disk full: all of them are the user's to mend
        raise UserError(
            f"no such folder, and the hub did not give it: {source}",
            found=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            fix="check the name, the network and `hf auth login`, or give a local folder",
        ) from error


def hub_identity(folder: Path) -> dict[str, str]:
    """{"repository": "org/name", "revision": commit} of a folder in the hub's cache, otherwise nothing."""
    resolved = folder.resolve()
    owner = resolved.parent.parent.name
    if resolved.parent.name != "snapshots" or not owner.startswith("models--"):
        return {}
    return {"repository": owner.removeprefix("models--").replace("--", "/"), "revision": resolved.name}
