"""From whole numbers to densities: noise within the bin of a level, and its own density q.

    log P(levels) >= E_q [ log p(x) - log q(x) ]

A density of whole numbers may grow without limit; a bound by way of noise cannot.

Reference: Theis, van den Oord, Bethge, "A Note on the Evaluation of Generative Models", 2016. arXiv:1511.01844
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from score_sde.sde_lib.bound import decoder_time
from score_sde.sde_lib.process import SDE


def none(sde: SDE, t: float, x: Tensor, u: Tensor, bin_width: float) -> tuple[Tensor, Tensor]:
    """Real-valued data as they are."""
    return x, torch.zeros(len(x), dtype=torch.float64, device=x.device)


def uniform(sde: SDE, t: float, x: Tensor, u: Tensor, bin_width: float) -> tuple[Tensor, Tensor]:
    """x + w (u - 1/2), a place in the bin where any is as likely: for networks that saw such noise in training.

    Theis, van den Oord, Bethge, 2016, section 3.1.
    """
    return x + bin_width * (u - 0.5), -x.shape[1:].numel() * math.log(bin_width) + none(sde, t, x, u, bin_width)[1]


def truncated_normal(sde: SDE, t: float, x: Tensor, u: Tensor, bin_width: float) -> tuple[Tensor, Tensor]:
    """alpha x + sigma z, the noise of the process itself, cut at the bin's edges: for networks that saw bare levels.

        |z| <= c = alpha w / (2 sigma),    log q = sum of log N(z; 0, 1) - log sigma - log erf(c / sqrt 2)

    Reference: Zheng, Lu, Chen, Zhu, "Improved Techniques for Maximum Likelihood Estimation for Diffusion ODEs", 2023,
        section 4. arXiv:2305.03935
    """
    alpha, sigma, _ = sde.marginal(t)
    cut = alpha * bin_width / (2 * sigma)
    inside = math.erf(cut / math.sqrt(2))
    u = u.double().clamp(max=1 - 2**-25)  # where float32 rounds to 1, of which the quantile may be infinite
    z = torch.special.ndtri(0.5 + inside * (u - 0.5)).clamp(-cut, cut)
    constant = x.shape[1:].numel() * math.log(math.sqrt(2 * math.pi) * sigma * inside)
    log_q = (-0.5 * z.square()).flatten(1).sum(1) - constant
    return alpha * x + sigma * z.to(x), log_q


def data_time(name: str, sde: SDE, bin_width: float) -> float:
    """When data with this noise are measured, unless somebody says otherwise: ``sde.t_min``, but for truncated_normal.

    That needs a process whose noise fills the bin, as the decoder of the bound does: with less, log q grows and the
    network cannot follow; with more, neighbouring levels mix.
    """
    return decoder_time(sde, bin_width) if name == "truncated_normal" else sde.t_min


def edge(name: str) -> float:
    """Fraction of a solver's nodes that this noise needs close to the data; see ``sde_lib.nodes.logistic_uniform``.

    Truncated noise leaves bare levels just visible, and the flow moves fast until they are not. 0.3 has a tenth to a
    six hundredth of the error of 0 at 32 evaluations, on 17 to 256 levels (``benchmarks/likelihood_nodes.py``).
    """
    return 0.3 if name == "truncated_normal" else 0.0


Dequantization = Callable[[SDE, float, Tensor, Tensor, float], tuple[Tensor, Tensor]]

DEQUANTIZATIONS: dict[str, Dequantization] = {"none": none, "uniform": uniform, "truncated_normal": truncated_normal}
"""(sde, t, centres of bins x (B, *), u in (0, 1) shaped as x, width of a bin) -> (state at t, log q (B,) float64)."""
