"""Guidance against the exact posteriors of a mixture of two classes."""

from collections.abc import Iterator

import torch
from torch import Tensor

from score_sde.samplers.guidance import classifier, classifier_free
from score_sde.sde_lib import SDE, SDES, GaussianMixture, Prediction
from score_sde.sde_lib.process import Time
from score_sde.selftest.rows import Row, Setting, distance, worst


class TwoClasses:
    """Exact conditional denoiser of a mixture whose components are its classes."""

    def __init__(self, sde: SDE, setting: Setting) -> None:
        weights, means = setting.tensor([0.3, 0.7]), 1.2 * setting.normals(2, 2, seed=4)
        variances = setting.tensor([[0.1, 0.4], [0.3, 0.2]])
        self.sde, self.log_weights = sde, weights.log()
        self.whole = GaussianMixture(weights, means, variances)
        self.classes = [GaussianMixture(weights[:1], means[k, None], variances[k, None]) for k in (0, 1)]

    def __call__(self, x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        alpha, sigma, _ = self.sde.marginal(t)
        x0 = self.whole.posterior_mean(x, alpha, sigma)
        for k, mixture in enumerate(self.classes):
            of_class = cond["keep"] & (cond["label"] == k)
            x0 = torch.where(of_class[:, None], mixture.posterior_mean(x, alpha, sigma), x0)
        return Prediction(x0)

    def log_posterior(self, x: Tensor, t: Time, label: Tensor) -> Tensor:
        """Returns log p(y | x_t), by Bayes' rule; (B,)."""
        alpha, sigma, _ = self.sde.marginal(t)
        joint = [w + mixture.log_prob(x, alpha, sigma) for w, mixture in zip(self.log_weights, self.classes)]
        return torch.stack(joint, 1).gather(1, label[:, None])[:, 0] - self.whole.log_prob(x, alpha, sigma)


def check(setting: Setting) -> Iterator[Row]:
    """Checks scales 0, 1 and 3 of both kinds, with one time for the batch and a time per example."""
    for kind in ("classifier-free", "classifier"):
        for scale in (0.0, 1.0, 3.0):
            found = worst(error(kind, scale, make(), setting) for make in SDES.values())
            yield Row(f"{kind} guidance of scale {scale:g} against the exact posterior", found, 1000 * setting.rounding)


def error(kind: str, scale: float, sde: SDE, setting: Setting) -> float:
    """Returns the error of x0 against the guided score, relative to 1 + sigma / alpha.

    The guided score is (1 - scale) grad log p(x) + scale grad log p(x | y).
    """
    exact, errors = TwoClasses(sde, setting), []
    label = torch.tensor([0, 1, 0, 1, 1], device=setting.device)
    every = torch.ones(5, dtype=torch.bool, device=setting.device)
    number = sde.time(torch.tensor(1.0, dtype=torch.float64)).item()
    column = setting.tensor(sde.time(torch.linspace(-5, 5, 5, dtype=torch.float64)))[:, None]
    for t in (number, column):
        alpha, sigma, _ = sde.marginal(t)
        x = (alpha + sigma) * setting.normals(5, 2)
        if kind == "classifier-free":
            found = classifier_free(exact, scale)(x, t, label=label).x0
        else:

            def unconditional(x: Tensor, t: Time, **cond: Tensor) -> Prediction:
                return exact(x, t, keep=~every, label=label)

            def log_prob(x: Tensor, t: Time) -> Tensor:
                return exact.log_posterior(x, t, label)

            found = classifier(unconditional, sde, log_prob, scale)(x, t).x0
        scores = [(alpha * exact(x, t, keep=keep, label=label).x0 - x) / sigma**2 for keep in (~every, every)]
        expected = (x + sigma**2 * ((1 - scale) * scores[0] + scale * scores[1])) / alpha
        errors.append(distance(alpha * found / (alpha + sigma), alpha * expected / (alpha + sigma)))
    return worst(errors)
