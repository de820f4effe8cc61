"""Private names of PyTorch. No other module of the package uses one, and ``tests/test_architecture.py`` checks it.

Each function uses the public alternative on a version of PyTorch that lacks the private name.
"""

import torch
from torch import Tensor


def scale_(tensors: list[Tensor], factor: Tensor) -> None:
    """Multiplies tensors in place by a factor, 0-d, in few kernels.

    Uses ``torch._foreach_mul_``. The public alternative is one multiplication per tensor, with equal results: on a GPU
    one kernel launch per parameter of the network. ``torch.nn.utils.clip_grads_with_norm_`` batches them too, but takes
    parameters, whose gradients are DTensors in a sharded network, and not their local rows.
    """
    if hasattr(torch, "_foreach_mul_"):
        torch._foreach_mul_(tensors, factor)
    else:
        for tensor in tensors:
            tensor.mul_(factor)


def cpu_emulates_bfloat16() -> bool:
    """Returns whether the matrix kernels of this CPU emulate bfloat16.

    Uses ``torch.ops.mkldnn._is_mkldnn_bf16_supported``. No public function has the answer in all supported versions;
    without the private one, the result is False.
    """
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is not None and not supported()
