"""Warning for processes whose last level is not noise, so that samples start from the wrong distribution."""

import sys

from score_sde.engine import ranks
from score_sde.sde_lib import SDE, Gaussian, prior_divergence

LARGEST = 0.2
"""Largest KL divergence of the noisiest data from the prior without a warning, in nats."""


def warn(name: str, sde: SDE, gaussian: Gaussian) -> None:
    """Warns on standard error if data with this mean and covariance are not noise at the last time of the SDE."""
    gap = prior_divergence(sde, gaussian)
    if gap <= LARGEST or ranks.rank() > 0:
        return
    alpha, sigma, _ = sde.marginal(sde.t_max)
    print(
        f"warning: the last level of {name} is not noise: alpha(T) = {alpha:.3g}, sigma(T) = {sigma:.3g}. Data there "
        f"are {gap:.2g} nats from N(0, {sde.prior_std:.3g}^2), where samples begin, so samples and likelihoods are "
        "biased; raise beta_max, sigma_max or num_levels of the sde and train again",
        file=sys.stderr,
    )
