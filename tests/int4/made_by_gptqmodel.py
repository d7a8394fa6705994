"""Makes the fixtures of GPTQModel; run by hand, never by the tests, which must not depend on it.

    python -m venv gptqmodel && gptqmodel/bin/pip install -U setuptools && gptqmodel/bin/pip install gptqmodel==7.7.0
    PYTHONPATH=. CUDA_VISIBLE_DEVICES= gptqmodel/bin/python -m tests.int4.made_by_gptqmodel TOKENIZER_FOLDER

It has no path without data, so a few rows of numbers serve as a text; what it then does with the codes is not looked
at. It drops the prediction head, and says in no key of its config which layers it kept. It refuses to start on fewer
than eight cores, which it counts; hence the two lines before its import.
"""

import os

os.cpu_count = lambda: 8
os.sched_getaffinity = lambda pid: set(range(8))

import sys  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
from gptqmodel import GPTQModel, QuantizeConfig  # noqa: E402
from gptqmodel.nn_modules.qlinear.torch import TorchLinear  # noqa: E402
from torch import Tensor  # noqa: E402

from tests.int4.foreign import save, source_tensors, write_source  # noqa: E402

GROUP = 32
CASES = {  # checkpoint_format, symmetric, act-order
    "gptqmodel": ("gptq", True, False),
    "gptqmodel-v2": ("gptq_v2", True, False),
    "gptqmodel-v2-asym": ("gptq_v2", False, False),
    "gptqmodel-act-order": ("gptq", True, True),
}


def decode(parts: dict[str, Tensor], *, v1: bool, symmetric: bool) -> Tensor:
    """Its own linear layer, which wants zero points of version 2."""
    rows, columns = parts["scales"].shape[1], len(parts["g_idx"])
    layer = TorchLinear(
        bits=4, group_size=GROUP, sym=symmetric, desc_act=False, in_features=columns, out_features=rows,
        bias=False, pack_dtype=torch.int32, register_buffers=True,
    )  # fmt: skip
    for name, data in parts.items():
        setattr(layer, name, data.clone())
    if v1:
        layer.qzeros += 0x11111111
    layer.post_init()
    return layer.dequantize_weight().T


def main() -> None:
    rows = [torch.randint(0, 32, (64,), generator=torch.Generator().manual_seed(row)).tolist() for row in range(8)]
    text = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        source = write_source(work / "source")
        for file in Path(sys.argv[1]).glob("tokenizer*"):
            (source / file.name).write_bytes(file.read_bytes())
        for case, (form, symmetric, act_order) in CASES.items():
            settings = {"bits": 4, "group_size": GROUP, "format": form, "sym": symmetric, "desc_act": act_order}
            model = GPTQModel.load(str(source), QuantizeConfig(device="cpu", **settings))
            model.quantize(text, batch_size=1)
            model.save(str(work / case))
            save(
                case, work / case, source_tensors(), str(settings), "gptqmodel", "transformers", "torch",
                decode=lambda parts, v1=form == "gptq", sym=symmetric: decode(parts, v1=v1, symmetric=sym),
            )  # fmt: skip


if __name__ == "__main__":
    main()
