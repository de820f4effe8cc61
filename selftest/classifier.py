"""Cross-entropy at every noise level against the posterior of the component of a mixture, in closed form."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from score_sde.sde_lib import SDE, SDES, Classification, Classifier
from score_sde.selftest.rows import Row, Setting, distance, exactly, worst

SIGMA_DATA, WEIGHTS, MEANS, VARIANCES = 0.6, (0.3, 0.7), (-1.0, 0.8), (0.2, 0.5)
LEVELS, NODES = (-3.0, 0.0, 3.0), 48


class Exact(nn.Module):
    """log p(k | y) up to a constant, y = x / alpha, from what a network is told of it; tilted by parameters."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.tilt = nn.Parameter(setting.tensor(np.zeros((2, 2))))
        self.weights, self.means, self.variances = (setting.tensor(v) for v in (WEIGHTS, MEANS, VARIANCES))

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        noise = torch.exp(-log_snr.to(x.dtype))[:, None]
        y = x * (SIGMA_DATA**2 + noise) ** 0.5
        spread = self.variances + noise
        return (
            torch.log(self.weights / spread**0.5)
            - 0.5 * (y - self.means) ** 2 / spread
            + self.tilt[0]
            + self.tilt[1] * x
        )


def check(setting: Setting) -> Iterator[Row]:
    """Value and place of the optimum, on every process."""
    values, slopes = zip(*(optimum(make(), setting) for make in SDES.values()))
    yield Row("classification: the loss of the exact posterior is its entropy", worst(values), tolerance(setting))
    yield Row("classification: the exact posterior is where the loss is least", worst(slopes), tolerance(setting))


def tolerance(setting: Setting) -> float:
    """Log-SNR is told in float32."""
    return max(20 * setting.rounding, 1e-6)


def optimum(sde: SDE, setting: Setting) -> tuple[float, float]:
    """Error of the mean loss at the exact posterior, in nats, and its largest slope, by Gauss and Hermite's points."""
    nodes, shares = np.polynomial.hermite_e.hermegauss(NODES)
    label, data, noise, level = (v.ravel() for v in np.meshgrid(np.arange(2), nodes, nodes, LEVELS, indexing="ij"))
    share = np.multiply.outer(WEIGHTS, np.multiply.outer(shares, shares))[..., None] / shares.sum() ** 2
    share = np.broadcast_to(share, (2, NODES, NODES, len(LEVELS))).ravel()
    x0 = np.array(MEANS)[label] + np.sqrt(VARIANCES)[label] * data

    y, spread = x0 + np.exp(-0.5 * level) * noise, np.array(VARIANCES)[:, None] + np.exp(-level)
    density = np.array(WEIGHTS)[:, None] * np.exp(-0.5 * (y - np.array(MEANS)[:, None]) ** 2 / spread) / np.sqrt(spread)
    entropy = -(share * np.log(density[label, np.arange(len(y))] / density.sum(0))).sum()

    network = Exact(setting)
    t = sde.time(torch.tensor(level, dtype=torch.float64))
    draws = (setting.tensor(v)[:, None] for v in (x0, noise, t))
    classify = Classifier(network, sde, SIGMA_DATA)
    where = torch.as_tensor(label, device=setting.device)
    loss = Classification(sde)(classify, *draws, torch.randn_like, 0.0, label=where)
    (slope,) = torch.autograd.grad((setting.tensor(share) * loss).sum(), network.tilt)
    return distance((exactly(loss) * exactly(share)).sum(), entropy), distance(slope, 0.0)
