"""Posterior sampling for inverse problems: x_0 given a measurement y = A(x_0) + std n, with an unconditional model.

All methods differentiate the denoiser. ``pigdm`` and ``moment_matching`` are guidance for a linear A, exact for
Gaussian data, and work with any step, including ``ode``. The first costs one vector-Jacobian product per evaluation and
needs the covariance of the data; the second costs a few more products and needs no covariance. ``DPS`` takes any A and
wraps a step; its samples do not follow the posterior. ``benchmarks/posterior.py`` compares them.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from score_sde.samplers.guidance import Guided, detached
from score_sde.samplers.loop import Step
from score_sde.sde_lib import SDE, Gaussian, PerExample, for_examples
from score_sde.sde_lib.denoiser import Denoise, Estimate, Prediction, as_denoiser
from score_sde.sde_lib.process import Draw, Time
from score_sde.sde_lib.velocity import Indices

Forward = Callable[[Tensor], Tensor]
"""A, the measurement of a batch of examples, (B, *) -> (B, *), differentiable."""


class DPS(Step):
    """Diffusion posterior sampling: each step is followed by a gradient step on the misfit.

        x_s <- x_s - zeta grad |y - A(x0(x_t))|

    The gradient passes through the first evaluation of the wrapped step, so it needs no second one; zeta = 0 is the
    wrapped step. The last denoising counts as a step. The gradient of a norm does not decrease with the misfit, so zeta
    alone sets the step length, and low dimensions need a small one. The samples do not follow the posterior.

    Args:
        step: any step, best a stochastic one with many steps, such as the ancestral sampler of the paper.
        forward: A, differentiable.
        y: measurement of each example, or one for all.
        zeta: at least 0, for images usually 0.1 to 1.
    Shapes: y (B, *) or (1, *).
    Raises: ValueError for zeta below 0 or, when called, for y of another shape than the result of A.
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
        return self._guided(denoise, lambda denoise: self.step(denoise, x, t, s, draw))

    def finish(self, denoise: Denoise, x: Tensor, t: float, draw: Draw) -> Tensor:
        return self._guided(denoise, lambda denoise: self.step.finish(denoise, x, t, draw))

    def _guided(self, denoise: Denoise, move: Callable[[Denoise], Tensor]) -> Tensor:
        """State after ``move`` and a gradient step; the denoiser keeps the gradient of its first evaluation."""
        kept: list[Tensor] = []

        def make(indices: Indices) -> Guided:
            return partial(evaluate, for_examples(denoise, indices))

        def evaluate(denoise: Denoise, x: Tensor, t: Time, **cond: Tensor) -> Prediction:
            if kept:
                return denoise(x, t, **cond)
            with torch.inference_mode(False), torch.enable_grad():
                leaf = x.detach().clone().requires_grad_()
                prediction = denoise(leaf, t, **cond)
                misfit = _residual(self.y, self.forward(prediction.x0)).flatten(1)
                kept.append(torch.autograd.grad(torch.linalg.vector_norm(misfit, dim=1).sum(), leaf)[0])
            return detached(prediction)

        moved = move(PerExample(make))
        return moved - self.zeta * kept[0]


def pigdm(denoise: Estimate, sde: SDE, forward: Forward, y: Tensor, std: float, gaussian: Gaussian) -> Guided:
    """Pseudoinverse guidance for a linear measurement, with the covariance of a moment-matched Gaussian.

        x0 <- x0 + J A^T (A S A^T + std^2)^(-1) (y - A x0),    J = sigma^2 / alpha (d x0 / d x)^T,    S = Cov[x_0 | x_t]

    J is the covariance of x_0 given x_t according to the denoiser, applied by one vector-Jacobian product. S is the
    covariance according to the moment-matched Gaussian N(m, C), r^2 C / (C + r^2) with r = sigma / alpha; for an
    isotropic one it is the r_t^2 of the paper. If the data have this distribution, the result is exactly E[x_0 | x_t,
    y]. Otherwise S is an approximation: for a mixture it depends on x_t. Conjugate gradients apply the inverse.

    Args:
        forward: A, linear; differentiation gives its transpose.
        y: measurement of each example, or one for all.
        std: standard deviation of the noise in y, at least 0; positive values stabilise an A that is close to singular.
        gaussian: moment-matched Gaussian of the data, with directions if available; ``Gaussian.standard(x)`` is the
            choice of the paper for VP. A variance above the variance of the data makes the guidance too weak.
    Shapes: y (B, *) or (1, *).
    Raises: ValueError for an A that is not linear, a y that does not fit A, or std below 0.
    References: Song, Vahdat, Mardani, Kautz, "Pseudoinverse-Guided Diffusion Models for Inverse Problems", 2023,
        section 3; Rozet et al., "Learning Diffusion Priors from Observations by Expectation Maximization", 2024, for
        covariances that are not isotropic, and for conjugate gradients. arXiv:2405.13712
    """
    _check_linear(forward, gaussian.mean.to(y.device, y.dtype))

    def covariance(evaluation: _Evaluation) -> Map:
        prior = gaussian.like(evaluation.x0)
        ratio = evaluation.ratio
        flat = ratio.reshape(-1, 1) if isinstance(ratio, Tensor) else ratio
        return lambda z: prior.apply(lambda v: v * flat**2 / (v + flat**2), z)

    return _guided(denoise, sde, forward, y, std, covariance, _Counted(_MOST_ITERATIONS))


def moment_matching(
    denoise: Estimate, sde: SDE, forward: Forward, y: Tensor, std: float, iterations: int = 5
) -> Guided:
    """Moment matching posterior sampling: as ``pigdm``, with the covariance of the denoiser.

        x0 <- x0 + J A^T (A J A^T + std^2)^(-1) (y - A x0),    J = sigma^2 / alpha (d x0 / d x)^T

    If the denoiser is right, J is Cov[x_0 | x_t] for any data, so the only error left is the Gaussian approximation of
    p(x_0 | x_t). Each iteration costs one more vector-Jacobian product. The Jacobian of a small network can be far from
    symmetric; samples then diverge, and ``pigdm`` is safer.

    Args:
        forward, y, std: as ``pigdm``.
        iterations: largest number of conjugate gradient iterations; few iterations also limit the effect of a wrong J.
    Shapes, Raises: as ``pigdm``; ValueError for less than one iteration.
    Reference: Rozet, Andry, Lanusse, Louppe, "Learning Diffusion Priors from Observations by Expectation Maximization",
        2024, section 4.2, algorithm 3. arXiv:2405.13712
    """
    if iterations < 1:
        raise ValueError(f"iterations {iterations}: need at least 1")

    def solve(matrix: Map, b: Tensor, ratio: Time) -> Tensor:
        return _conjugate_gradients(matrix, b, iterations)[0]

    guided = _guided(denoise, sde, forward, y, std, lambda evaluation: evaluation.jacobian, solve)
    checked: list[bool] = []

    def first_checked(x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        if not checked:
            _check_linear(forward, x.new_empty(x.shape[1:]))
            checked.append(True)
        return guided(x, t, **cond)

    return first_checked


Map = Callable[[Tensor], Tensor]


class _Evaluation(NamedTuple):
    """Results of one evaluation of the denoiser.

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
    covariance_of: Callable[[_Evaluation], Map],
    solve: Callable[[Map, Tensor, Time], Tensor],
) -> Guided:
    """Denoiser x0 + J A^T (A S A^T + std^2)^(-1) (y - A x0), with S from ``covariance_of``."""
    if not std >= 0:
        raise ValueError(f"std {std}: need the standard deviation of the noise in y, 0 or more")
    denoise = as_denoiser(denoise, sde)

    def guided(x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        marginal = sde.marginal(t)
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            prediction = denoise(leaf, t, **cond)
            start = prediction.x0.detach().requires_grad_()
            measured = forward(start)

            def transpose(v: Tensor) -> Tensor:
                return torch.autograd.grad(measured, start, v, retain_graph=True)[0]

            def jacobian(z: Tensor) -> Tensor:
                scale = marginal.sigma**2 / marginal.alpha
                return scale * torch.autograd.grad(prediction.x0, leaf, z, retain_graph=True)[0]

            covariance = covariance_of(_Evaluation(prediction.x0.detach(), marginal.ratio, jacobian))
            with torch.no_grad():
                residual = _residual(y, measured.detach())
                matrix = lambda v: forward(covariance(transpose(v))) + std**2 * v  # noqa: E731
                solved = solve(matrix, residual, marginal.ratio)
                x0 = prediction.x0 + jacobian(transpose(solved))
        return detached(Prediction(x0, prediction.v))

    return guided


class _Counted:
    """Conjugate gradients with the number of iterations needed at a higher noise level, and half as many again.

    With the covariance of a Gaussian, the systems are worst conditioned at the highest noise. So the host waits for the
    convergence of all examples only at a noise level above all earlier ones, in sampling the first evaluation.

    Args:
        most: largest number of iterations.
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
    """Solution of matrix v = b, b (B, *), for symmetric semidefinite matrices, and the number of iterations.

    An example that has converged to machine precision stays unchanged.

    Args:
        stop: whether to end when all examples have converged, for which the host waits in each iteration.
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


def _residual(y: Tensor, measured: Tensor) -> Tensor:
    """y - A x0.

    Raises: ValueError if the shapes differ.
    """
    if y.shape[1:] != measured.shape[1:] or len(y) not in (1, len(measured)):
        raise ValueError(
            f"y is of shape {tuple(y.shape)}, and A gives {tuple(measured.shape)}: need the same, or one for all"
        )
    return y.to(measured) - measured


def _check_linear(forward: Forward, like: Tensor) -> None:
    """Raises ValueError unless A(u - 2 v) = A u - 2 A v on two examples."""
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(2, 1, *like.shape, dtype=like.dtype, generator=generator).to(like.device)
    with torch.no_grad():
        parts, whole = (forward(u), 2 * forward(v)), forward(u - 2 * v)
    size = sum(part.norm() for part in parts)
    if not (whole - parts[0] + parts[1]).norm() <= 1e-3 * size:
        raise ValueError("the measurement is not linear: pigdm takes a linear one; use DPS")
