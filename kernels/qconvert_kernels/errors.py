"""What can go wrong before a kernel runs. This package cannot import `qconvert`, so callers turn these into user errors."""


class KernelsMissing(ImportError):
    """triton is not installed."""

    def __init__(self) -> None:
        super().__init__("the Triton kernels need triton, which is not installed; pip install 'qconvert[kernels]'")
