"""GPU kernels in Triton, each beside its naive torch truth.

This package imports without triton: the `naive` modules, packing and configurations are plain torch and Python. Asking
for a kernel where triton is missing raises `KernelsMissing`, which names the extra to install.
"""
