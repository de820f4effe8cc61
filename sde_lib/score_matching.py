"""Score matching: objectives that fit a model of grad log p to data.

    explicit    E |s_hat - s|^2                          the aim; for densities with a known score
    denoising   E |s_hat - grad log p(x_t | x_0)|^2      ``sde_lib.losses``
    implicit    E [2 tr(ds_hat/dx) + |s_hat|^2]          exact trace, by integration by parts
    sliced      the same, along random directions

At a noise level, x_t = alpha x_0 + sigma eps, the four have equal gradients in expectation and differ by constants. All
are weighted like the squared error of x0, by sigma^4 / alpha^2 weight(t), and divided by the number of dimensions D, so
their values are comparable:

    implicit = denoising - weight / SNR = explicit - sigma^4 / alpha^2 weight E|s|^2 / D
"""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from score_sde.sde_lib.denoiser import Denoise
from score_sde.sde_lib.losses import Weight
from score_sde.sde_lib.objective import Objective
from score_sde.sde_lib.process import SDE, Draw
from score_sde.sde_lib.trace import PROBES, exact_trace, traces


def explicit(score_hat: Tensor, score: Tensor) -> Tensor:
    """Squared error of an estimated score, |s_hat - s|^2 / D; its mean is the Fisher divergence divided by D.

    Shapes: both (B, *); returns (B,).
    Reference: Hyvarinen, "Estimation of Non-Normalized Statistical Models by Score Matching", 2005, eq. 2, without
        its 1 / 2.
    """
    return (score_hat - score).flatten(1).square().mean(1)


class Implicit(Objective[Denoise]):
    """Score matching with the exact trace, 2 tr(ds_hat/dx) + |s_hat|^2 at x_t.

    It takes D Jacobian products per example, each with a second derivative in training, which is practical up to D of
    about 10. The exact score minimises it, and its expected gradient equals the gradient of ``denoising_loss``.

    Args:
        weight: weight on the squared error of x0.
    Reference: Hyvarinen, "Estimation of Non-Normalized Statistical Models by Score Matching", 2005, eq. 4, times 2.
    """

    differentiates = True

    def __init__(self, sde: SDE, weight: Weight) -> None:
        super().__init__(sde)
        self.weight = weight

    def __call__(
        self, denoise: Denoise, /, x0: Tensor, eps: Tensor, t: Tensor, draw: Draw, progress: float, **cond: Tensor
    ) -> Tensor:
        x = self.sde.perturb(x0, eps, t).requires_grad_()
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            score = self.sde.score(x, denoise(x, t, **cond).x0, t)
        probes = self.probes(x, draw)
        trace = traces(score, x, probes, create_graph=torch.is_grad_enabled()).mean(1)
        alpha, sigma, _ = self.sde.marginal(t)
        factor = (self.weight(self.sde, t) * sigma**4 / alpha**2).flatten() / x.shape[1:].numel()
        return factor * (2 * trace + self.squared_norm(score, probes))

    def probes(self, x: Tensor, draw: Draw) -> Tensor:
        """Vectors for the trace, (K, P, B, *)."""
        return exact_trace(x)

    def squared_norm(self, score: Tensor, probes: Tensor) -> Tensor:
        """Returns |s_hat|^2 or an estimate, (B,)."""
        return score.flatten(1).square().sum(1)


class SlicedVR(Implicit):
    """Sliced score matching with reduced variance, 2 v^T (ds_hat/dx) v + |s_hat|^2, averaged over projections v.

    It takes one Jacobian product per projection for every D. The mean over v is ``Implicit``.

    Args:
        weight: weight on the squared error of x0.
        projections: number of random directions per example, at least 1.
        probe: distribution of the directions, a key of ``PROBES``.
    Raises: ValueError for an unknown probe, or fewer than one projection.
    Reference: Song, Garg, Shi, Ermon, "Sliced Score Matching: A Scalable Approach to Density and Score Estimation",
        2019, eq. 8, times 2. arXiv:1905.07088
    """

    def __init__(self, sde: SDE, weight: Weight, projections: int = 1, probe: str = "rademacher") -> None:
        super().__init__(sde, weight)
        if projections < 1:
            raise ValueError(f"loss.objective.projections {projections}: need at least 1")
        if probe not in PROBES:
            raise ValueError(f"unknown loss.objective.probe {probe!r}; known: {', '.join(sorted(PROBES))}")
        self.projections, self.probe = projections, PROBES[probe].make

    def probes(self, x: Tensor, draw: Draw) -> Tensor:
        return self.probe(torch.stack([draw(x) for _ in range(self.projections)]))


class Sliced(SlicedVR):
    """Sliced score matching, 2 v^T (ds_hat/dx) v + (v^T s_hat)^2, averaged over projections v.

    It depends on the score only through v^T s_hat, at the cost of a higher variance.

    Args, Raises: as ``SlicedVR``.
    Reference: Song, Garg, Shi, Ermon, 2019, eq. 7, times 2. arXiv:1905.07088
    """

    def squared_norm(self, score: Tensor, probes: Tensor) -> Tensor:
        return (probes * score).flatten(3).sum(3).square().sum(1).mean(0)
