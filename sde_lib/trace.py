"""Trace of a Jacobian J from products with probes v: E[v^T J v] = tr J if E[v v^T] = I."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from score_sde.sde_lib.devices import put
from score_sde.sde_lib.process import Draw
from score_sde.sde_lib.velocity import Indices

CHUNK, FEW = 8, 1 << 12
"""Maximum number of Jacobian products in one batched call, and of entries in them; larger batches are no faster."""


def exact_trace(x: Tensor) -> Tensor:
    """Unit vectors as probes of x (B, *), (1, D, B, *): one estimate, equal to the trace.

    Each evaluation takes D products with the Jacobian, which is practical up to D of about 100.
    """
    basis = torch.eye(x.shape[1:].numel(), dtype=x.dtype, device=x.device)
    return basis[None, :, None, :].expand(-1, -1, len(x), -1).reshape(1, len(basis), *x.shape)


def rademacher(z: Tensor) -> Tensor:
    """Signs of the normals z (K, B, *): K estimates with the least variance among independent probes.

    Shapes: returns (K, 1, B, *).
    Reference: Hutchinson, "A Stochastic Estimator of the Trace of the Influence Matrix", 1990.
    """
    return torch.where(z < 0, -1.0, 1.0).to(z.dtype)[:, None]


def gauss(z: Tensor) -> Tensor:
    """Returns the normals z (K, B, *) as probes, (K, 1, B, *)."""
    return z[:, None]


def orthogonal(z: Tensor) -> Tensor:
    """Orthogonal directions of length sqrt(D), by QR decomposition of the normals z (K, B, *).

    The variance falls to 0 as the number of probes approaches D, at which the estimate equals the trace.

    Shapes: returns (K, 1, B, *).
    Raises: ValueError for more probes than dimensions.
    """
    num, dimensions = len(z), z[0, 0].numel()
    if num > dimensions:
        raise ValueError(f"{num} orthogonal probes in {dimensions} dimensions: need at most {dimensions}")
    frame: Tensor = torch.linalg.qr(z.flatten(2).movedim(0, 2)).Q
    return math.sqrt(dimensions) * frame.movedim(2, 0).reshape(z.shape)[:, None]


Normals = Callable[[], Tensor]
"""Returns new normals (K, B, *) at each call."""


def walsh(shape: torch.Size, device: torch.device | str = "cpu") -> Iterator[Tensor]:
    """Sign patterns of the given shape, in which the signs of two coordinates agree in half of the patterns.

    Pattern n is (-1)^(sum_j n_j b_j), with b_j the binary digits of a coordinate's position: the lowest digit of each
    axis, last axis first, then the next digits. After 2^m patterns the signs of all pairs of coordinates cancel, except
    for pairs with equal first m digits, which are far apart. Nearby coordinates therefore cancel first. The order along
    the first axis, of channels, is random.

    Reference: Stathopoulos, Laeuchli, Orginos, "Hierarchical Probing for Estimating the Trace of the Matrix Inverse on
        Toroidal Lattices", 2013. arXiv:1302.4018
    """
    first = torch.randperm(shape[0], generator=torch.Generator().manual_seed(0))
    axes = [put(axis, torch.device(device)) for axis in (first, *map(torch.arange, shape[1:]))]
    indices = list(zip(torch.meshgrid(*axes, indexing="ij"), shape, strict=True))[::-1]
    most = (max(shape) - 1).bit_length()
    digits = [index >> level & 1 for level in range(most) for index, size in indices if (size - 1) >> level]
    for n in range(2 ** len(digits)):
        odd = sum((digit for j, digit in enumerate(digits) if n >> j & 1), torch.zeros_like(indices[0][0]))
        signs: Tensor = 1 - 2 * (odd & 1)
        yield signs


def turned(make: Callable[[Tensor], Tensor], normals: Normals) -> Iterator[Tensor]:
    """Sequence of probes whose errors cancel over successive evaluations.

    A full period of ``walsh`` gives the trace of a constant Jacobian exactly. For a slowly varying Jacobian most of the
    error cancels, and earlier if distant coordinates interact weakly.
    """
    while True:
        probes = make(normals())
        for signs in walsh(probes.shape[3:], probes.device):
            yield probes * signs.to(probes)


def redrawn(make: Callable[[Tensor], Tensor], normals: Normals) -> Iterator[Tensor]:
    """Sequence of independent probes."""
    while True:
        yield make(normals())


class Probe(NamedTuple):
    """A kind of probe.

    make: normals (K, B, *) -> probes (K, 1, B, *).
    fresh: (make, normals) -> new probes for each successive evaluation.
    variance: (K, D) -> variance of the mean of K estimates in D dimensions, in units of their sample variance.
    """

    make: Callable[[Tensor], Tensor]
    fresh: Callable[[Callable[[Tensor], Tensor], Normals], Iterator[Tensor]]
    variance: Callable[[int, int], float]


def independent(num: int, dimensions: int) -> float:
    """1 / K."""
    return 1 / num


def without_replacement(num: int, dimensions: int) -> float:
    """1 / K - 1 / D, as for K values sampled without replacement from D values with a known sum."""
    return 1 / num - 1 / dimensions


PROBES: dict[str, Probe] = {
    "rademacher": Probe(rademacher, turned, independent),
    "gauss": Probe(gauss, redrawn, independent),
    "orthogonal": Probe(orthogonal, redrawn, without_replacement),
}
"""Kinds of probes by name. Only signs take the patterns of ``walsh``: their errors are sums over coordinate pairs."""

Vectors = Callable[[Indices], Tensor]
"""Returns probes (K, P, b, *) of b selected examples for one evaluation."""


class Exact:
    """Exact trace by D products with the Jacobian at each evaluation, practical up to D of about 100."""

    fresh = False

    def start(self, x: Tensor) -> Vectors:
        """Unit vectors for examples x (B, *)."""
        vectors = exact_trace(x)
        return lambda indices: vectors[:, :, indices]

    def variance(self, estimates: Tensor, dimensions: int) -> Tensor:
        """Variance of the estimate (B, 1), 0."""
        return torch.zeros_like(estimates[:, 0])


class Hutchinson:
    """K random estimates of the trace, by Hutchinson's method.

    Args:
        draw: returns new normals shaped as x (B, *) at each call.
        num: K, at least 1.
        kind: a key of ``PROBES``.
        fresh: whether each evaluation takes new probes. Both choices are unbiased. New probes suit solvers on fixed
            nodes and have much less noise, because their errors cancel along the path. Solvers with adaptive steps
            need a deterministic velocity and therefore the same probes for the whole path.
    Raises: ValueError for values out of range and an unknown kind.
    """

    def __init__(self, draw: Draw, num: int = 1, kind: str = "rademacher", fresh: bool = False):
        if num < 1:
            raise ValueError(f"probes {num}: need at least 1")
        if kind not in PROBES:
            raise ValueError(f"unknown probe {kind!r}; known: {', '.join(PROBES)}")
        self.draw, self.num, self.kind, self.fresh = draw, num, PROBES[kind], fresh

    def start(self, x: Tensor) -> Vectors:
        """Probes for examples x (B, *)."""

        def normals() -> Tensor:
            return torch.stack([self.draw(x) for _ in range(self.num)])

        if self.fresh:
            probes = self.kind.fresh(self.kind.make, normals)
            return lambda indices: next(probes)[:, :, indices]
        vectors = self.kind.make(normals())
        return lambda indices: vectors[:, :, indices]

    def variance(self, estimates: Tensor, dimensions: int) -> Tensor:
        """Variance of the mean of the estimates (B, K) in D dimensions, (B,); NaN for a single estimate."""
        spread = estimates.var(1) if self.num > 1 and len(estimates) else torch.full_like(estimates[:, 0], torch.nan)
        return spread * self.kind.variance(self.num, dimensions)


def traces(value: Tensor, at: Tensor, probes: Tensor, create_graph: bool = False) -> Tensor:
    """Estimates of tr(d value / d at), sum_p v_p^T J v_p, from one graph.

    Args:
        probes: ``exact_trace(at)``, or probes from a value of ``PROBES``.
        create_graph: whether the estimates are differentiable, as for training. Products are then computed one by one,
            since some operations lack a batched second derivative.
    Shapes: value, at (B, *), probes (K, P, B, *); returns (B, K).
    """
    vectors, grad = probes.flatten(0, 1), functools.partial(torch.autograd.grad, value, at, retain_graph=True)
    at_once = 1 if create_graph else min(CHUNK, FEW // max(1, at.numel()))
    if at_once < 2 or len(vectors) < 2:
        products = ((grad(v, create_graph=create_graph)[0][None], v[None]) for v in vectors)
    else:
        products = ((_batched(grad, part), part) for part in vectors.split(at_once))
    forms = torch.cat([(product * part).flatten(2).sum(2) for product, part in products])
    estimates: Tensor = forms.mT.unflatten(1, probes.shape[:2]).sum(2)
    return estimates


def _batched(grad: Callable[..., tuple[Tensor, ...]], vectors: Tensor) -> Tensor:
    """Products with vectors (P, B, *), in one batched call if torch can batch the derivatives of all operations.

    Some kernels, such as group normalisation of a channels-last tensor, lack a batched derivative.
    """
    try:
        return grad(vectors, is_grads_batched=True)[0]
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
    return torch.stack([grad(v)[0] for v in vectors])
