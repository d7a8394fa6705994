"""The source of a conversion, opened; a hub model is fetched only behind everything that config.json can refuse.

A checkpoint of the hub can be 160 GB. Its config.json, a few kilobytes, says whether the family is known and its
settings are handled, and the destination can be looked at without it. Left out: refusals that need the tensors' names
or shapes, which come with the files.
"""

from pathlib import Path

from qconvert.checkpoint import CONFIG, Checkpoint, is_local, read_config, resolve_source
from qconvert.destination import check_destination
from qconvert.families import family_of


def open_source(src: str | Path, dst: str | Path, *, overwrite: bool) -> tuple[Path, Checkpoint]:
    """The local folder and its checkpoint, for an output at `dst`; UserError for what cannot be converted to there."""
    name, final = str(src), Path(dst)
    if not is_local(name):
        early = resolve_source(name, [CONFIG])
        check_destination(early, final, overwrite=overwrite)
        family_of(read_config(early)[1])
    source = resolve_source(name)
    checkpoint = Checkpoint.open(source)
    check_destination(source, final, overwrite=overwrite)
    return source, checkpoint
