"""The trace of a Jacobian J, from products with probes v: E[v^T J v] = tr J where E[v v^T] = I."""

from collections.abc import Callable

import torch
from torch import Tensor


def exact_trace(x: Tensor) -> Tensor:
    """The unit vectors as probes of x (B, *): one estimate, the trace itself; (1, D, B, *).

    D products with the Jacobian at each evaluation, so for D up to about 100.
    """
    basis = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)
    return basis[None, :, None, :].expand(-1, -1, len(x), -1).reshape(1, -1, *x.shape)


def rademacher(z: Tensor) -> Tensor:
    """Signs of the normals z (K, B, *): K estimates of the least variance among probes with E[v v^T] = I.

    Shapes: returns (K, 1, B, *).
    Reference: Hutchinson, "A Stochastic Estimator of the Trace of the Influence Matrix", 1990.
    """
    return torch.where(z < 0, -1.0, 1.0).to(z.dtype)[:, None]


def gauss(z: Tensor) -> Tensor:
    """The normals z (K, B, *) themselves as probes, (K, 1, B, *)."""
    return z[:, None]


PROBES: dict[str, Callable[[Tensor], Tensor]] = {"rademacher": rademacher, "gauss": gauss}


def traces(value: Tensor, at: Tensor, probes: Tensor, create_graph: bool = False) -> Tensor:
    """Each estimate of tr(d value / d at), sum_p v_p^T J v_p, all from one graph.

    Args:
        probes: ``exact_trace(at)``, or a value of ``PROBES``.
        create_graph: whether the estimates can themselves be differentiated, as training needs.
    Shapes: value, at (B, *), probes (K, P, B, *); returns (B, K).
    """
    vectors = probes.flatten(0, 1)
    forms = [
        (torch.autograd.grad(value, at, v, retain_graph=True, create_graph=create_graph)[0] * v).flatten(1).sum(1)
        for v in vectors
    ]
    return torch.stack(forms, 1).unflatten(1, probes.shape[:2]).sum(2)
