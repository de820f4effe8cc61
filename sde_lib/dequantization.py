"""Dequantization: noise with density q within the bin of a level.

    log P(levels) >= E_q [ log p(x) - log q(x) ]

A density fitted to integers may grow without bound; with dequantization noise it cannot.

Reference: Theis, van den Oord, Bethge, "A Note on the Evaluation of Generative Models", 2016. arXiv:1511.01844
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from score_sde.sde_lib.bound import decoder_time
from score_sde.sde_lib.process import SDE


def none(sde: SDE, t: float, x: Tensor, u: Tensor, bin_width: float) -> tuple[Tensor, Tensor]:
    """Returns real-valued data unchanged, with log q = 0."""
    return x, torch.zeros(len(x), dtype=torch.float64, device=x.device)


def uniform(sde: SDE, t: float, x: Tensor, u: Tensor, bin_width: float) -> tuple[Tensor, Tensor]:
    """x + w (u - 1/2), uniform within the bin, for networks trained on data with this noise.

    Theis, van den Oord, Bethge, 2016, section 3.1.
    """
    return x + bin_width * (u - 0.5), -x.shape[1:].numel() * math.log(bin_width) + none(sde, t, x, u, bin_width)[1]


def truncated_normal(sde: SDE, t: float, x: Tensor, u: Tensor, bin_width: float) -> tuple[Tensor, Tensor]:
    """alpha x + sigma z, noise of the process truncated at the bin's edges, for networks trained on levels without
    noise.

        |z| <= c = alpha w / (2 sigma),    log q = sum of log N(z; 0, 1) - log sigma - log erf(c / sqrt 2)

    Reference: Zheng, Lu, Chen, Zhu, "Improved Techniques for Maximum Likelihood Estimation for Diffusion ODEs", 2023,
        section 4. arXiv:2305.03935
    """
    alpha, sigma, _ = sde.marginal(t)
    cut = alpha * bin_width / (2 * sigma)
    inside = math.erf(cut / math.sqrt(2))
    u = u.double().clamp(max=1 - 2**-25)  # float32 may round to 1, with an infinite quantile
    z = torch.special.ndtri(0.5 + inside * (u - 0.5)).clamp(-cut, cut)
    constant = x.shape[1:].numel() * math.log(math.sqrt(2 * math.pi) * sigma * inside)
    log_q = (-0.5 * z.square()).flatten(1).sum(1) - constant
    return alpha * x + sigma * z.to(x), log_q


def data_time(name: str, sde: SDE, bin_width: float) -> float:
    """Default time of data with this noise: ``sde.t_min``, or ``decoder_time`` for truncated_normal.

    truncated_normal needs noise that fills the bin, as the decoder of the bound does. With less noise, log q grows
    beyond the accuracy of the network; with more, neighbouring levels mix.
    """
    return decoder_time(sde, bin_width) if name == "truncated_normal" else sde.t_min


def edge(name: str) -> float:
    """Fraction of a solver's nodes close to the data for this noise; see ``sde_lib.nodes.logistic_uniform``.

    With truncated noise the levels are still distinguishable, and the flow is fast until the noise hides them. At 32
    evaluations and 17 to 256 levels, 0.3 has 1/10 to 1/600 of the error of 0 (``benchmarks/likelihood_nodes.py``).
    """
    return 0.3 if name == "truncated_normal" else 0.0


Dequantization = Callable[[SDE, float, Tensor, Tensor, float], tuple[Tensor, Tensor]]

DEQUANTIZATIONS: dict[str, Dequantization] = {"none": none, "uniform": uniform, "truncated_normal": truncated_normal}
"""(sde, t, centres of bins x (B, *), u in (0, 1) shaped as x, width of a bin) -> (state at t, log q (B,) float64)."""
