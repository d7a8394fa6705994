"""Checks of a folder's words against its source's: names of weights, and config.json but for its last key."""

from qconvert.checkpoint import CONFIG, Checkpoint
from qconvert.formats import CONFIG_KEY, Weights
from qconvert.verification.report import Check, Findings
from qconvert.verification.stored import Stored


def check_same_names(stored: Stored, source: Weights) -> Check:
    """The folder has every weight of the source, the multi-token-prediction head included, and no other."""
    findings = Findings("source", f"all {len(source.names):,} weights of the source are there")
    own = {*stored.kept, *stored.quantized, *stored.broken, *stored.unexpected}
    for name in source.names:
        if name not in own:
            findings.add(name, "missing, but the source has it")
    for name in sorted(own):
        if name not in source:
            findings.add(name, "the source has no such weight")
    return findings.check()


def check_config(checkpoint: Checkpoint, source: Checkpoint) -> Check:
    """Engines read keys that config classes drop, so every key must be as it was."""
    findings = Findings("config", f"{CONFIG} is that of the source, but for {CONFIG_KEY}")
    for key in sorted((checkpoint.config.keys() | source.config.keys()) - {CONFIG_KEY}):
        if key not in source.config:
            findings.add(key, "the source has no such key")
        elif key not in checkpoint.config:
            findings.add(key, "missing, but the source has it")
        elif checkpoint.config[key] != source.config[key]:
            findings.add(key, f"{checkpoint.config[key]!r}, in the source {source.config[key]!r}")
    return findings.check()
