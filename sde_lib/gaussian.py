"""A Gaussian as the moment-matched Gaussian of the data: what is known of their law before any network has seen them.

Where the guess is right, the denoiser is the linear one, the probability flow is a scaling and nothing is left to
solve. Solvers, control variates and priors take it out, and work on the rest.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import NamedTuple, Protocol, overload

import torch
from torch import Tensor

from score_sde.sde_lib.process import Time

MOST_DIRECTIONS = 64
EXAMPLES_A_DIRECTION = 8  # with fewer, directions fit these examples and the guess denies others


class Function(Protocol):
    """A function of a variance: of a number, or entry by entry."""

    @overload
    def __call__(self, v: float, /) -> Time: ...
    @overload
    def __call__(self, v: Tensor, /) -> Tensor: ...


class Spectrum(NamedTuple):
    """A function of C = U diag(v) U^T + rest (I - U U^T), as it acts.

    rest: what it makes of the variance of the directions that U leaves out, a number or (b, 1).
    along: what it makes of v, less that, (r,) or (b, r).
    """

    rest: Time
    along: Tensor


class Noised(NamedTuple):
    """The law of y = x_0 + r eps, for x_0 ~ N(mean, C).

    spread, narrow: (C + r^2)^(1/2) and its inverse.
    kept: C (C + r^2)^(-1), what of y - mean is expected to be in the data.
    """

    spread: Spectrum
    narrow: Spectrum
    kept: Spectrum


class Gaussian:
    """N(mean, C), C = U diag(v) U^T + rest (I - U U^T): the directions that vary most, and one variance for all others.

    Args:
        mean: of an example, (*).
        rest: variance in the directions that U leaves out, positive.
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
        """N(0, I) on examples like those of x (B, *)."""
        return cls(x.new_zeros(x.shape[1:]), 1.0)

    @classmethod
    def of(cls, x: Tensor, extra: float = 0.0) -> "Gaussian":
        """The mean and the covariance of examples, one direction told apart for every eight of them, at most 64.

        In up to 64 dimensions, from eight times as many examples on, C is the covariance itself. In more the directions
        are the leading ones of a subspace that two multiplications by the covariance have turned to them; their
        variances, and the sum of the others, are those of the examples. None is below a millionth of the mean variance.
        The same examples give the same numbers.

        Args:
            extra: variance that x lack in every direction: of the noise within a bin, w^2 / 12.
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
        least = 1e-6 * (total / dimensions + extra or 1.0)  # data that are all alike have to have some variance
        return cls(mean.view(x.shape[1:]), max(rest, least) + extra, values.clamp_min(least) + extra, directions)

    def state_dict(self) -> dict[str, Tensor]:
        """The numbers that make it, by name."""
        rest = torch.tensor(self.rest, dtype=torch.float64)
        return {"mean": self.mean, "rest": rest, "variances": self.variances, "directions": self.directions}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> "Gaussian":
        """Inverse of ``state_dict``."""
        return cls(state["mean"], state["rest"].item(), state["variances"], state["directions"])

    def isotropic(self) -> "Gaussian":
        """N(mean, s^2 I), of the same mean variance: all that pays for itself where a network moves the state."""
        return Gaussian(self.mean, self.std**2)

    def like(self, x: Tensor) -> "Gaussian":
        """A copy in dtype and device of x."""
        mean, variances, directions = (part.to(x, copy=True) for part in (self.mean, self.variances, self.directions))
        return Gaussian(mean, self.rest, variances, directions)

    @cached_property
    def std(self) -> float:
        """Root of the mean variance over all dimensions."""
        return math.sqrt(self.trace(lambda v: v).item() / self.mean.numel())

    @cached_property
    def dimensions(self) -> float:
        """How many dimensions the data spread over, by the participation ratio (tr C)^2 / tr C^2; 1 to D."""
        return float(self.trace(lambda v: v).item() ** 2 / self.trace(lambda v: v**2).item())

    def apply(self, function: Function, z: Tensor) -> Tensor:
        """function(C) z: each direction scaled by what the function makes of its variance.

        Shapes: z (B, *); function from a number or (r,) to what broadcasts against (B, r).
        """
        return self.scale(self.spectrum(function), z)

    def spectrum(self, function: Function) -> Spectrum:
        """function(C), before it is known what it acts on."""
        rest = function(self.rest)
        return Spectrum(rest, function(self.variances) - rest)

    def scale(self, spectrum: Spectrum, z: Tensor) -> Tensor:
        """function(C) z; z (B, *), and so returned."""
        flat = z.flatten(1)
        scaled = spectrum.rest * flat
        if len(self.variances):
            scaled = scaled.addmm_(spectrum.along * (flat @ self.directions), self.directions.mT)
        return scaled.view(z.shape)

    def trace(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """The trace of function(C), float64: of no dimension, or (B,) for a function from (r,) to (B, r)."""
        rank = len(self.variances)
        values = function(torch.cat([self.variances.double(), self.variances.new_tensor([self.rest]).double()]))
        return values[..., :rank].sum(-1) + (self.mean.numel() - rank) * values[..., rank]

    def noised(self, ratio: Time) -> Noised:
        """The law of y = x_0 + r eps.

        Shapes: r a number or (B, 1), and so below.
        """
        square = ratio**2
        functions = (lambda v: (v + square) ** 0.5, lambda v: (v + square) ** -0.5, lambda v: v / (v + square))
        return Noised(*map(self.spectrum, functions))

    def whiten(self, y: Tensor, ratio: Time) -> Tensor:
        """u = (C + r^2)^(-1/2) (y - mean): unit variance in all directions, for y = x_0 + r eps (B, *)."""
        return self.scale(self.noised(ratio).narrow, y - self.mean)

    def colour(self, u: Tensor, ratio: Time) -> Tensor:
        """Inverse of ``whiten``."""
        return self.mean + self.scale(self.noised(ratio).spread, u)

    @overload
    def log_volume(self, ratio: float) -> float: ...
    @overload
    def log_volume(self, ratio: Tensor) -> Tensor: ...
    def log_volume(self, ratio: Time) -> Time:
        """log det (C + r^2)^(1/2): what ``colour`` does to a volume. A number, or (B,) float64."""
        volume = 0.5 * self.trace(lambda v: torch.log(v + ratio**2))
        return volume if isinstance(ratio, Tensor) else volume.item()

    def posterior_mean(self, y: Tensor, ratio: Time) -> Tensor:
        """E[x_0 | y] for y = x_0 + r eps, by Gaussian conditioning: mean + C (C + r^2)^(-1) (y - mean)."""
        return self.mean + self.scale(self.noised(ratio).kept, y - self.mean)


_WIDTH = MOST_DIRECTIONS + MOST_DIRECTIONS // 2  # of the subspace, in which the leading directions settle sooner
_ROWS = 500  # examples that are in float64 at a time
