"""The trace of a Jacobian J, from products with probes v: E[v^T J v] = tr J where E[v v^T] = I."""

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
"""Products with a Jacobian that are taken at once, and how many numbers they may have: more are no faster."""


def exact_trace(x: Tensor) -> Tensor:
    """The unit vectors as probes of x (B, *): one estimate, the trace itself; (1, D, B, *).

    D products with the Jacobian at each evaluation, so for D up to about 100.
    """
    basis = torch.eye(x.shape[1:].numel(), dtype=x.dtype, device=x.device)
    return basis[None, :, None, :].expand(-1, -1, len(x), -1).reshape(1, len(basis), *x.shape)


def rademacher(z: Tensor) -> Tensor:
    """Signs of the normals z (K, B, *): K estimates of the least variance among independent probes.

    Shapes: returns (K, 1, B, *).
    Reference: Hutchinson, "A Stochastic Estimator of the Trace of the Influence Matrix", 1990.
    """
    return torch.where(z < 0, -1.0, 1.0).to(z.dtype)[:, None]


def gauss(z: Tensor) -> Tensor:
    """The normals z (K, B, *) themselves as probes, (K, 1, B, *)."""
    return z[:, None]


def orthogonal(z: Tensor) -> Tensor:
    """Directions at right angles to each other, by Gram and Schmidt from the normals z (K, B, *), of length sqrt(D).

    The more of them, the less is left to chance: D of them give the trace itself.

    Shapes: returns (K, 1, B, *).
    Raises: ValueError for more probes than dimensions.
    """
    num, dimensions = len(z), z[0, 0].numel()
    if num > dimensions:
        raise ValueError(f"{num} orthogonal probes in {dimensions} dimensions: need at most {dimensions}")
    frame: Tensor = torch.linalg.qr(z.flatten(2).movedim(0, 2)).Q
    return math.sqrt(dimensions) * frame.movedim(2, 0).reshape(z.shape)[:, None]


Normals = Callable[[], Tensor]
"""New normals (K, B, *) at each call."""


def walsh(shape: torch.Size, device: torch.device | str = "cpu") -> Iterator[Tensor]:
    """Signs for x[0], of the given shape: those of two coordinates agree half of the time, the sooner the nearer.

    The n-th are (-1)^(sum_j n_j b_j), with b_j binary digits of a coordinate's place: the lowest one of each axis, the
    last axis first, then the next ones. So after 2^m of them the signs of all pairs have cancelled but of those that
    share their first m digits, which lie far apart. Places along the first axis, of channels, are in no order.

    Reference: Stathopoulos, Laeuchli, Orginos, "Hierarchical Probing for Estimating the Trace of the Matrix Inverse on
        Toroidal Lattices", 2013. arXiv:1302.4018
    """
    first = torch.randperm(shape[0], generator=torch.Generator().manual_seed(0))
    axes = [put(axis, torch.device(device)) for axis in (first, *map(torch.arange, shape[1:]))]
    places = list(zip(torch.meshgrid(*axes, indexing="ij"), shape, strict=True))[::-1]
    most = (max(shape) - 1).bit_length()
    digits = [place >> level & 1 for level in range(most) for place, size in places if (size - 1) >> level]
    for n in range(2 ** len(digits)):
        odd = sum((digit for j, digit in enumerate(digits) if n >> j & 1), torch.zeros_like(places[0][0]))
        signs: Tensor = 1 - 2 * (odd & 1)
        yield signs


def turned(make: Callable[[Tensor], Tensor], normals: Normals) -> Iterator[Tensor]:
    """Probes of which each is a probe, and whose errors cancel as they follow one another.

    Those of ``walsh`` give the trace of one Jacobian exactly; of one that changes slowly, most of it, the sooner the
    less its distant coordinates have to do with each other.
    """
    while True:
        probes = make(normals())
        for signs in walsh(probes.shape[3:], probes.device):
            yield probes * signs.to(probes)


def redrawn(make: Callable[[Tensor], Tensor], normals: Normals) -> Iterator[Tensor]:
    """Probes that know nothing of each other."""
    while True:
        yield make(normals())


class Probe(NamedTuple):
    """A kind of probe.

    make: from normals (K, B, *) to probes (K, 1, B, *).
    fresh: (make, normals) -> probes for one evaluation after another; each estimate goes its own way.
    variance: of the mean of K estimates in D dimensions, (K, D) -> multiple of the sample variance of the estimates.
    """

    make: Callable[[Tensor], Tensor]
    fresh: Callable[[Callable[[Tensor], Tensor], Normals], Iterator[Tensor]]
    variance: Callable[[int, int], float]


def independent(num: int, dimensions: int) -> float:
    """1 / K."""
    return 1 / num


def without_replacement(num: int, dimensions: int) -> float:
    """1 / K - 1 / D: of K values drawn from D of which the sum is known, as in sampling without replacement."""
    return 1 / num - 1 / dimensions


PROBES: dict[str, Probe] = {
    "rademacher": Probe(rademacher, turned, independent),
    "gauss": Probe(gauss, redrawn, independent),
    "orthogonal": Probe(orthogonal, redrawn, without_replacement),
}
"""Only signs are turned: their errors are all between two coordinates."""

Vectors = Callable[[Indices], Tensor]
"""The probes (K, P, b, *) of b of the examples, for one evaluation."""


class Exact:
    """The trace itself: D products with the Jacobian at each evaluation, so for D up to about 100."""

    fresh = False

    def start(self, x: Tensor) -> Vectors:
        """The unit vectors, for examples x (B, *)."""
        vectors = exact_trace(x)
        return lambda indices: vectors[:, :, indices]

    def variance(self, estimates: Tensor, dimensions: int) -> Tensor:
        """Of the mean of the one estimate (B, 1): 0."""
        return torch.zeros_like(estimates[:, 0])


class Hutchinson:
    """K random estimates of the trace, and their spread.

    Args:
        draw: from x (B, *) to normals shaped as x, new ones at each call.
        num: K, at least 1.
        kind: a key of ``PROBES``.
        fresh: whether each evaluation gets other probes. Both ways are unbiased. Fresh ones, for solvers on given
            nodes, have far less noise, because their errors cancel along the way; solvers that adapt their steps must
            not see another velocity when they ask again, and get the same probes for the whole way.
    Raises: ValueError for numbers out of range and an unknown kind.
    """

    def __init__(self, draw: Draw, num: int = 1, kind: str = "rademacher", fresh: bool = False):
        if num < 1:
            raise ValueError(f"probes {num}: need at least 1")
        if kind not in PROBES:
            raise ValueError(f"unknown probe {kind!r}; known: {', '.join(PROBES)}")
        self.draw, self.num, self.kind, self.fresh = draw, num, PROBES[kind], fresh

    def start(self, x: Tensor) -> Vectors:
        """The probes of examples x (B, *)."""

        def normals() -> Tensor:
            return torch.stack([self.draw(x) for _ in range(self.num)])

        if self.fresh:
            probes = self.kind.fresh(self.kind.make, normals)
            return lambda indices: next(probes)[:, :, indices]
        vectors = self.kind.make(normals())
        return lambda indices: vectors[:, :, indices]

    def variance(self, estimates: Tensor, dimensions: int) -> Tensor:
        """Of the mean of the estimates (B, K) of examples of D dimensions, (B,); NaN for a single one."""
        spread = estimates.var(1) if self.num > 1 else torch.full_like(estimates[:, 0], torch.nan)
        return spread * self.kind.variance(self.num, dimensions)


def traces(value: Tensor, at: Tensor, probes: Tensor, create_graph: bool = False) -> Tensor:
    """Each estimate of tr(d value / d at), sum_p v_p^T J v_p, all from one graph.

    Args:
        probes: ``exact_trace(at)``, or what a value of ``PROBES`` makes.
        create_graph: whether the estimates can themselves be differentiated, as training needs; then one by one, for
            not every operation has a second derivative for several at once.
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
    """The products with vectors (P, B, *), in one call where torch can batch the derivative of every operation.

    It cannot for some kernels, such as group normalisation of a channels-last tensor.
    """
    try:
        return grad(vectors, is_grads_batched=True)[0]
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
    return torch.stack([grad(v)[0] for v in vectors])
