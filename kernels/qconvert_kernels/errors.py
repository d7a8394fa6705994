"""What can be wrong before a kernel runs. This package cannot import `qconvert`; callers make user errors of these."""


class KernelsMissing(ImportError):
    """triton is not installed."""

    def __init__(self) -> None:
        super().__init__("the Triton kernels need triton, which is not installed; pip install 'qconvert[kernels]'")


class BadInput(ValueError):
    """Tensors a kernel cannot take: shape, dtype, strides or device."""
