"""Trajectories on exact mixtures: initial states, exact images under the flow, and the marginals to be preserved."""

import torch

from score_sde.samplers import GRIDS, Noise, trajectory

REPRESENTATIVE = {"vpsde", "vesde", "rectified", "ddpm"}
"""Processes that represent the others in products: both limits of the noise, a bridge to the data, discrete levels."""

ORDERS = {
    **{"ddim": (1.0, 0.1), "heun": (2.0, 0.15), "plms": (2.0, 0.15), "pndm": (2.0, 0.15)},
    **dict.fromkeys(("multistep", "dpmpp_2m"), (2.0, 0.15)),
    **dict.fromkeys(("edm", "dpm_2s", "dpmpp_2s"), (2.0, 0.15)),
    **dict.fromkeys(("dpm", "dpmpp_3m", "deis", "dpm_3s"), (3.0, 0.3)),
    **{"rk4": (4.0, 0.3), "rk45": (5.0, 1.0)},
    **{"ipndm": (4.0, 0.5), "vab": (4.0, 1.0), "unipc": (4.0, 0.5), "adams": (5.0, 0.5)},
}
"""Order and its tolerance, on a grid that is not uniform in sigma / alpha."""

ALONE = {
    "ode": {"rtol": 0.03, "atol": 0.03},
    "dpm_adaptive": {"control_rtol": 0.5, "control_atol": 0.5},
    "adaptive_sde": {"control_rtol": 0.5, "control_atol": 0.5},
}
"""Adaptive steps, with tolerances that need few evaluations, for tests that do not depend on accuracy."""

OF_TIME = {"plms", "pndm", "deis"}
"""Steps whose formulas depend on the time itself and so differ between processes."""


def noises(num):
    return Noise(torch.arange(num))


class Counted:
    """A callable that counts its calls."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.function(*args, **kwargs)


def terminal(mixture, sde, num, seed=0):
    """Exact draws of the marginal at t_max."""
    generator, (alpha, sigma, _) = torch.Generator().manual_seed(seed), sde.marginal(sde.t_max)
    x0 = mixture.sample(num, generator)
    return alpha * x0 + sigma * torch.randn(x0.shape, dtype=x0.dtype, generator=generator)


def distribution(mixture, x, alpha, sigma):
    """Cumulative distribution of alpha x_0 + sigma eps for a mixture on the line."""
    deviation = torch.sqrt(alpha**2 * mixture.variances[:, 0] + sigma**2)
    return (mixture.log_weights.exp() * torch.special.ndtr((x - alpha * mixture.means[:, 0]) / deviation)).sum(1)


def transported(mixture, x, first, last):
    """Image of x (B, 1) under the probability flow, which on the line preserves the cumulative distribution; by
    bisection."""
    target = distribution(mixture, x, first.alpha, first.sigma)
    low, high = torch.full_like(x, -1e4), torch.full_like(x, 1e4)
    for _ in range(100):
        middle = 0.5 * (low + high)
        below = (distribution(mixture, middle, last.alpha, last.sigma) < target)[:, None]
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return middle


def flow(step, denoise, x, times):
    *_, x, _ = trajectory(step, denoise, x, times, torch.randn_like)
    return x


SHARES = {}


def shares_of_modes(mixture):
    """Fraction of 200,000 draws nearest to each mean; cached for each mixture."""
    key = tuple(torch.cat([mixture.means.flatten(), mixture.covariance.flatten()]).tolist())
    if key not in SHARES:
        nearest = torch.cdist(mixture.sample(200_000, torch.Generator().manual_seed(9)), mixture.means).argmin(1)
        SHARES[key] = nearest.bincount(minlength=len(mixture.means)).double() / len(nearest)
    return SHARES[key]


def assert_marginal(mixture, sde, x, limit=3.0):
    """Asserts mean, covariance and weights of the modes of the marginal at t_min, each within its standard errors."""
    alpha, sigma, _ = sde.marginal(sde.t_min)
    num, dimensions = x.shape
    x = x / alpha
    covariance = mixture.covariance + (sigma / alpha) ** 2 * torch.eye(dimensions, dtype=x.dtype)
    offset = x - mixture.mean
    assert (offset.mean(0).abs() < limit * (covariance.diagonal() / num).sqrt()).all()
    products = offset[:, :, None] * offset[:, None, :]
    assert ((products.mean(0) - covariance).abs() < limit * products.std(0) / num**0.5).all()
    nearest = torch.cdist(x, mixture.means).argmin(1)
    for k, share in enumerate(shares_of_modes(mixture)):
        stderr = (share * (1 - share) * (1 / num + 1 / 200_000)).sqrt()
        assert abs((nearest == k).double().mean() - share) < limit * stderr


def evolve(mixture, sde, step, num, num_steps):
    """Returns the state at t_min."""
    times = GRIDS["log_snr"](sde, num_steps)
    *_, x, _ = trajectory(step, mixture.denoiser(sde, 0.5), terminal(mixture, sde, num, seed=1), times, noises(num))
    return x
