"""Moment-matched Gaussians for a mixture: the flow is exact with any of them, and cheapest with the data's moments."""

import torch

from score_sde.sde_lib import Gaussian

GUESSES = ("standard", "isotropic", "leading", "full")


def moment_matched(name, mixture):
    """N(0, I); a Gaussian with other moments; the mixture's moments, in a third of the directions or in all."""
    shape = mixture.shape
    if name == "standard":
        return Gaussian.standard(mixture.means.reshape(-1, *shape))
    if name == "isotropic":
        return Gaussian(torch.full(shape, 0.3, dtype=torch.float64), 0.4)
    values, vectors = torch.linalg.eigh(mixture.covariance)
    left_out = 0 if name == "full" else len(values) - len(values) // 3
    rest = values[: max(left_out, 1)].mean().item()
    return Gaussian(mixture.mean.reshape(shape), rest, values[left_out:], vectors[:, left_out:])
