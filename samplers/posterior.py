"""Posterior sampling: data x_0 of which a measurement y = A(x_0) + std n is known, with a model of x_0 alone.

All of them differentiate the denoiser. ``pigdm`` and ``moment_matching`` are exact where the data are Gaussian, need a
linear A, and are guidance: any step takes them, and the ``ode``. The first costs one vector-Jacobian product an
evaluation and a guess of the data's covariance, the second some more products and no guess. ``DPS`` takes any A and is
a step around a step; its law is no posterior's. What they are worth is measured in ``benchmarks/posterior.py``.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from score_sde.samplers.guidance import Guided, detached
from score_sde.samplers.loop import Step
from score_sde.sde_lib import SDE, Each, Gaussian, of_rows
from score_sde.sde_lib.denoiser import Denoise, Estimate, Prediction, as_denoiser
from score_sde.sde_lib.process import Draw, Time
from score_sde.sde_lib.velocity import Rows

Forward = Callable[[Tensor], Tensor]
"""A: what is measured of a batch of examples, (B, *) -> (B, *), differentiable."""


class DPS(Step):
    """Diffusion posterior sampling: each move of a step goes on against the gradient of the misfit.

        x_s <- x_s - zeta grad |y - A(x0(x_t))|

    The gradient is taken through the step's own first evaluation, so it costs no second one; zeta = 0 is the step. The
    last denoising is a move like the others. The gradient of a norm is as long for a small misfit as for a large one,
    and zeta alone says how long the way is: in few dimensions little is enough. What comes out is no posterior.

    Args:
        step: any, best one of many moves that draws noise, as the ancestral one of the paper.
        forward: A, differentiable.
        y: what was measured of each example, or of all.
        zeta: at least 0, for images usually 0.1 to 1.
    Shapes: y (B, *) or (1, *).
    Raises: ValueError for zeta below 0 or, when called, for y of another shape than A gives.
    Reference: Chung et al., "Diffusion Posterior Sampling for General Noisy Inverse Problems", 2023, algorithm 1.
        arXiv:2209.14687
    """

    def __init__(self, step: Step, forward: Forward, y: Tensor, zeta: float = 1.0) -> None:
        if not zeta >= 0:
            raise ValueError(f"zeta {zeta}: need 0 or more, usually 0.1 to 1")
        self.step, self.forward, self.y, self.zeta = step, forward, y, zeta
        self.sde, self.grid, self.num_steps = step.sde, step.grid, step.num_steps

    def reset(self, times: list[float]) -> None:
        self.step.reset(times)

    def __call__(self, denoise: Denoise, x: Tensor, t: float, s: float, draw: Draw) -> Tensor:
        return self._lean(denoise, lambda look: self.step(look, x, t, s, draw))

    def finish(self, denoise: Denoise, x: Tensor, t: float, draw: Draw) -> Tensor:
        return self._lean(denoise, lambda look: self.step.finish(look, x, t, draw))

    def _lean(self, denoise: Denoise, move: Callable[[Denoise], Tensor]) -> Tensor:
        """The move with a denoiser that keeps the gradient of its first evaluation, and the way along it."""
        kept: list[Tensor] = []

        def look(rows: Rows) -> Guided:
            return partial(ask, of_rows(denoise, rows))

        def ask(denoise: Denoise, x: Tensor, t: Time, **cond: Tensor) -> Prediction:
            if kept:
                return denoise(x, t, **cond)
            with torch.inference_mode(False), torch.enable_grad():
                leaf = x.detach().clone().requires_grad_()
                prediction = denoise(leaf, t, **cond)
                misfit = _residual(self.y, self.forward(prediction.x0)).flatten(1)
                kept.append(torch.autograd.grad(torch.linalg.vector_norm(misfit, dim=1).sum(), leaf)[0])
            return detached(prediction)

        moved = move(Each(look))
        return moved - self.zeta * kept[0]


def pigdm(denoise: Estimate, sde: SDE, forward: Forward, y: Tensor, std: float, gaussian: Gaussian) -> Guided:
    """Pseudoinverse guidance with the covariance of a moment-matched Gaussian: a linear measurement told to a denoiser.

        x0 <- x0 + J A^T (A S A^T + std^2)^(-1) (y - A x0),    J = sigma^2 / alpha (d x0 / d x)^T,    S = Cov[x_0 | x_t]

    J is the denoiser's own covariance of x_0 given x_t, by one vector-Jacobian product; S that of the moment-matched
    Gaussian N(m, C), r^2 C / (C + r^2) with r = sigma / alpha, and for an isotropic one the r_t^2 of the paper. Where
    the data are Gaussian and the guess is right it is E[x_0 | x_t, y], exactly. Elsewhere it errs as the guess does: S
    of a mixture depends on x_t. The inverse is applied by conjugate gradients.

    Args:
        forward: A, linear; its transpose is found by differentiation.
        y: what was measured of each example, or of all.
        std: of the noise in y, at least 0; some of it steadies an A that is close to singular.
        gaussian: moment-matched Gaussian of the data, with directions if they are known; ``Gaussian.standard(x)`` is
            the paper's for VP, and more than the variance of the data leans too little.
    Shapes: y (B, *) or (1, *).
    Raises: ValueError for an A that is not linear, a y that A does not give, or std below 0.
    References: Song, Vahdat, Mardani, Kautz, "Pseudoinverse-Guided Diffusion Models for Inverse Problems", 2023,
        section 3; Rozet et al., "Learning Diffusion Priors from Observations by Expectation Maximization", 2024, for
        more than an isotropic covariance, and for conjugate gradients. arXiv:2405.13712
    """
    _check_linear(forward, gaussian.mean.to(y.device, y.dtype))

    def guessed(look: _Look) -> Map:
        guess = gaussian.like(look.x0)
        flat = look.ratio.reshape(-1, 1) if isinstance(look.ratio, Tensor) else look.ratio
        return lambda z: guess.apply(lambda v: v * flat**2 / (v + flat**2), z)

    return _guided(denoise, sde, forward, y, std, guessed, _Counted(_MOST_ITERATIONS))


def moment_matching(
    denoise: Estimate, sde: SDE, forward: Forward, y: Tensor, std: float, iterations: int = 5
) -> Guided:
    """As ``pigdm`` with the denoiser's own covariance: moment matching posterior sampling.

        x0 <- x0 + J A^T (A J A^T + std^2)^(-1) (y - A x0),    J = sigma^2 / alpha (d x0 / d x)^T

    J is Cov[x_0 | x_t], whatever the data are, if the denoiser is right; so nothing has to be guessed, and what is left
    of the error is that p(x_0 | x_t) is taken for a Gaussian. Each iteration costs one more vector-Jacobian product.
    The Jacobian of a small network can be far from symmetric; samples then run away, and ``pigdm`` is safer.

    Args:
        forward, y, std: as ``pigdm``.
        iterations: of conjugate gradients, at most; few also keep a J that a network has wrong from doing harm.
    Shapes, Raises: as ``pigdm``; ValueError for less than one iteration.
    Reference: Rozet, Andry, Lanusse, Louppe, "Learning Diffusion Priors from Observations by Expectation Maximization",
        2024, section 4.2, algorithm 3. arXiv:2405.13712
    """
    if iterations < 1:
        raise ValueError(f"iterations {iterations}: need at least 1")

    def solve(matrix: Map, b: Tensor, ratio: Time) -> Tensor:
        return _conjugate_gradients(matrix, b, iterations)[0]

    guided = _guided(denoise, sde, forward, y, std, lambda look: look.jacobian, solve)
    checked: list[bool] = []

    def first_checked(x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        if not checked:
            _check_linear(forward, x.new_empty(x.shape[1:]))
            checked.append(True)
        return guided(x, t, **cond)

    return first_checked


Map = Callable[[Tensor], Tensor]


class _Look(NamedTuple):
    """What one evaluation of the denoiser tells of x_0.

    x0: the estimate.
    ratio: sigma / alpha.
    jacobian: z -> sigma^2 / alpha (d x0 / d x)^T z.
    """

    x0: Tensor
    ratio: Time
    jacobian: Map


def _guided(
    denoise: Estimate,
    sde: SDE,
    forward: Forward,
    y: Tensor,
    std: float,
    covariance_of: Callable[[_Look], Map],
    solve: Callable[[Map, Tensor, Time], Tensor],
) -> Guided:
    """x0 + J A^T (A S A^T + std^2)^(-1) (y - A x0), with S as ``covariance_of`` has it."""
    if not std >= 0:
        raise ValueError(f"std {std}: need the standard deviation of the noise in y, 0 or more")
    denoise = as_denoiser(denoise, sde)

    def guided(x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        marginal = sde.marginal(t)
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            prediction = denoise(leaf, t, **cond)
            start = prediction.x0.detach().requires_grad_()
            seen = forward(start)

            def transpose(v: Tensor) -> Tensor:
                return torch.autograd.grad(seen, start, v, retain_graph=True)[0]

            def jacobian(z: Tensor) -> Tensor:
                scale = marginal.sigma**2 / marginal.alpha
                return scale * torch.autograd.grad(prediction.x0, leaf, z, retain_graph=True)[0]

            covariance = covariance_of(_Look(prediction.x0.detach(), marginal.ratio, jacobian))
            with torch.no_grad():
                residual = _residual(y, seen.detach())
                matrix = lambda v: forward(covariance(transpose(v))) + std**2 * v  # noqa: E731
                solved = solve(matrix, residual, marginal.ratio)
                x0 = prediction.x0 + jacobian(transpose(solved))
        return detached(Prediction(x0, prediction.v))

    return guided


class _Counted:
    """Conjugate gradients with as many iterations as were needed at more noise, and half as many again.

    With the covariance of a Gaussian, systems are worst conditioned at most noise. So the host reads whether all
    examples have converged only where there is more noise than before, which in sampling is the first evaluation.

    Args:
        most: iterations at most.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.needed: dict[torch.dtype, tuple[float, int]] = {}

    def __call__(self, matrix: Map, b: Tensor, ratio: Time) -> Tensor:
        noise, num = self.needed.get(b.dtype, (0.0, 0))
        if not isinstance(ratio, Tensor) and ratio <= noise:
            return _conjugate_gradients(matrix, b, min(self.most, num + (num + 1) // 2))[0]
        v, num = _conjugate_gradients(matrix, b, self.most, stop=True)
        if not isinstance(ratio, Tensor):
            self.needed[b.dtype] = ratio, num
        return v


def _conjugate_gradients(matrix: Map, b: Tensor, iterations: int, stop: bool = False) -> tuple[Tensor, int]:
    """The solution of matrix v = b for each example, symmetric and not negative, and the iterations made; b (B, *).

    An example that has come to the end of its digits stays as it is.

    Args:
        stop: whether to end when all have, for which the host waits in each iteration.
    Reference: Hestenes, Stiefel, "Methods of Conjugate Gradients for Solving Linear Systems", 1952.
    """
    shape = (-1, *[1] * (b.ndim - 1))
    v, left, size = torch.zeros_like(b), b, _square(b)
    direction, enough = left, size * (4 * torch.finfo(b.dtype).eps) ** 2
    iterations = min(2 * b.shape[1:].numel(), iterations)
    for done in range(iterations):
        going = size > enough
        if stop and not going.any():
            return v, done
        image = matrix(direction)
        curvature = (direction * image).flatten(1).sum(1)
        going &= curvature > 0
        length = torch.where(going, size / torch.where(going, curvature, 1), 0)
        v = v + length.reshape(shape) * direction
        left = left - length.reshape(shape) * image
        before, size = size, torch.where(going, _square(left), 0)
        direction = left + (size / torch.where(before > 0, before, 1)).reshape(shape) * direction
    return v, iterations


_MOST_ITERATIONS = 100


def _square(x: Tensor) -> Tensor:
    return x.flatten(1).square().sum(1)


def _residual(y: Tensor, seen: Tensor) -> Tensor:
    """y - A x0, where y is what A can give."""
    if y.shape[1:] != seen.shape[1:] or len(y) not in (1, len(seen)):
        raise ValueError(f"y is of shape {tuple(y.shape)}, and A gives {tuple(seen.shape)}: need that, or one for all")
    return y.to(seen) - seen


def _check_linear(forward: Forward, like: Tensor) -> None:
    """Raise unless A(u - 2 v) = A u - 2 A v on two examples."""
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(2, 1, *like.shape, dtype=like.dtype, generator=generator).to(like.device)
    with torch.no_grad():
        parts, whole = (forward(u), 2 * forward(v)), forward(u - 2 * v)
    size = sum(part.norm() for part in parts)
    if not (whole - parts[0] + parts[1]).norm() <= 1e-3 * size:
        raise ValueError("the measurement is not linear: pigdm takes a linear one; use DPS")
