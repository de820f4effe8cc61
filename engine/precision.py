"""Precision of a network; all other computation is in float32 or better."""

import sys

import torch

from score_sde.engine.torch_private import cpu_emulates_bfloat16

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def check_precision(dtype: torch.dtype, device: torch.device, section: str = "train") -> None:
    """Warns of a CPU that emulates bfloat16, many times slower than float32.

    Args:
        section: section of the config with this precision, for messages.
    Raises: ValueError for bfloat16 on a GPU without it.
    """
    if dtype != torch.bfloat16:
        return
    remedy = f"take --config.{section}.precision=float32"
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(f"{section}.precision bfloat16: {torch.cuda.get_device_name(device)} has none; {remedy}")
    if device.type == "cpu" and cpu_emulates_bfloat16():
        print(f"warning: this CPU emulates bfloat16, many times slower than float32; {remedy}", file=sys.stderr)
