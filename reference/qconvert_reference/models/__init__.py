"""One module per architecture: the small modules of this package put together under the names of its checkpoints."""
