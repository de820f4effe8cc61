"""Every parameterisation and conversion against the papers, and where time meets a network under autocast."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from score_sde.models.embeddings import LogSNREmbedding
from score_sde.sde_lib import PARAMETERIZATIONS, SDE, SDES, Denoiser
from score_sde.selftest.processes import interval
from score_sde.selftest.rows import Row, Setting, distance, exactly, worst

SIGMA_DATA = 0.6


def edm_target(alpha: Tensor, sigma: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
    """(x0 - c_skip x) / c_out for data of any scale alpha. Karras et al., 2022, eq. 8, table 1."""
    variance = alpha**2 * SIGMA_DATA**2 + sigma**2
    skip = alpha * SIGMA_DATA**2 / variance
    return (x0 - skip * (alpha * x0 + sigma * eps)) * variance.sqrt() / (sigma * SIGMA_DATA)


TARGETS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "x0": lambda alpha, sigma, x0, eps: x0,
    "eps": lambda alpha, sigma, x0, eps: eps,
    "score": lambda alpha, sigma, x0, eps: -eps / sigma,
    "scaled_score": lambda alpha, sigma, x0, eps: -eps,
    "v": lambda alpha, sigma, x0, eps: (alpha * eps - sigma * x0) / (alpha**2 + sigma**2).sqrt(),
    "flow": lambda alpha, sigma, x0, eps: eps - x0,
    "edm": edm_target,
}
"""What a perfect network would say of the pair (x0, eps)."""


class Oracle(nn.Module):
    """A network that says what it is told to, and remembers what it was asked."""

    def __init__(self, answer: Tensor | None = None) -> None:
        super().__init__()
        self.answer, self.asked = answer, []

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        self.asked.append((x, log_snr))
        return torch.zeros_like(x) if self.answer is None else self.answer


def check(setting: Setting) -> Iterator[Row]:
    """Targets to x0, the scale of the input, conversions, and float32 times under autocast."""
    for name in PARAMETERIZATIONS:
        if name in TARGETS:
            found = worst(estimate(name, make(), setting) for make in SDES.values())
            yield Row(f"{name}: the target of the papers gives back x0", found, 100 * setting.rounding)
    for name, make in SDES.items():
        sde = make()
        yield Row(
            f"{name}: eps, x0 and score convert into one another", conversions(sde, setting), 100 * setting.rounding
        )
        scale, told = network_input(sde, setting)
        yield Row(f"{name}: a network sees unit variance", scale, 16 * setting.rounding)
        yield Row(f"{name}: a network is told log-SNR", told, 1e-5)
    yield Row("autocast changes neither log-SNR nor the state that a network is given", autocast_input(setting), 0.0)
    yield Row("autocast leaves the embedding of log-SNR in float32", autocast_embedding(setting), 1e-5)


def pairs(sde: SDE, setting: Setting) -> tuple[Tensor, Tensor, Tensor]:
    """x0, eps (21, 2, 3) and times (21, 1, 1)."""
    t = setting.tensor(interval(sde, 21)).reshape(-1, 1, 1)
    return SIGMA_DATA * setting.normals(21, 2, 3), setting.normals(21, 2, 3, seed=1), t


def estimate(name: str, sde: SDE, setting: Setting) -> float:
    """|x0_hat - x0| / (1 + sigma / alpha) where the network says the target."""
    x0, eps, t = pairs(sde, setting)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    denoise = Denoiser(Oracle(TARGETS[name](alpha, sigma, x0, eps)), sde, name, SIGMA_DATA)
    return distance(denoise(alpha * x0 + sigma * eps, t).x0, x0, 1 + exactly(sigma / alpha))


def conversions(sde: SDE, setting: Setting) -> float:
    """x = alpha x0 + sigma eps, score = -eps / sigma, and back again; each error in units of its quantity."""
    x0, eps, t = pairs(sde, setting)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    x = sde.perturb(x0, eps, t)
    noisy, clean = 1 + exactly(sigma / alpha), 1 + exactly(alpha / sigma)
    return worst(
        [
            distance(x, alpha * x0 + sigma * eps, 1 + exactly(sigma)),
            distance(sde.eps(x, x0, t), eps, clean),
            distance(sde.x0(x, eps, t), x0, noisy),
            distance(exactly(sigma) * exactly(sde.score(x, x0, t)), -eps, clean),
            distance(sde.x0_of_score(x, -eps / sigma, t), x0, noisy),
        ]
    )


def network_input(sde: SDE, setting: Setting) -> tuple[float, float]:
    """How far c_in^2 (alpha^2 sigma_data^2 + sigma^2) is from 1, and the error of the log-SNR that is told."""
    x0, _, t = pairs(sde, setting)
    oracle = Oracle()
    alpha, sigma = exactly(sde.alpha(t)), exactly(sde.sigma(t))
    Denoiser(oracle, sde, "edm", SIGMA_DATA)(torch.ones_like(x0), t)
    c_in, log_snr = oracle.asked[0]
    variance = exactly(c_in) ** 2 * (alpha**2 * SIGMA_DATA**2 + sigma**2)
    expected = 2 * torch.log(alpha / sigma).flatten()
    found = distance(log_snr, expected, 1 + expected.abs())
    return distance(variance, 1.0), found if log_snr.dtype == torch.float32 else float("nan")


def autocast_input(setting: Setting) -> float:
    """Difference of what the network is given with autocast and without."""
    x0, _, t = pairs(SDES["vpsde"](), setting)
    oracle = Oracle()
    denoise = Denoiser(oracle, SDES["vpsde"](), "edm", SIGMA_DATA)
    denoise(x0, t)
    with torch.autocast(setting.device.type, torch.bfloat16):
        denoise(x0, t)
    (plain, log_snr), (x, told) = oracle.asked
    return worst([distance(x, plain), distance(told, log_snr)])


def autocast_embedding(setting: Setting) -> float:
    """Difference of the features of log-SNR under autocast from those in float64."""
    with torch.random.fork_rng(devices=[]):  # weights that do not depend on the groups before
        torch.manual_seed(0)
        embed = LogSNREmbedding(32).to(setting.device)
    l = torch.linspace(-9, 9, 19, device=setting.device)
    with torch.autocast(setting.device.type, torch.bfloat16):
        found = embed(l)
    return distance(found, embed.double()(l.double()))
