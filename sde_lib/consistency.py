"""Consistency models: networks that map a state of the probability flow to the end of its trajectory.

    f(x_t, t) = x_s0 / alpha,    x_s0 the state of the trajectory at t_min

In y = x / alpha and r = sigma / alpha the flow and its ends are the same for every process.
"""

import math

import torch
from torch import Tensor, nn

from score_sde.sde_lib.denoiser import Coefficients, Denoise, Denoiser, Prediction, per_example
from score_sde.sde_lib.flow import trapezoidal
from score_sde.sde_lib.objective import Objective
from score_sde.sde_lib.process import SDE, Draw, Marginal, Time


class ConsistencyModel(Denoiser):
    """A network as a consistency function, with f = y at t_min for every network.

        x0 = c_skip y + c_out F,    c_skip = sd^2 / ((r - r_min)^2 + sd^2),    c_out = sd (r - r_min) / sqrt(r^2 + sd^2)

    Args, Shapes: as ``Denoiser``, with sd = sigma_data.
    Reference: Song, Dhariwal, Chen, Sutskever, "Consistency Models", 2023, appendix C. arXiv:2303.01469
    """

    def __init__(self, network: nn.Module, sde: SDE, sigma_data: float) -> None:
        super().__init__(network, sde, "edm", sigma_data)
        self.coefficients = _bounded


def _bounded(sde: SDE, t: Time, marginal: Marginal[Time], sigma_data: float) -> Coefficients:
    r, above = marginal.ratio, marginal.ratio - sde.marginal(sde.t_min).ratio
    c_skip = sigma_data**2 / (above**2 + sigma_data**2) / marginal.alpha
    return c_skip, sigma_data * above / (r**2 + sigma_data**2) ** 0.5


class ConsistencyTraining(Objective[Denoise]):
    """Consistency training: neighbouring states of a trajectory have the same end, with the earlier as the target.

        d(f(x_t, t), f(x_s, s)) / (r_t - r_s),    d(a, b) = sqrt(|a - b|^2 / D + c^2) - c

    The step from t to s follows the noise of x_t. Averaged over examples, this is the probability flow up to the error
    of a finite step. The target has the same weights and dropout masks, and no gradient. ``neighbours`` gives the
    times; their number doubles at equal intervals of the training.

    Args:
        first_steps, last_steps: initial and largest number of steps between t_min and t_max.
    Raises: ValueError unless 1 <= first_steps <= last_steps.
    Reference: Song, Dhariwal, "Improved Techniques for Training Consistency Models", 2023, section 3. arXiv:2310.14189
    """

    model = ConsistencyModel
    huber = 0.00054

    def __init__(self, sde: SDE, first_steps: int = 10, last_steps: int = 1280) -> None:
        super().__init__(sde)
        if not 1 <= first_steps <= last_steps:
            raise ValueError(f"first_steps {first_steps}, last_steps {last_steps}: need 1 <= first_steps <= last_steps")
        self.first_steps, self.last_steps = first_steps, last_steps

    def __call__(
        self, denoise: Denoise, /, x0: Tensor, eps: Tensor, t: Tensor, draw: Draw, progress: float, **cond: Tensor
    ) -> Tensor:
        t, s = neighbours(self.sde, t, self.num_steps(progress))
        x = self.sde.perturb(x0, eps, t)
        earlier, _ = self.sde.bridge(x, self.data(x, x0, t, s, **cond), t, s)
        with torch.no_grad(), torch.random.fork_rng([x.device] if x.is_cuda else []):
            target = denoise(earlier, s, **cond).x0
        squared = (denoise(x, t, **cond).x0 - target).flatten(1).square().mean(1)
        gap = self.sde.marginal(t).ratio - self.sde.marginal(s).ratio
        return squared / ((squared + self.huber**2).sqrt() + self.huber) / gap.flatten()

    def data(self, x: Tensor, x0: Tensor, t: Tensor, s: Tensor, **cond: Tensor) -> Tensor:
        """Estimate of the data for the step from t to s."""
        return x0

    def num_steps(self, progress: float) -> int:
        """Number of steps between t_min and t_max at this fraction of the training."""
        doublings = int(math.log2(self.last_steps / self.first_steps)) + 1
        return min(self.first_steps << int(progress * doublings), self.last_steps)


class ConsistencyDistillation(ConsistencyTraining):
    """Consistency distillation: ``ConsistencyTraining`` with a Heun step along the flow of a trained denoiser.

    For the exact consistency function of an exact teacher the difference is of third order in the step.

    Args:
        teacher: (x, t, **cond) -> Prediction on this SDE, without gradients.
    Reference: Song, Dhariwal, Chen, Sutskever, 2023, algorithm 2. arXiv:2303.01469
    """

    def __init__(self, sde: SDE, teacher: Denoise, first_steps: int = 10, last_steps: int = 1280) -> None:
        super().__init__(sde, first_steps, last_steps)
        self.teacher = teacher

    def data(self, x: Tensor, x0: Tensor, t: Tensor, s: Tensor, **cond: Tensor) -> Tensor:
        with torch.no_grad():
            return trapezoidal(self.teacher, self.sde, x, self.teacher(x, t, **cond).x0, t, s, **cond)


def neighbours(sde: SDE, t: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
    """Ends of the step that contains t, the later first, for num_steps steps from t_min to t_max, uniform in log-SNR.

    Shapes: t and both ends (B, 1, ..., 1).
    """
    lowest, highest = sde.marginal(sde.t_max).log_snr, sde.marginal(sde.t_min).log_snr
    step = (highest - lowest) / num_steps
    later = ((highest - sde.log_snr(t)) / step).ceil().clamp(1, num_steps)
    t, s = (sde.time(highest - step * k).clamp(sde.t_min, sde.t_max) for k in (later, later - 1))
    return t, s


@per_example
def transport(denoise: Denoise, source: SDE, sde: SDE) -> Denoise:
    """Converts a denoiser of the process ``source`` to the process ``sde``, at equal log-SNR and x / alpha.

    The estimate of the data depends on these two alone. Times are clamped to the interval of ``source``.

    Shapes: as ``Denoiser``.
    """

    def transported(x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        alpha, _, log_snr = sde.marginal(t)
        time = source.time(torch.as_tensor(log_snr, dtype=None if isinstance(t, Tensor) else torch.float64))
        time = time.clamp(source.t_min, source.t_max)
        there: Time = time if isinstance(t, Tensor) else time.item()
        return denoise(source.marginal(there).alpha / alpha * x, there, **cond)

    return transported
