"""qconvert: BF16 Qwen3-Next checkpoints to FP8 and INT4, streaming, verified, measured.

This package holds the converter alone: checkpoint files, number formats, file formats, model families, the plan and
the pipeline. It imports no other package of the project, and importing it imports no torch, so that `qconvert --help`
is quick.
"""

__version__ = "0.1.0"
