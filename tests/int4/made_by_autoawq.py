"""Makes the fixture of AutoAWQ; run by hand, never by the tests, which must not depend on it.

    python -m venv autoawq && autoawq/bin/pip install torch==2.13.0 autoawq==0.2.9
    PYTHONPATH=. autoawq/bin/python -m tests.int4.made_by_autoawq

AutoAWQ never knew this architecture, so its rounding and its packing are given the routed experts one by one, in F16
as it does, and its config has the empty list that it writes where it keeps nothing but what it finds by itself.
"""

import json
import tempfile
from pathlib import Path

import torch
from awq.models._config import AwqConfig
from awq.modules.linear.gemm import WQLinear_GEMM
from awq.quantize.quantizer import AwqQuantizer
from awq.utils.packing_utils import dequantize_gemm
from torch import Tensor

from qconvert.checkpoint import write_checkpoint
from tests.int4.foreign import CONFIG, save, source_tensors

GROUP = 32


def packed(weight: Tensor) -> dict[str, Tensor]:
    rounding = AwqQuantizer.__new__(AwqQuantizer)
    rounding.group_size, rounding.zero_point, rounding.w_bit = GROUP, True, 4
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False).half()
    linear.weight.data, scales, zeros = rounding.pseudo_quantize_tensor(weight.half())
    layer = WQLinear_GEMM.from_linear(linear, 4, GROUP, False, scales.t().contiguous(), zeros.t().contiguous())
    return {name: getattr(layer, name) for name in ("qweight", "qzeros", "scales")}


def decode(parts: dict[str, Tensor]) -> Tensor:
    return dequantize_gemm(parts["qweight"], parts["qzeros"], parts["scales"], 4, GROUP).T


def main() -> None:
    tensors = source_tensors()
    for name in [name for name in tensors if name.startswith("model.") and ".mlp.experts." in name]:
        parts = packed(tensors.pop(name))
        tensors |= {f"{name.removesuffix('weight')}{part}": data for part, data in parts.items()}
    block = AwqConfig(q_group_size=GROUP, w_bit=4, zero_point=True, version="GEMM").to_transformers_dict()
    assert json.loads(json.dumps(block)) == block
    with tempfile.TemporaryDirectory() as work:
        folder = write_checkpoint(Path(work) / "awq", CONFIG | {"quantization_config": block}, tensors, shards=1)
        call = "AwqQuantizer.pseudo_quantize_tensor, WQLinear_GEMM.from_linear"
        save("autoawq", folder, source_tensors(), call, "autoawq", "torch", decode=decode)


if __name__ == "__main__":
    main()
