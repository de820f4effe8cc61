"""Base class of all processes x_t = alpha(t) x_0 + sigma(t) eps, eps ~ N(0, I).

A subclass defines ``log_alpha``, ``sigma``, the inverse ``time(log_snr)``, the interval ``[t_min, t_max]`` and the
standard deviation of its prior. The base class derives everything else.

A time is a number (samplers) or a tensor ``(B, 1, ..., 1)`` (losses). For a number the coefficients are Python floats:
double precision, no synchronisation with a GPU, and no promotion of float32 data. For a tensor they are tensors that
broadcast against ``x`` of shape ``(B, *)``.
"""

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar, cast, overload

import torch
from torch import Tensor
from typing_extensions import NamedTuple  # in Python 3.10 typing's cannot be generic

Time = float | Tensor
"""A number, or a tensor that broadcasts against the state."""

T = TypeVar("T", bound=Time, covariant=True)


class Draw(Protocol):
    """A source of noise, such as ``samplers.Noise`` or ``torch.randn_like``."""

    def __call__(self, like: Tensor, /) -> Tensor:
        """Draws standard normals in the shape and dtype of the argument, on its device."""


class Marginal(NamedTuple, Generic[T]):
    """Marginal at one time: signal scale, noise standard deviation and log signal-to-noise ratio."""

    alpha: T
    sigma: T
    log_snr: T

    @property
    def ratio(self) -> T:
        """Noise-to-signal ratio r = sigma / alpha."""
        return cast(T, self.sigma / self.alpha)  # type: ignore[operator]


class Tabulated(NamedTuple):
    """Cached values of a process at one time; see ``SDE.tabulate``."""

    marginal: Marginal[float]
    drift: float
    diffusion: float


MOST_TABULATED = 1 << 14
"""Maximum number of times in the cache of a process; beyond it the oldest are dropped."""


def check_state(x: Tensor) -> None:
    """Raises: ValueError unless the state is a batch (B, *) of real floating-point numbers."""
    if not isinstance(x, Tensor):
        raise ValueError(f"the state is of {type(x).__name__}: give a tensor (B, *), for example by torch.as_tensor")
    if not x.is_floating_point():
        remedy = "give torch.view_as_real(x)" if x.is_complex() else "give x.float()"
        raise ValueError(f"the state is of {x.dtype}: need real floating-point numbers; {remedy}")
    if x.ndim == 0:
        raise ValueError("the state is one number: need a batch of examples (B, *); give x[None]")


class SDE(ABC):
    """A linear diffusion, dx = f(t) x dt + g(t) dw, defined by its marginals x_t = alpha(t) x_0 + sigma(t) eps.

    Attributes:
        t_min: earliest time for training, above 0 where sigma(0) = 0.
        t_max: latest time, at which little signal is left.
        prior_std: standard deviation of the prior N(0, prior_std^2 I), which replaces the marginal at t_max.
        grid: name of the time grid that the paper of the process uses for sampling.
    """

    grid = "uniform"

    t_min: float
    t_max: float
    prior_std: float

    @abstractmethod
    def log_alpha(self, t: Tensor) -> Tensor:
        """Logarithm of the signal scale at time t."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise at time t."""

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        """Time at which the log signal-to-noise ratio has this value; inverse of ``log_snr``."""

    def log_snr(self, t: Tensor) -> Tensor:
        """Log signal-to-noise ratio l = 2 (log alpha - log sigma), a decreasing function of t."""
        return 2 * (self.log_alpha(t) - torch.log(self.sigma(t)))

    @overload
    def marginal(self, t: float) -> Marginal[float]: ...
    @overload
    def marginal(self, t: Tensor) -> Marginal[Tensor]: ...
    def marginal(self, t: Time) -> Marginal[float] | Marginal[Tensor]:
        """Returns alpha, sigma and log-SNR at time t: numbers for a number, tensors for a tensor."""
        if isinstance(t, Tensor):
            log_alpha, sigma = self.log_alpha(t), self.sigma(t)
            return Marginal(torch.exp(log_alpha), sigma, 2 * (log_alpha - torch.log(sigma)))
        found = self._table.get(t)
        return found.marginal if found else Marginal(*(v.item() for v in self.marginal(_double(t))))

    def tabulate(self, times: Tensor) -> None:
        """Computes and caches ``marginal``, ``drift`` and ``diffusion`` at times (N,), in one vectorised call each.

        Later calls with one of these times as a number return the cached values. Values of earlier calls stay, up to
        ``MOST_TABULATED`` times. Copies and pickles of the process start with an empty cache.
        """
        marginals = zip(*(v.tolist() for v in self.marginal(times)), strict=True)
        rates = self.drift(times).tolist(), self.diffusion(times).tolist()
        for t, (alpha, sigma, log_snr), f, g in zip(times.tolist(), marginals, *rates, strict=True):
            self._table[t] = Tabulated(Marginal(alpha, sigma, log_snr), f, g)
            self._table.move_to_end(t)
        while len(self._table) > max(MOST_TABULATED, len(times)):
            self._table.popitem(last=False)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_table"}

    @overload
    def alpha(self, t: float) -> float: ...
    @overload
    def alpha(self, t: Tensor) -> Tensor: ...
    def alpha(self, t: Time) -> Time:
        """Signal scale at time t."""
        return self.marginal(t).alpha

    @overload
    def ratio(self, t: float) -> float: ...
    @overload
    def ratio(self, t: Tensor) -> Tensor: ...
    def ratio(self, t: Time) -> Time:
        """Noise-to-signal ratio r = sigma / alpha at time t, as exp(-log_snr / 2): inverse of ``time_of_ratio``."""
        if isinstance(t, Tensor):
            return torch.exp(-0.5 * self.log_snr(t))
        return math.exp(-0.5 * self.marginal(t).log_snr)

    @overload
    def time_of_ratio(self, ratio: float) -> float: ...
    @overload
    def time_of_ratio(self, ratio: Tensor) -> Tensor: ...
    def time_of_ratio(self, ratio: Time) -> Time:
        """Time at which sigma / alpha has this positive value; inverse of ``ratio``."""
        if isinstance(ratio, Tensor):
            return self.time(-2 * torch.log(ratio))
        return self.time(_double(-2 * math.log(ratio))).item()

    @overload
    def drift(self, t: float) -> float: ...
    @overload
    def drift(self, t: Tensor) -> Tensor: ...
    def drift(self, t: Time) -> Time:
        """Factor f(t) = d log_alpha / dt of the drift f(t) x."""
        if isinstance(t, Tensor):
            return _derivative(self.log_alpha, t)
        found = self._table.get(t)
        return found.drift if found else self.drift(_double(t)).item()

    @overload
    def diffusion(self, t: float) -> float: ...
    @overload
    def diffusion(self, t: Tensor) -> Tensor: ...
    def diffusion(self, t: Time) -> Time:
        """Diffusion coefficient g(t), with g^2 = -sigma^2 dl/dt.

        Reference: Kingma, Salimans, Poole, Ho, "Variational Diffusion Models", 2021, appendix. arXiv:2107.00630
        """
        if isinstance(t, Tensor):
            return self.sigma(t) * torch.sqrt(-_derivative(self.log_snr, t))
        found = self._table.get(t)
        return found.diffusion if found else self.diffusion(_double(t)).item()

    @overload
    def quantile(self, u: float) -> float: ...
    @overload
    def quantile(self, u: Tensor) -> Tensor: ...
    def quantile(self, u: Time) -> Time:
        """Quantile of uniform time: the time below which the fraction u in [0, 1] of all times lies."""
        return self.t_min + (self.t_max - self.t_min) * u

    @overload
    def fraction(self, t: float) -> float: ...
    @overload
    def fraction(self, t: Tensor) -> Tensor: ...
    def fraction(self, t: Time) -> Time:
        """Fraction of all times that lies below t; inverse of ``quantile``."""
        return (t - self.t_min) / (self.t_max - self.t_min)

    @overload
    def transition(self, s: float, t: float) -> tuple[float, float]: ...
    @overload
    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]: ...
    @overload
    def transition(self, s: Time, t: Time) -> tuple[Time, Time]: ...
    def transition(self, s: Time, t: Time) -> tuple[Time, Time]:
        """Forward transition from time s to the later t, x_t = a x_s + b z.

            a = alpha_t / alpha_s,    b^2 = sigma_t^2 - a^2 sigma_s^2 = sigma_t^2 (1 - exp(l_t - l_s))

        Transitions compose: those from r to s and from s to t give the one from r to t.
        """
        early, late = self.marginal(s), self.marginal(t)
        return late.alpha / early.alpha, late.sigma * _forgotten(early, late)

    def perturb(self, x0: Tensor, eps: Tensor, t: Time) -> Tensor:
        """Noisy state x_t = alpha x0 + sigma eps."""
        alpha, sigma, _ = self.marginal(t)
        return alpha * x0 + sigma * eps

    def eps(self, x: Tensor, x0: Tensor, t: Time) -> Tensor:
        """Noise eps = (x - alpha x0) / sigma of the pair (x, x0)."""
        alpha, sigma, _ = self.marginal(t)
        return (x - alpha * x0) / sigma

    def x0(self, x: Tensor, eps: Tensor, t: Time) -> Tensor:
        """Data x0 = (x - sigma eps) / alpha of the pair (x, eps)."""
        alpha, sigma, _ = self.marginal(t)
        return (x - sigma * eps) / alpha

    def score(self, x: Tensor, x0: Tensor, t: Time) -> Tensor:
        """Score (alpha x0 - x) / sigma^2 for the estimate x0 = E[x_0 | x], by Tweedie's formula."""
        alpha, sigma, _ = self.marginal(t)
        return (alpha * x0 - x) / sigma**2

    def x0_of_score(self, x: Tensor, score: Tensor, t: Time) -> Tensor:
        """Estimate of the data (x + sigma^2 score) / alpha; inverse of ``score``."""
        alpha, sigma, _ = self.marginal(t)
        return (x + sigma**2 * score) / alpha

    def bridge(self, x: Tensor, x0: Tensor, t: Time, s: Time, eta: float = 0.0) -> tuple[Tensor, Time]:
        """Mean and standard deviation of the reverse step from time t to the earlier s, given an estimate of the data.

            mean = alpha_s x0 + sqrt(sigma_s^2 - std^2) eps(x, x0),    std = eta sigma_s b / sigma_t

        eta = 0 follows the probability flow; eta = 1 samples q(x_s | x_t, x_0). With the true x0 the marginal of x_s
        is exact for every eta in [0, 1].

        Shapes: x, x0 (B, *); returns the mean (B, *) and std.
        Reference: Song, Meng, Ermon, "Denoising Diffusion Implicit Models", 2021, eq. 7. arXiv:2010.02502
        """
        of_x, of_x0, std = self.bridge_weights(t, s, eta)
        return of_x * x + of_x0 * x0, std

    def bridge_weights(self, t: Time, s: Time, eta: float = 0.0) -> tuple[Time, Time, Time]:
        """Weights of x and x0 in the mean of ``bridge``, and its std."""
        late, early = self.marginal(t), self.marginal(s)
        forgotten = eta * _forgotten(early, late)
        kept = early.sigma / late.sigma * (1 - forgotten**2) ** 0.5
        return kept, early.alpha - kept * late.alpha, early.sigma * forgotten

    def reverse(self, x: Tensor, x0: Tensor, t: Time, s: Time, v: float | Tensor) -> tuple[Tensor, Time]:
        """Reverse kernel p(x_s | x_t) = N(mean, std^2) from an estimate of the data.

            mean = E[x_s | x_t, x0] as ``bridge``,    std = ``reverse_std(sigma_s b / sigma_t, b, v)``

        For Gaussian data and the exact x0, the kernel is the true distribution of x_s given x_t for some v.

        Args:
            v: interpolation weight, a number or shaped as x: 0 for the posterior q(x_s | x_t, x_0), NCSN's and DDPM's
                beta-tilde; 1 for the forward step, DDPM's beta.
        Shapes: x, x0 (B, *); returns the mean (B, *) and std.
        Reference: Nichol, Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, eq. 15. arXiv:2102.09672
        """
        mean, std = self.bridge(x, x0, t, s, eta=1.0)
        return mean, reverse_std(std, self.transition(s, t)[1], v)

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """Log-density of the prior N(0, prior_std^2 I) in nats; x (B, *), returns (B,)."""
        z = x.flatten(1) / self.prior_std
        return -0.5 * (z**2).sum(1) - z.shape[1] * math.log(self.prior_std * math.sqrt(2 * math.pi))

    @cached_property
    def _table(self) -> OrderedDict[float, Tabulated]:
        return OrderedDict()


def check_same(sde: SDE, other: SDE) -> None:
    """Raises: ValueError with a time at which alpha or sigma of the processes differ by more than a millionth."""
    if sde is other:
        return
    shared = max(sde.t_min, other.t_min), min(sde.t_max, other.t_max)
    times = torch.linspace(*shared, 9, dtype=torch.float64)
    own, others = (torch.stack(process.marginal(times)[:2]) for process in (sde, other))
    apart = ~torch.isclose(own, others, rtol=1e-6, atol=0.0).all(0)
    if apart.any():
        at = int(apart.int().argmax())
        states = ["{:.3g} x_0 + {:.3g} eps".format(*marginals[:, at].tolist()) for marginals in (own, others)]
        raise ValueError(
            f"states are of {type(sde).__name__} and the denoiser is of {type(other).__name__}: at t = {times[at]:.3g} "
            f"{states[0]} and {states[1]}; make both of one SDE"
        )


def reverse_std(posterior: Time, forward: Time, v: float | Tensor) -> Time:
    """Interpolated standard deviation, log std = (1 - v) log(posterior) + v log(forward)."""
    return posterior ** (1 - v) * forward**v


def _forgotten(early: Marginal[Time], late: Marginal[Time]) -> Time:
    """Fraction of the late noise added after the early time, b / sigma_t = sqrt(1 - exp(l_t - l_s)), by expm1."""
    fall = late.log_snr - early.log_snr
    return (-torch.expm1(fall)) ** 0.5 if isinstance(fall, Tensor) else math.sqrt(-math.expm1(fall))


def in_dtype(value: Time, x: Tensor) -> Time:
    """Casts a tensor to the dtype of x; a number stays unchanged."""
    return value.to(x.dtype) if isinstance(value, Tensor) else value


def _double(t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)


def _derivative(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """Elementwise derivative; reverse mode is five times cheaper on a scalar than ``torch.func.jvp``."""
    with torch.inference_mode(False), torch.enable_grad():
        t = t.detach().clone().requires_grad_()
        return torch.autograd.grad(function(t).sum(), t)[0]
