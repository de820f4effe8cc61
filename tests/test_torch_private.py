"""Private names of PyTorch and their public alternatives."""

import pytest
import torch

from score_sde.engine import torch_private


@pytest.mark.parametrize("private", [True, False])
def test_tensors_are_scaled_with_and_without_the_private_name(private, monkeypatch):
    if not private:
        monkeypatch.delattr(torch, "_foreach_mul_")
    tensors = [torch.randn(3, 2), torch.randn(5)]
    expected = [tensor * 0.3 for tensor in tensors]
    torch_private.scale_(tensors, torch.tensor(0.3))
    assert all(map(torch.equal, tensors, expected))


@pytest.mark.parametrize(("supported", "expected"), [(True, False), (False, True), (None, False)])
def test_a_cpu_emulates_bfloat16_where_its_kernels_lack_it(supported, expected, monkeypatch):
    """Without the private name, the answer is unknown and the result False."""
    names = {} if supported is None else {"_is_mkldnn_bf16_supported": lambda: supported}
    monkeypatch.setattr(torch.ops, "mkldnn", type("Ops", (), {k: staticmethod(v) for k, v in names.items()}))
    assert torch_private.cpu_emulates_bfloat16() is expected
