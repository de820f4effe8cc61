"""Cross-entropy at several noise levels against the exact posterior of a mixture's components."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from score_sde.sde_lib import SDE, SDES, Classification, Classifier
from score_sde.selftest.rows import Row, Setting, distance, exactly, worst

SIGMA_DATA, WEIGHTS, MEANS, VARIANCES = 0.6, (0.3, 0.7), (-1.0, 0.8), (0.2, 0.5)
LEVELS, NODES = (-3.0, 0.0, 3.0), 48


class Exact(nn.Module):
    """Exact log p(k | y) up to a constant, y = x / alpha, from a network's inputs, plus a parametrised tilt."""

    num_classes = 2

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.tilt = nn.Parameter(setting.tensor(np.zeros((2, 2))))
        self.weights, self.means, self.variances = (setting.tensor(v) for v in (WEIGHTS, MEANS, VARIANCES))

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        return self.output(self.features(x, log_snr))

    def features(self, x: Tensor, log_snr: Tensor) -> Tensor:
        noise = torch.exp(-log_snr.to(x.dtype))[:, None]
        y = x * (SIGMA_DATA**2 + noise) ** 0.5
        spread = self.variances + noise
        return (
            torch.log(self.weights / spread**0.5)
            - 0.5 * (y - self.means) ** 2 / spread
            + self.tilt[0]
            + self.tilt[1] * x
        )

    def output(self, features: Tensor) -> Tensor:
        return features


def check(setting: Setting) -> Iterator[Row]:
    """Checks value and location of the optimum, on every process."""
    values, slopes = zip(*(optimum(make(), setting) for make in SDES.values()))
    yield Row("classification: the loss of the exact posterior is its entropy", worst(values), tolerance(setting))
    yield Row("classification: the loss is least at the exact posterior", worst(slopes), tolerance(setting))


def tolerance(setting: Setting) -> float:
    """Returns the allowed error; the network receives log-SNR in float32."""
    return max(20 * setting.rounding, 1e-6)


def optimum(sde: SDE, setting: Setting) -> tuple[float, float]:
    """Returns the error of the mean loss at the exact posterior, in nats, and its largest slope.

    Expectations are computed by Gauss-Hermite quadrature.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    label, data, noise, level = (v.ravel() for v in np.meshgrid(np.arange(2), nodes, nodes, LEVELS, indexing="ij"))
    mass = np.multiply.outer(WEIGHTS, np.multiply.outer(weights, weights))[..., None] / weights.sum() ** 2
    mass = np.broadcast_to(mass, (2, NODES, NODES, len(LEVELS))).ravel()
    x0 = np.array(MEANS)[label] + np.sqrt(VARIANCES)[label] * data

    y, spread = x0 + np.exp(-0.5 * level) * noise, np.array(VARIANCES)[:, None] + np.exp(-level)
    density = np.array(WEIGHTS)[:, None] * np.exp(-0.5 * (y - np.array(MEANS)[:, None]) ** 2 / spread) / np.sqrt(spread)
    entropy = -(mass * np.log(density[label, np.arange(len(y))] / density.sum(0))).sum()

    network = Exact(setting)
    t = sde.time(torch.tensor(level, dtype=torch.float64))
    clean, eps, times = (setting.tensor(v)[:, None] for v in (x0, noise, t))
    classify = Classifier(network, sde, SIGMA_DATA)
    labels = torch.as_tensor(label, device=setting.device)
    loss = Classification[Classifier](sde)(classify, clean, eps, times, torch.randn_like, 0.0, label=labels)
    (slope,) = torch.autograd.grad((setting.tensor(mass) * loss).sum(), network.tilt)
    return distance((exactly(loss) * exactly(mass)).sum(), entropy), distance(slope, 0.0)
