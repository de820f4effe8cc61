"""Every parameterization and conversion against the papers, and the network's inputs with and without autocast."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from score_sde.models.embeddings import LogSNREmbedding
from score_sde.sde_lib import PARAMETERIZATIONS, SDE, SDES, Denoiser
from score_sde.selftest.processes import interval
from score_sde.selftest.rows import Row, Setting, distance, exactly, worst

SIGMA_DATA = 0.6


def edm_target(alpha: Tensor, sigma: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
    """Returns (x0 - c_skip x) / c_out at signal scale alpha. Karras et al., 2022, eq. 8, table 1."""
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
"""Training target for the pair (x0, eps)."""


class Oracle(nn.Module):
    """A network that returns a given output (default 0) and records its inputs."""

    def __init__(self, output: Tensor | None = None) -> None:
        super().__init__()
        self.output = output
        self.inputs: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        self.inputs.append((x, log_snr))
        return torch.zeros_like(x) if self.output is None else self.output


def check(setting: Setting) -> Iterator[Row]:
    """Checks targets, conversions, the scale of the network's input, and float32 times under autocast."""
    for name in PARAMETERIZATIONS:
        if name in TARGETS:
            found = worst(estimate(name, make(), setting) for make in SDES.values())
            yield Row(f"{name}: the target of the papers gives back x0", found, 100 * setting.rounding)
    for name, make in SDES.items():
        sde = make()
        yield Row(
            f"{name}: eps, x0 and score convert into one another", conversions(sde, setting), 100 * setting.rounding
        )
        scale, log_snr = network_input(sde, setting)
        yield Row(f"{name}: unit variance of the network's input", scale, 16 * setting.rounding)
        yield Row(f"{name}: log-SNR passed to the network", log_snr, 1e-5)
    yield Row("autocast leaves the network's inputs, state and log-SNR, unchanged", autocast_input(setting), 0.0)
    yield Row("autocast leaves the embedding of log-SNR in float32", autocast_embedding(setting), 1e-5)


def pairs(sde: SDE, setting: Setting) -> tuple[Tensor, Tensor, Tensor]:
    """Returns x0, eps (21, 2, 3) and times (21, 1, 1)."""
    t = setting.tensor(interval(sde, 21)).reshape(-1, 1, 1)
    return SIGMA_DATA * setting.normals(21, 2, 3), setting.normals(21, 2, 3, seed=1), t


def estimate(name: str, sde: SDE, setting: Setting) -> float:
    """Returns |x0_hat - x0| / (1 + sigma / alpha) for a network that returns the target."""
    x0, eps, t = pairs(sde, setting)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    denoise = Denoiser(Oracle(TARGETS[name](alpha, sigma, x0, eps)), sde, name, SIGMA_DATA)
    return distance(denoise(alpha * x0 + sigma * eps, t).x0, x0, 1 + exactly(sigma / alpha))


def conversions(sde: SDE, setting: Setting) -> float:
    """Returns the error of x = alpha x0 + sigma eps, score = -eps / sigma and their inverses, in natural units."""
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
    """Returns |c_in^2 (alpha^2 sigma_data^2 + sigma^2) - 1|, and the error of the log-SNR passed to the network."""
    x0, _, t = pairs(sde, setting)
    oracle = Oracle()
    alpha, sigma = exactly(sde.alpha(t)), exactly(sde.sigma(t))
    Denoiser(oracle, sde, "edm", SIGMA_DATA)(torch.ones_like(x0), t)
    c_in, log_snr = oracle.inputs[0]
    variance = exactly(c_in) ** 2 * (alpha**2 * SIGMA_DATA**2 + sigma**2)
    expected = 2 * torch.log(alpha / sigma).flatten()
    found = distance(log_snr, expected, 1 + expected.abs())
    return distance(variance, 1.0), found if log_snr.dtype == torch.float32 else float("nan")


def autocast_input(setting: Setting) -> float:
    """Returns the difference between the network's inputs with autocast and without."""
    x0, _, t = pairs(SDES["vpsde"](), setting)
    oracle = Oracle()
    denoise = Denoiser(oracle, SDES["vpsde"](), "edm", SIGMA_DATA)
    denoise(x0, t)
    with torch.autocast(setting.device.type, torch.bfloat16):
        denoise(x0, t)
    (plain, log_snr), (x, under_autocast) = oracle.inputs
    return worst([distance(x, plain), distance(under_autocast, log_snr)])


def autocast_embedding(setting: Setting) -> float:
    """Returns the difference between the embedding of log-SNR under autocast and in float64."""
    with torch.random.fork_rng(devices=[]):  # weights independent of the groups before
        torch.manual_seed(0)
        embed = LogSNREmbedding(32).to(setting.device)
    l = torch.linspace(-9, 9, 19, device=setting.device)
    with torch.autocast(setting.device.type, torch.bfloat16):
        found = embed(l)
    return distance(found, embed.double()(l.double()))
