"""Denoisers: preconditioning of networks and their output as an estimate of the data.

A denoiser is any ``Denoise``, called as ``denoise(x, t, **cond) -> Prediction``, such as
``sde_lib.exact.ExactDenoiser``. Solvers and guidance also accept a function that returns x0 alone (``as_denoiser``).
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor, nn

from score_sde.sde_lib.discrete import Discrete
from score_sde.sde_lib.process import SDE, Marginal, Time, check_same, check_state, in_dtype


class Prediction(NamedTuple):
    """Output of a denoiser.

    x0: estimate of E[x_0 | x_t], shaped as x.
    v: learned weight, shaped as x, that interpolates between the log variances of the posterior (v = 0) and of the
        forward step (v = 1), see ``SDE.reverse``; None if not learned.
    """

    x0: Tensor
    v: Tensor | None = None


class Denoise(Protocol):
    """Interface of denoisers: takes states x (B, *), a time t, and conditions with one entry for each example."""

    def __call__(self, x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        """Prediction of x_0."""


Estimate = Denoise | Callable[..., Tensor]
"""A denoiser, or a function (x, t, **cond) -> x0, which ``as_denoiser`` converts to one."""

Coefficients = tuple[Time, Time]

T = TypeVar("T")
P = ParamSpec("P")


def _x0(sde: SDE, t: Time, marginal: Marginal[Time], sigma_data: float) -> Coefficients:
    """F estimates the data."""
    return 0.0, 1.0


def _eps(sde: SDE, t: Time, marginal: Marginal[Time], sigma_data: float) -> Coefficients:
    """F estimates the noise: x0 = (x - sigma F) / alpha. Ho, Jain, Abbeel, 2020, eq. 9. arXiv:2006.11239"""
    return 1 / marginal.alpha, -marginal.ratio


def _score(sde: SDE, t: Time, marginal: Marginal[Time], sigma_data: float) -> Coefficients:
    """F estimates the score: x0 = (x + sigma^2 F) / alpha. Song, Ermon, 2019. arXiv:1907.05600"""
    alpha, sigma, _ = marginal
    return 1 / alpha, sigma**2 / alpha


def _scaled_score(sde: SDE, t: Time, marginal: Marginal[Time], sigma_data: float) -> Coefficients:
    """F estimates sigma times the score, that is minus the noise. Karras et al., 2022, table 1, column VE."""
    return 1 / marginal.alpha, marginal.ratio


def _v(sde: SDE, t: Time, marginal: Marginal[Time], sigma_data: float) -> Coefficients:
    """F estimates (alpha eps - sigma x0) / r, r^2 = alpha^2 + sigma^2. Salimans, Ho, 2022, app. D. arXiv:2202.00512"""
    alpha, sigma, _ = marginal
    radius = (alpha**2 + sigma**2) ** 0.5
    return alpha / radius**2, -sigma / radius


def _flow(sde: SDE, t: Time, marginal: Marginal[Time], sigma_data: float) -> Coefficients:
    """F estimates eps - x0, the velocity of ``rectified``. Lipman et al., 2022, eq. 23. arXiv:2210.02747"""
    alpha, sigma, _ = marginal
    return 1 / (alpha + sigma), -sigma / (alpha + sigma)


def _edm(sde: SDE, t: Time, marginal: Marginal[Time], sigma_data: float) -> Coefficients:
    """F has unit variance, and c_out, the factor of its error, is minimal. Karras et al., 2022, table 1, on any SDE."""
    alpha, sigma, _ = marginal
    radius = ((alpha * sigma_data) ** 2 + sigma**2) ** 0.5
    return alpha * sigma_data**2 / radius**2, sigma * sigma_data / radius


PARAMETERIZATIONS: dict[str, Callable[[SDE, Time, Marginal[Time], float], Coefficients]] = {
    "x0": _x0,
    "eps": _eps,
    "score": _score,
    "scaled_score": _scaled_score,
    "v": _v,
    "flow": _flow,
    "edm": _edm,
}
"""(sde, t, sde.marginal(t), sigma_data) -> (c_skip, c_out) of x0 = c_skip x + c_out F."""


def _mean(sde: SDE, t: Time, marginal: Marginal[Time], sigma_data: float) -> Coefficients:
    """F estimates the mean of q(x_{t-1} | x_t, x_0). Ho, Jain, Abbeel, 2020, eq. 7, 8. arXiv:2006.11239"""
    of_x, of_x0, _ = sde.bridge_weights(t, t - 1, eta=1.0)
    return -of_x / of_x0, 1 / of_x0


CHAIN_PARAMETERIZATIONS = {"mean": _mean}
"""As ``PARAMETERIZATIONS``, for discrete-time processes."""


def _nearest_level(sde: SDE, t: Time, marginal: Marginal[Time]) -> Time:
    """Index of the level with the nearest sigma / alpha; 0 is level 1. EDM calls improved DDPM's networks with it."""
    below = t // 1
    low, high = (sde.marginal(level).ratio for level in (below, below + 1))
    return below - 1 + (marginal.ratio > (low + high) / 2)


C_NOISE: dict[str, Callable[[SDE, Time, Marginal[Time]], Time]] = {
    "log_snr": lambda sde, t, marginal: marginal.log_snr,
    "time": lambda sde, t, marginal: 999 * t,
    "level": lambda sde, t, marginal: t - 1,
    "level_of_1000": lambda sde, t, marginal: (t - 1) * (1000 / sde.t_max),
    "nearest_level": _nearest_level,
    "level_from_noise": lambda sde, t, marginal: sde.t_max - t,
    "sigma": lambda sde, t, marginal: marginal.ratio,
    "log_sigma": lambda sde, t, marginal: -marginal.log_snr / 2,
    "log_half_sigma": lambda sde, t, marginal: -marginal.log_snr / 2 - math.log(2),
    "edm": lambda sde, t, marginal: -marginal.log_snr / 8,
}
"""(sde, t, sde.marginal(t)) -> c_noise, the noise conditioning of a network. Networks trained here take ``log_snr``.
Published weights take the others: ``time`` for score_sde's VP and sub-VP; ``level`` to ``level_from_noise`` for
discrete-time processes, where level 1 or the noisiest level is 0, in thousandths or rounded; ``sigma`` and
``log_sigma`` for score_sde's VE; ``log_half_sigma`` for EDM's VE, log(sigma / 2); ``edm``, log(sigma) / 4. Karras et
al., 2022, table 1."""

INPUTS: dict[str, Callable[[Marginal[Time], float], Time]] = {
    "unit": lambda marginal, sigma_data: ((marginal.alpha * sigma_data) ** 2 + marginal.sigma**2) ** -0.5,
    "raw": lambda marginal, sigma_data: 1.0,
}
"""(sde.marginal(t), sigma_data) -> c_in, the factor of a network's input: to unit variance, or 1."""


class Denoiser(nn.Module):
    """A network as a denoiser of one SDE.

        x0 = c_skip x + c_out F(c_in x, c_noise),    c_in = 1 / sqrt(alpha^2 sigma_data^2 + sigma^2),
        c_noise = log_snr

    The network takes log-SNR and input of unit variance, so its function is independent of the SDE: wrapped for another
    SDE, the same network returns the same x0 at equal log-SNR and scaled state (except for ``score`` and ``flow``,
    which change with the scale of x). Published weights use other ``c_noise`` and ``input``. Coefficients are float32
    or better under autocast, too.

    Args:
        network: called as ``network(x, c_noise, **cond)`` with c_noise (B,) float32; returns the shape of x, or exactly
            twice its channels; the second half is then 2 ``Prediction.v`` - 1.
        sde: the process that noised the data.
        parameterization: the quantity that the network estimates, a key of ``PARAMETERIZATIONS`` or, for a
            discrete-time process, of ``CHAIN_PARAMETERIZATIONS``.
        sigma_data: standard deviation of the data, positive.
        c_noise: a key of ``C_NOISE``.
        input: a key of ``INPUTS``.
    Shapes: x (B, *); t a number, or a tensor that is 0-d or (B, 1, ..., 1).
    Raises: ValueError for an unknown name, a parameterization that the SDE does not support, or a sigma_data that is
        not positive; when called, for a t or a network output of another shape.
    """

    def __init__(
        self,
        network: nn.Module,
        sde: SDE,
        parameterization: str,
        sigma_data: float,
        c_noise: str = "log_snr",
        input: str = "unit",
    ) -> None:
        super().__init__()
        known = PARAMETERIZATIONS | CHAIN_PARAMETERIZATIONS
        if parameterization not in known:
            raise ValueError(f"unknown parameterization {parameterization!r}; known: {', '.join(sorted(known))}")
        if parameterization in CHAIN_PARAMETERIZATIONS and not isinstance(sde, Discrete):
            raise ValueError(
                f"parameterization {parameterization!r} needs a discrete-time process, and {type(sde).__name__} has no "
                "levels; use eps"
            )
        if not sigma_data > 0:
            raise ValueError(f"sigma_data {sigma_data}: need the standard deviation of the data, above 0")
        for what, name, names in (("c_noise", c_noise, C_NOISE), ("input", input, INPUTS)):
            if name not in names:
                raise ValueError(f"unknown {what} {name!r}; known: {', '.join(names)}")
        self.c_noise, self.scale = C_NOISE[c_noise], INPUTS[input]
        self.network, self.sde, self.sigma_data = network, sde, sigma_data
        self.coefficients = known[parameterization]

    def forward(self, x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        marginal = self.sde.marginal(t)
        c_skip, c_out = self.coefficients(self.sde, t, marginal, self.sigma_data)
        output, second = self._network_output(x, t, marginal, cond)
        return Prediction(c_skip * x + c_out * output, None if second is None else 0.5 * (second + 1))

    def score(self, x: Tensor, t: Time, **cond: Tensor) -> Tensor:
        """Estimate of grad log p_t(x), shaped as x: ((alpha c_skip - 1) x + alpha c_out F) / sigma^2.

        The coefficients are float64, and a coefficient of x within rounding is set to 0: if F is the noise or the
        score, the result is independent of x at every sigma.
        """
        t = t.double() if isinstance(t, Tensor) else t
        marginal = self.sde.marginal(t)
        alpha, sigma, _ = marginal
        c_skip, c_out = self.coefficients(self.sde, t, marginal, self.sigma_data)
        rest = alpha * c_skip - 1
        of_x = rest * ((rest > 1e-15) | (rest < -1e-15)) / sigma**2
        output, _ = self._network_output(x, t, marginal, cond)
        return in_dtype(of_x, x) * x + in_dtype(alpha * c_out / sigma**2, x) * output

    def _network_output(
        self, x: Tensor, t: Time, marginal: Marginal[Time], cond: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """Returns F, and the second half of the network's output if present."""
        check_state(x)
        scale = in_dtype(self.scale(marginal, self.sigma_data), x)
        c_noise = conditioning(self.c_noise(self.sde, t, marginal), x)
        output: Tensor = self.network(scale * x, c_noise, **cond).to(x.dtype)
        if output.shape == x.shape:
            return output, None
        if output.shape != (len(x), 2 * x.shape[1], *x.shape[2:]):
            raise ValueError(
                f"the network returns shape {tuple(output.shape)} for x of shape {tuple(x.shape)}: need the same, or "
                "exactly twice the channels, with the learned variance in the second half"
            )
        output, second = output.chunk(2, dim=1)
        return output, second


class PerExample:
    """A denoiser with its own condition for each example of a batch, such as a label or a measurement.

    Solvers that drop finished examples call ``select`` to obtain the denoiser of the others.

    Args:
        make: function from indices in the batch to the denoiser of these examples.
    """

    def __init__(self, make: Callable[[Tensor | slice], Denoise], indices: Tensor | slice = slice(None)) -> None:
        self._make, self._indices, self._denoise = make, indices, make(indices)

    def __call__(self, x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        return self._denoise(x, t, **cond)

    def select(self, indices: Tensor | slice) -> "PerExample":
        """Returns the denoiser of the examples with these indices in the whole batch."""
        return PerExample(self._make, indices)

    def map(self, wrap: Callable[[Denoise], Denoise]) -> "PerExample":
        """Applies ``wrap`` to the denoisers of the same examples."""
        return PerExample(lambda indices: wrap(self._make(indices)), self._indices)


def for_examples(denoise: T, indices: Tensor | slice) -> T | PerExample:
    """Returns the denoiser for these examples of the batch: a selection of a ``PerExample``, any other unchanged."""
    return denoise.select(indices) if isinstance(denoise, PerExample) else denoise


def per_example(wrap: Callable[P, Denoise]) -> Callable[P, Denoise]:
    """Decorator for functions of denoisers: where an argument is a ``PerExample``, the result is one, too."""

    of_parts: Callable[..., Denoise] = wrap

    @functools.wraps(wrap)
    def wrapped(*args: P.args, **options: P.kwargs) -> Denoise:
        if not any(isinstance(value, PerExample) for value in (*args, *options.values())):
            return wrap(*args, **options)

        def make(indices: Tensor | slice) -> Denoise:
            parts = {name: for_examples(value, indices) for name, value in options.items()}
            return of_parts(*(for_examples(value, indices) for value in args), **parts)

        return PerExample(make)

    return wrapped


def as_denoiser(denoise: Estimate, sde: SDE | None = None) -> Denoise:
    """Returns the denoiser with checks of its process and output; converts functions ``(x, t, **cond) -> x0``.

    Args:
        sde: the process of the states.
    Raises: ValueError for a denoiser of another process; when called, for an estimate that is not a tensor shaped as
        x.
    """
    if isinstance(denoise, PerExample):
        return denoise.map(functools.partial(as_denoiser, sde=sde))
    own = getattr(denoise, "sde", None)
    if own is not None and sde is not None:
        check_same(sde, own)
    return denoise if isinstance(denoise, Denoiser) else _predicting(denoise)


def _predicting(denoise: Estimate) -> Denoise:
    def predict(x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        found = denoise(x, t, **cond)
        if isinstance(found, Tensor):
            found = Prediction(found.to(x.dtype))
        if not isinstance(found, Prediction) or found.x0.shape != x.shape:
            seen = f"shape {tuple(found.x0.shape)}" if isinstance(found, Prediction) else type(found).__name__
            raise ValueError(
                f"the denoiser returns {seen} for x of shape {tuple(x.shape)}: need x0, a tensor of that shape, or a "
                "Prediction of it"
            )
        return found

    return predict


def conditioning(c_noise: Time, x: Tensor) -> Tensor:
    """Noise conditioning as a network input: float32, one value for each example, on the device of x; (B,)."""
    if not isinstance(c_noise, Tensor):
        return torch.full((len(x),), c_noise, dtype=torch.float32, device=x.device)
    if c_noise.ndim > 0 and c_noise.shape != (len(x),) + (1,) * (x.ndim - 1):
        shapes = f"time of shape {tuple(c_noise.shape)} for x of shape {tuple(x.shape)}"
        raise ValueError(f"{shapes}: need a number, or a tensor that is 0-d or (B, 1, ..., 1)")
    return c_noise.flatten().to(x.device, torch.float32).expand(len(x))
