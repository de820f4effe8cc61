"""The target of each parameterization, and a network with a given output."""

import torch
from torch import nn

# (alpha, sigma, sigma_data, x0, eps) -> the network's target, by definition.
TARGETS = {
    "x0": lambda alpha, sigma, sigma_data, x0, eps: x0,
    "eps": lambda alpha, sigma, sigma_data, x0, eps: eps,
    "score": lambda alpha, sigma, sigma_data, x0, eps: -eps / sigma,
    "scaled_score": lambda alpha, sigma, sigma_data, x0, eps: -eps,
    "v": lambda alpha, sigma, sigma_data, x0, eps: (alpha * eps - sigma * x0) / torch.sqrt(alpha**2 + sigma**2),
    "flow": lambda alpha, sigma, sigma_data, x0, eps: eps - x0,
    # The combination of x0 / sigma_data and eps with unit variance and no correlation with x.
    "edm": lambda alpha, sigma, sigma_data, x0, eps: (
        (sigma * x0 / sigma_data - alpha * sigma_data * eps) / torch.sqrt((alpha * sigma_data) ** 2 + sigma**2)
    ),
}

SIGMA_DATA = 0.7


class Fixed(nn.Module):
    """Network with a fixed output that records its inputs."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x, log_snr, **cond):
        self.x, self.log_snr, self.cond = x, log_snr, cond
        return self.output


def times(sde, num, ndim):
    ends = sde.log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)).tolist()
    return sde.time(torch.linspace(*ends, num, dtype=torch.float64)).reshape(-1, *[1] * ndim)


def state(sde, shape, num=6):
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, num, *shape, dtype=torch.float64, generator=generator)
    t = times(sde, num, len(shape))
    return SIGMA_DATA * x0, eps, t
