"""Where a checkpoint comes from: a local folder, or a model of the Hugging Face hub.

A hub id is `org/name` or `org/name@revision`. Only safetensors, JSON and plain text are fetched: never pickles, which
can run code. A folder of the hub's local cache tells its origin by its own path, so that a manifest can name model
and revision.
"""

from collections.abc import Sequence
from pathlib import Path

from qconvert.errors import UserError, first_line

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


def is_local(source: str) -> bool:
    """Whether a source is something on this machine, so that the hub is not asked for it."""
    try:
        return Path(source).expanduser().exists()
    except (OSError, RuntimeError):  # a name too long for a file, the home of somebody unknown
        return False


def resolve_source(source: str, patterns: Sequence[str] = PATTERNS) -> Path:
    """The local folder of a checkpoint, fetched from the hub if the name is not a folder here."""
    if is_local(source):
        return Path(source).expanduser()
    name, _, revision = source.partition("@")
    parts = name.split("/")
    if len(parts) != 2 or not all(parts) or any(part.startswith(".") for part in parts):
        raise UserError(
            f"no such folder: {source}", fix="give the folder of a checkpoint, or a hub id org/name[@revision]"
        )
    import huggingface_hub

    try:
        fetched = huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=list(patterns))
    except Exception as error:  # offline, unknown repository, gated, disk full: all of them are the user's to mend
        raise _refusal(source, error) from error
    folder = Path(fetched)
    if not folder.is_dir():  # the hub's library makes no folder when no file fits the patterns
        raise UserError(f"{source} on the hub is not a checkpoint", expected=", ".join(patterns), found="no such file")
    return folder


def _refusal(source: str, error: Exception) -> UserError:
    """What the hub's library raised, said in one message."""
    from huggingface_hub import constants, errors

    name, _, revision = source.partition("@")
    found = f"{type(error).__name__}: {first_line(error)}"
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(f"{name} has no revision {revision or 'main'!r} on the hub", fix="check the branch or commit")
    if isinstance(error, errors.GatedRepoError):
        fix = f"ask for access at {constants.ENDPOINT}/{name}, then `hf auth login`"
        return UserError(f"{name} is gated: the hub gives it only to those who were granted access", fix=fix)
    if isinstance(error, errors.RepositoryNotFoundError):
        fix = "check the name; a private model needs `hf auth login`"
        return UserError(f"no such folder, and no such model on the hub: {name}", where=constants.ENDPOINT, fix=fix)
    if constants.HF_HUB_OFFLINE:
        fix = "unset HF_HUB_OFFLINE to fetch it, or give a local folder"
        return UserError(f"no such folder, and not in the hub's cache: {source}", found="offline mode is on", fix=fix)
    if isinstance(error, errors.LocalEntryNotFoundError):
        fix = "check the network, or give a local folder"
        what = f"no such folder, and the hub cannot be reached: {source}"
        return UserError(what, where=constants.ENDPOINT, found=found, fix=fix)
    fix = "check the name, the network and `hf auth login`, or give a local folder"
    return UserError(f"no such folder, and the hub did not give it: {source}", found=found, fix=fix)


def hub_identity(folder: Path) -> dict[str, str]:
    """{"repository": "org/name", "revision": commit} of a folder in the hub's cache, otherwise nothing."""
    resolved = folder.resolve()
    owner = resolved.parent.parent.name
    if resolved.parent.name != "snapshots" or not owner.startswith("models--"):
        return {}
    return {"repository": owner.removeprefix("models--").replace("--", "/"), "revision": resolved.name}
