"""Ground truth: distributions with an exact denoiser, score and density at every noise level.

Tests measure the order of every solver, every term of a likelihood and the optimum of every loss against them, on a CPU
and without a trained network.
"""

import math
from typing import TypedDict

import torch
from torch import Tensor

from score_sde.sde_lib.denoiser import Prediction
from score_sde.sde_lib.process import SDE, Time, check_state


class _Place(TypedDict):
    dtype: torch.dtype
    device: torch.device


class GaussianMixture:
    """x_0 ~ sum_k w_k N(m_k, Q_k diag(v_k) Q_k^T), on examples of any shape.

    The marginal of x = alpha x_0 + sigma eps is a mixture with variances alpha^2 v + sigma^2. Variances of 0 give a
    finite set of points.

    Args:
        weights: (K,), positive, not necessarily normalised.
        means: (K, *), where * is the shape of an example.
        variances: broadcast to (K, D) with D the number of dimensions of an example, at least 0.
        bases: None for the identity, else orthonormal (K, D, D), eigenvectors in columns.
    """

    def __init__(self, weights: Tensor, means: Tensor, variances: Time, bases: Tensor | None = None) -> None:
        self.shape = means.shape[1:]
        self.log_weights = torch.log(weights / weights.sum())
        self.means = means.flatten(1)
        self.variances = torch.as_tensor(variances, dtype=means.dtype, device=means.device).expand_as(self.means)
        self.bases = bases

    @classmethod
    def of_covariances(cls, weights: Tensor, means: Tensor, covariances: Tensor) -> "GaussianMixture":
        """Mixture with full covariances (K, D, D)."""
        variances, bases = torch.linalg.eigh(covariances)
        return cls(weights, means, variances.clamp_min(0), bases)

    @classmethod
    def of_points(cls, points: Tensor) -> "GaussianMixture":
        """Empirical distribution of points (N, *)."""
        return cls(points.new_ones(len(points)), points, 0.0)

    def log_prob(self, x: Tensor, alpha: Time = 1.0, sigma: Time = 0.0) -> Tensor:
        """Log-density in nats of x (B, *) under the marginal of alpha x_0 + sigma eps; (B,)."""
        return torch.logsumexp(self._components(x, alpha, sigma)[0], 1)

    def posterior_mean(self, x: Tensor, alpha: Time, sigma: Time, among: Tensor | None = None) -> Tensor:
        """E[x_0 | x], by Gaussian conditioning in each component, weighted with the components' posterior.

        Args:
            among: whether an example may belong to a component; default: to every component.
        Shapes: x (B, *); alpha, sigma numbers, 0-d or (B, 1, ..., 1); among bool (B, K); returns (B, *) in the dtype
            of x.
        """
        log_joint, residual, alpha, variance = self._components(x, alpha, sigma)
        log_joint = log_joint if among is None else log_joint.where(among, -math.inf)
        correction = self._to_data(alpha * self.variances / variance * residual)
        posterior = torch.softmax(log_joint, 1)[..., None]
        return (posterior * (self.means + correction)).sum(1).reshape(x.shape).to(x.dtype)

    def given(self, matrix: Tensor, y: Tensor, std: float) -> "GaussianMixture":
        """Posterior of x_0 given y = A x_0 + std n, n ~ N(0, I), a mixture.

            w_k <- w_k N(y; A m_k, S_k),    m_k <- m_k + K_k (y - A m_k),    C_k <- C_k - K_k A C_k,

        where S_k = A C_k A^T + std^2 and K_k = C_k A^T S_k^(-1).

        Args:
            matrix: A, acting on the flattened example.
            std: standard deviation of the noise in y, at least 0.
        Shapes: matrix (m, D); y of m entries.
        Raises: ValueError if y has no density: at std = 0 with linearly dependent rows of A.
        """
        matrix, y = matrix.to(self.means), y.to(self.means).flatten()
        eye = torch.eye(self.means.shape[1], **self._place)
        root = (eye if self.bases is None else self.bases) * self.variances[:, None, :].sqrt()  # C = root root^T
        seen = matrix @ root
        factor, failed = torch.linalg.cholesky_ex(seen @ seen.mT + std**2 * torch.eye(len(y), **self._place))
        if failed.any():
            raise ValueError(f"std {std}: the measurement has no density under this mixture; use fewer rows, or noise")
        residual = torch.linalg.solve_triangular(factor, (y - self.means @ matrix.mT)[..., None], upper=False)
        gain = torch.linalg.solve_triangular(factor, seen, upper=False)
        log_evidence = -0.5 * residual.square().sum((1, 2)) - factor.diagonal(dim1=1, dim2=2).log().sum(1)
        means = self.means + (root @ gain.mT @ residual)[..., 0]
        weights = torch.softmax(self.log_weights + log_evidence, 0)
        return self.of_covariances(weights, means.reshape(-1, *self.shape), root @ (eye - gain.mT @ gain) @ root.mT)

    def denoiser(self, sde: SDE, v: float | None = None) -> "ExactDenoiser":
        """Exact denoiser of this distribution."""
        return ExactDenoiser(self, sde, v)

    def sample(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        """Independent samples of x_0, (num, *); the generator is on the device of the means."""
        component = torch.multinomial(self.log_weights.exp(), num, replacement=True, generator=generator)
        z = torch.randn(num, self.means.shape[1], **self._place, generator=generator)
        offset = torch.sqrt(self.variances[component]) * z
        if self.bases is not None:
            offset = torch.einsum("nij,nj->ni", self.bases[component], offset)
        return (self.means[component] + offset).reshape(num, *self.shape)

    @property
    def mean(self) -> Tensor:
        """E[x_0], (D,)."""
        return self.log_weights.exp() @ self.means

    @property
    def covariance(self) -> Tensor:
        """Cov[x_0], (D, D)."""
        bases = torch.eye(self.means.shape[1], **self._place) if self.bases is None else self.bases
        within = (bases * self.variances[:, None, :]) @ bases.mT
        offset = self.means - self.mean
        return torch.einsum("k,kij->ij", self.log_weights.exp(), within + offset[:, :, None] * offset[:, None, :])

    @property
    def _place(self) -> _Place:
        return {"dtype": self.means.dtype, "device": self.means.device}

    def _components(self, x: Tensor, alpha: Time, sigma: Time) -> tuple[Tensor, ...]:
        """log(w_k p_k(x)) (B, K); residuals in each basis (B, K, D); alpha and the marginal variances for (B, K, D)."""
        x = x.flatten(1)[:, None, :].to(self.means.dtype)
        alpha, sigma = (_per_component(v, self.means) for v in (alpha, sigma))
        residual = x - alpha * self.means
        if self.bases is not None:
            residual = torch.einsum("bki,kij->bkj", residual, self.bases)
        variance = alpha**2 * self.variances + sigma**2
        log_density = -0.5 * (residual**2 / variance + torch.log(2 * math.pi * variance)).sum(-1)
        return self.log_weights + log_density, residual, alpha, variance

    def _to_data(self, coordinates: Tensor) -> Tensor:
        if self.bases is None:
            return coordinates
        return torch.einsum("bkj,kij->bki", coordinates, self.bases)


class ExactDenoiser:
    """E[x_0 | x_t] of a mixture under one SDE, with the interface of a denoiser.

    It takes the conditions of a class-conditional network, with a class for each component. With ``label`` it returns
    E[x_0 | x_t, component]; for examples with ``keep`` false it returns E[x_0 | x_t].

    Args:
        v: constant value of ``Prediction.v``.
    Shapes: x (B, *); label int64 (B,), 0 to K - 1; keep bool (B,).
    Raises: ValueError, when called, for another condition or label.
    """

    def __init__(self, mixture: GaussianMixture, sde: SDE, v: float | None = None) -> None:
        self.mixture, self.sde, self.v = mixture, sde, v

    def __call__(
        self, x: Tensor, t: Time, keep: Tensor | None = None, label: Tensor | None = None, **cond: Tensor
    ) -> Prediction:
        if cond:
            raise ValueError(f"unknown condition {next(iter(cond))!r}: an exact denoiser takes label and keep")
        check_state(x)
        among = None if label is None else self._of_label(label, keep, len(x))
        alpha, sigma, _ = self.sde.marginal(t)
        x0 = self.mixture.posterior_mean(x, alpha, sigma, among)
        return Prediction(x0, None if self.v is None else torch.full_like(x, self.v))

    def _of_label(self, label: Tensor, keep: Tensor | None, num: int) -> Tensor:
        """Whether each of ``num`` examples may belong to each component, bool (B, K)."""
        most = len(self.mixture.means)
        found = label.reshape(-1, 1) == torch.arange(most, device=label.device)
        found = found if keep is None else found | ~keep[:, None]
        if label.shape != (num,) or not found.any(1).all():
            raise ValueError(
                f"labels of shape {tuple(label.shape)} for {num} examples: need one for each, 0 to {most - 1}"
            )
        return found

    def score(self, x: Tensor, t: Time, **cond: Tensor) -> Tensor:
        """grad log p_t(x), shaped as x."""
        return self.sde.score(x, self(x, t, **cond).x0, t)

    def log_prob(self, x: Tensor, t: Time) -> Tensor:
        """Exact log-density in nats of the marginal at time t; (B,)."""
        alpha, sigma, _ = self.sde.marginal(t)
        return self.mixture.log_prob(x, alpha, sigma)


def _per_component(value: Time, means: Tensor) -> Tensor:
    """A number or a 0-d or (B, 1, ..., 1) coefficient, shaped to broadcast against (B, K, D)."""
    value = torch.as_tensor(value, dtype=means.dtype, device=means.device)
    return value if value.ndim == 0 else value.reshape(-1, 1, 1)
