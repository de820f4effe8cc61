"""The moment-matched Gaussian of the data.

For Gaussian data the optimal denoiser is linear and the probability flow is a scaling in closed form. Solvers, control
variates and priors use this solution and compute the difference from it.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import NamedTuple, Protocol, overload

import torch
from torch import Tensor

from score_sde.sde_lib.process import Time

MOST_DIRECTIONS = 64
EXAMPLES_A_DIRECTION = 8  # with fewer, the directions overfit the examples


class Function(Protocol):
    """A function of a variance, applied to a number or elementwise."""

    @overload
    def __call__(self, v: float, /) -> Time: ...
    @overload
    def __call__(self, v: Tensor, /) -> Tensor: ...


class Spectrum(NamedTuple):
    """A function of the matrix C = U diag(v) U^T + rest (I - U U^T).

    rest: function of the variance orthogonal to U, a number or (b, 1).
    along: function of v minus the entry ``rest``, (r,) or (b, r).
    """

    rest: Time
    along: Tensor


class Noised(NamedTuple):
    """Distribution of y = x_0 + r eps for x_0 ~ N(mean, C).

    spread, narrow: (C + r^2)^(1/2) and its inverse.
    kept: C (C + r^2)^(-1), the factor of y - mean in the posterior mean of x_0.
    """

    spread: Spectrum
    narrow: Spectrum
    kept: Spectrum


class Gaussian:
    """N(mean, C), C = U diag(v) U^T + rest (I - U U^T): leading principal directions, and one variance for the others.

    Args:
        mean: mean of an example, (*).
        rest: variance orthogonal to U, positive.
        variances: v, positive, (r,).
        directions: U, (D, r) with orthonormal columns.
    """

    def __init__(
        self, mean: Tensor, rest: float, variances: Tensor | None = None, directions: Tensor | None = None
    ) -> None:
        self.mean, self.rest = mean, rest
        self.variances = mean.new_zeros(0) if variances is None else variances
        self.directions = mean.new_zeros(mean.numel(), 0) if directions is None else directions

    @classmethod
    def standard(cls, x: Tensor) -> "Gaussian":
        """N(0, I) for examples shaped like x (B, *)."""
        return cls(x.new_zeros(x.shape[1:]), 1.0)

    @classmethod
    def of(cls, x: Tensor, extra: float = 0.0) -> "Gaussian":
        """Mean and covariance of examples, with one direction for every eight examples, at most 64.

        In up to 64 dimensions and with eight times as many examples, C is the sample covariance. Otherwise the leading
        directions come from a random subspace after two power iterations; their variances and the sum of the others
        equal the examples'. Variances are at least a millionth of the mean variance. The result is deterministic.

        Args:
            extra: variance to add in every direction, such as w^2 / 12 for the noise within a bin.
        Shapes: x (N, *); float64 on the device of x.
        Reference: Halko, Martinsson, Tropp, "Finding structure with randomness", 2011, algorithm 4.4.
            arXiv:0909.4061
        """
        flat = x.flatten(1)
        num, dimensions = flat.shape
        mean = sum(part.double().sum(0) for part in flat.split(_ROWS)) / num

        def centred(dtype: torch.dtype) -> Iterator[Tensor]:
            return (part.to(dtype) - mean.to(dtype) for part in flat.split(_ROWS))

        fast = torch.promote_types(x.dtype, torch.float32)
        start = torch.Generator().manual_seed(0)
        basis = torch.randn(dimensions, min(_WIDTH, dimensions), dtype=torch.float64, generator=start).to(x.device)
        for _ in range(2):
            products = (part.mT @ (part @ basis.to(fast)) for part in centred(fast))
            product = sum(products, torch.zeros_like(basis, dtype=fast))
            basis = torch.linalg.qr(product.double()).Q
        within, total = basis.new_zeros(basis.shape[1], basis.shape[1]), 0.0
        for part in centred(torch.float64):
            seen = part @ basis
            within += seen.mT @ seen / num
            total += part.square().sum().item() / num
        values, vectors = torch.linalg.eigh(within)
        left_out = len(values) - min(MOST_DIRECTIONS, num // EXAMPLES_A_DIRECTION, dimensions)
        values, directions = values[left_out:], basis @ vectors[:, left_out:]
        rest = (total - values.sum().item()) / max(dimensions - len(values), 1)
        least = 1e-6 * (total / dimensions + extra or 1.0)  # positive for constant data, too
        return cls(mean.view(x.shape[1:]), max(rest, least) + extra, values.clamp_min(least) + extra, directions)

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters by name."""
        rest = torch.tensor(self.rest, dtype=torch.float64)
        return {"mean": self.mean, "rest": rest, "variances": self.variances, "directions": self.directions}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> "Gaussian":
        """Creates the Gaussian of a ``state_dict``."""
        return cls(state["mean"], state["rest"].item(), state["variances"], state["directions"])

    def isotropic(self) -> "Gaussian":
        """N(mean, s^2 I) with the same mean variance; with a network, the full covariance does not reduce the cost."""
        return Gaussian(self.mean, self.std**2)

    def like(self, x: Tensor) -> "Gaussian":
        """Copy in the dtype and on the device of x."""
        mean, variances, directions = (part.to(x, copy=True) for part in (self.mean, self.variances, self.directions))
        return Gaussian(mean, self.rest, variances, directions)

    @cached_property
    def std(self) -> float:
        """Root of the mean variance over all dimensions."""
        return math.sqrt(self.trace(lambda v: v).item() / self.mean.numel())

    @cached_property
    def dimensions(self) -> float:
        """Effective number of dimensions, the participation ratio (tr C)^2 / tr C^2; 1 to D."""
        return float(self.trace(lambda v: v).item() ** 2 / self.trace(lambda v: v**2).item())

    def apply(self, function: Function, z: Tensor) -> Tensor:
        """Computes function(C) z, which scales each direction by the function of its variance.

        Shapes: z (B, *); the function maps a number or (r,) to a result that broadcasts against (B, r).
        """
        return self.scale(self.spectrum(function), z)

    def spectrum(self, function: Function) -> Spectrum:
        """Spectrum of function(C), for use with ``scale``."""
        rest = function(self.rest)
        return Spectrum(rest, function(self.variances) - rest)

    def scale(self, spectrum: Spectrum, z: Tensor) -> Tensor:
        """Computes function(C) z for a spectrum of function(C); z and the result (B, *)."""
        flat = z.flatten(1)
        scaled = spectrum.rest * flat
        if len(self.variances):
            scaled = scaled.addmm_(spectrum.along * (flat @ self.directions), self.directions.mT)
        return scaled.view(z.shape)

    def trace(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Trace of function(C), float64: 0-d, or (B,) for a function from (r,) to (B, r)."""
        rank = len(self.variances)
        values = function(torch.cat([self.variances.double(), self.variances.new_tensor([self.rest]).double()]))
        return values[..., :rank].sum(-1) + (self.mean.numel() - rank) * values[..., rank]

    def noised(self, ratio: Time) -> Noised:
        """Distribution of y = x_0 + r eps.

        Shapes: r a number or (B, 1), here and in the methods below.
        """
        square = ratio**2
        functions = (lambda v: (v + square) ** 0.5, lambda v: (v + square) ** -0.5, lambda v: v / (v + square))
        return Noised(*map(self.spectrum, functions))

    def whiten(self, y: Tensor, ratio: Time) -> Tensor:
        """Whitened u = (C + r^2)^(-1/2) (y - mean) for y = x_0 + r eps (B, *), with unit variance in all directions."""
        return self.scale(self.noised(ratio).narrow, y - self.mean)

    def colour(self, u: Tensor, ratio: Time) -> Tensor:
        """Inverse of ``whiten``."""
        return self.mean + self.scale(self.noised(ratio).spread, u)

    @overload
    def log_volume(self, ratio: float) -> float: ...
    @overload
    def log_volume(self, ratio: Tensor) -> Tensor: ...
    def log_volume(self, ratio: Time) -> Time:
        """log det (C + r^2)^(1/2), the log change of volume by ``colour``. A number, or (B,) float64."""
        volume = 0.5 * self.trace(lambda v: torch.log(v + ratio**2))
        return volume if isinstance(ratio, Tensor) else volume.item()

    def posterior_mean(self, y: Tensor, ratio: Time) -> Tensor:
        """E[x_0 | y] = mean + C (C + r^2)^(-1) (y - mean) for y = x_0 + r eps, by Gaussian conditioning."""
        return self.mean + self.scale(self.noised(ratio).kept, y - self.mean)


_WIDTH = MOST_DIRECTIONS + MOST_DIRECTIONS // 2  # dimension of the subspace; oversampling speeds up convergence
_ROWS = 500  # examples converted to float64 at a time
