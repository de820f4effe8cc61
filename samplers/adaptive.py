"""Solvers that choose their own steps, each as one step of the loop: an error for as many evaluations as it takes."""

import math
from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from score_sde.samplers.brownian import PLACES, brownian_path
from score_sde.samplers.loop import Step, checked
from score_sde.sde_lib import ADAPTIVE, SDE, TORCHDIFFEQ, Flow, Gaussian, NonFiniteError, NotConvergedError
from score_sde.sde_lib.denoiser import Denoise, Estimate, of_rows
from score_sde.sde_lib.devices import put
from score_sde.sde_lib.process import Draw
from score_sde.sde_lib.runge_kutta import check_tolerances

Look = Callable[[Tensor, Tensor], Tensor]
Increment = Callable[[], Tensor]


class ODE(Step):
    """Solve the probability flow between t and s to a tolerance.

    A grid of a single step is the whole trajectory; a longer one lets a constraint act in between.

    Args:
        solver: ODE solver, a key of ``ADAPTIVE`` or ``TORCHDIFFEQ``. ``dopri5`` controls the error of each example
            separately, so a sample does not depend on its batch. Solvers of torchdiffeq use one step size for the
            batch, or one step per move, as ``torchdiffeq_rk4`` does.
        rtol: relative tolerance, above 0; usually 1e-4.
        atol: absolute tolerance, above 0; usually 1e-4.
        gaussian: moment-matched Gaussian of the data, default N(0, I); the right mean and scale save evaluations.
    Raises: NotConvergedError where the tolerance cannot be met; ValueError for an unknown solver, a tolerance that is
        not positive, or a solver of one step a move where there is a single move.
    Reference: Song et al., "Score-Based Generative Modeling through SDEs", 2021, section 4.3. arXiv:2011.13456
    """

    num_steps = 1

    def __init__(
        self,
        sde: SDE,
        solver: str = "dopri5",
        rtol: float = 1e-4,
        atol: float = 1e-4,
        gaussian: Gaussian | None = None,
    ) -> None:
        known = ADAPTIVE | TORCHDIFFEQ
        if solver not in known:
            raise ValueError(f"unknown solver {solver!r}; known: {', '.join(known)}")
        self.sde, self.solver, self.solve, self.gaussian = sde, solver, known[solver](rtol, atol), gaussian

    def reset(self, times: list[float]) -> None:
        if len(times) == 2:
            self._check_whole()

    def __call__(self, denoise: Denoise, x: Tensor, t: float, s: float, draw: Draw) -> Tensor:
        return self.follow(denoise, x, t, s)

    def follow(self, denoise: Estimate, x: Tensor, t: float, s: float) -> Tensor:
        """The state at time s, earlier or later than t.

        Raises: ValueError for times that are not two of the SDE.
        """
        checked(self.sde, sorted((t, s), reverse=True))
        flow = Flow(self.sde, denoise, (self.gaussian or Gaussian.standard(x)).like(x))
        return flow.leave(self.solve(flow, flow.enter(x, t), flow.angle(t), flow.angle(s)).u, s)

    def encode(self, denoise: Estimate, x: Tensor) -> Tensor:
        """The latents of examples x (B, *): the normals x_T / prior_std that the flow brings them to.

        Examples count as states at t_min: nobody put noise into them.
        """
        self._check_whole()
        return self.follow(denoise, x, self.sde.t_min, self.sde.t_max) / self.sde.prior_std

    def decode(self, denoise: Estimate, latents: Tensor) -> Tensor:
        """Inverse of ``encode`` to the solver's tolerance; so no denoising follows."""
        self._check_whole()
        return self.follow(denoise, self.sde.prior_std * latents, self.sde.t_max, self.sde.t_min)

    def _check_whole(self) -> None:
        if not self.solve.adaptive:
            raise ValueError(
                f"solver {self.solver!r} takes one step in each move, and here is a single one; sample with --steps 20 "
                "or more, or take an adaptive solver such as dopri5"
            )


class StepControl(Step):
    """Moves between t and s whose sizes follow from the difference of two estimates, for each example by itself.

        error = rms((high - low) / max(atol, rtol |low|)),    size *= 0.9 error^(-power), at most 2

    A move is made, to ``high``, where the error is at most 1, else tried again with less. Sizes are in
    log(sigma / alpha), none above ``longest``; what happens to an example does not depend on its batch. A grid of one
    step is the whole way.

    Args:
        control_rtol: relative tolerance of a move, above 0; usually 0.01 to 0.1.
        control_atol: absolute tolerance of a move, above 0, in units of the encoded data; 0.0078 is one grey level.
    Raises: ValueError for a tolerance that is not positive; when called, NotConvergedError or NonFiniteError naming
        example and time.
    """

    num_steps = 1
    power: float
    longest = math.inf

    def __init__(self, sde: SDE, control_rtol: float = 0.05, control_atol: float = 0.0078) -> None:
        self.sde = sde
        self.rtol, self.atol = check_tolerances(control_rtol, control_atol)

    @abstractmethod
    def propose(self, look: Look, x: Tensor, t: Tensor, s: Tensor, increment: Increment) -> tuple[Tensor, Tensor]:
        """Low and high, the estimates of the state at s.

        Args:
            look: (x, t) -> x0.
            increment: that of the noise, a standard normal.
        Shapes: x (b, *) float64; t, s (b, 1, ..., 1); returns twice (b, *).
        """

    def keys(self, draw: Draw, x: Tensor) -> Tensor:
        """What the noise between t and s depends on for each example; (B,) int64."""
        return torch.zeros(len(x), dtype=torch.int64)

    def __call__(self, denoise: Denoise, x: Tensor, t: float, s: float, draw: Draw) -> Tensor:
        start, end = (-0.5 * self.sde.marginal(time).log_snr for time in (t, s))
        dtype, result, keys = x.dtype, torch.empty_like(x), self.keys(draw, x)
        x, most = x.double(), max(1, int(PLACES * min(1.0, self.longest / abs(end - start))))
        rows, place = torch.arange(len(x)), torch.zeros(len(x), dtype=torch.int64)
        there = put(rows, x.device)  # sizes and places are kept on the CPU, where the errors are read
        size = torch.full_like(place, PLACES // 64)

        def time(place: Tensor) -> Tensor:
            log_snr = -2 * (start + (end - start) * place.double() / PLACES)
            return put(self.sde.time(log_snr).clamp(s, t), x.device).reshape(-1, *[1] * (x.ndim - 1))

        def look(x: Tensor, t: Tensor) -> Tensor:
            return of_rows(denoise, there)(x.to(dtype), t.to(dtype)).x0.double()

        def increment() -> Tensor:
            later, now = (brownian_path(keys[rows], p, x) for p in (place + size, place))
            return (later - now) * put((PLACES / size.double()).sqrt(), x.device).reshape(-1, *[1] * (x.ndim - 1))

        for _ in range(_MAX_MOVES):
            size = torch.minimum(size, (PLACES - place).clamp(max=most))
            low, high = self.propose(look, x, time(place), time(place + size), increment)
            tolerance = (self.rtol * low.abs()).clamp_min(self.atol)
            error = ((high - low) / tolerance).flatten(1).square().mean(1).sqrt().cpu()
            if not (finite := error.isfinite()).all():
                bad = int(finite.int().argmin())
                where = f"at t = {time(place)[bad].item():.4g}"
                raise NonFiniteError(
                    f"the network is not finite {where}; check the weights and the data", int(rows[bad])
                )
            accept = error <= 1
            x = torch.where(put(accept, x.device).reshape(-1, *[1] * (x.ndim - 1)), high, x)
            place = torch.where(accept, place + size, place)
            factor = (0.9 * error.clamp_min(1e-10) ** -self.power).clamp(0.1, 2.0)
            size = (size * factor).long().clamp_min(accept.long())
            if (size == 0).any():
                break
            result[there] = x.to(dtype)
            going = (place < PLACES).nonzero()[:, 0]
            if len(going) < len(rows):
                rows, place, size = (v[going] for v in (rows, place, size))
                there, x = put(rows, x.device), x[put(going, x.device)]
            if len(rows) == 0:
                return result
        bad = int(size.argmin())
        raise NotConvergedError(
            f"the solver is stuck at t = {time(place)[bad].item():.4g}, with a step of "
            f"{abs(end - start) * size[bad].item() / PLACES:.1g} in log(sigma / alpha); raise the tolerances "
            f"(rtol {self.rtol:g}, atol {self.atol:g})",
            int(rows[bad]),
        )


class AdaptiveSDE(StepControl):
    """The reverse SDE with step-size control: the ancestral move, and again with the mean of the data at both ends.

        low = E[x_s | x, x0] + std z,    high = E[x_s | x, (x0 + x0(low, s)) / 2] + std z,    power = 0.9

    The paper's solver in coordinates without drift. The noise is one Brownian motion, looked at wherever a move ends:
    a move that is tried again sees the same path, for noise drawn anew would be chosen by its error, and bias the law.
    For the same reason the tolerance leaves out the state before, which is large where much noise was, and no move is
    long enough to skip what the data look like. Two evaluations a try.

    Args:
        control_rtol: relative tolerance of a move, above 0; usually 0.01 to 0.1.
        control_atol: absolute tolerance of a move, above 0, in units of the encoded data; 0.0078 is one grey level.
    Raises: as ``StepControl``.
    Reference: Jolicoeur-Martineau et al., "Gotta Go Fast When Generating Data with Score-Based Models", 2021, algorithm
        1. arXiv:2105.14080
    """

    power, longest = 0.9, 0.25

    def propose(self, look: Look, x: Tensor, t: Tensor, s: Tensor, increment: Increment) -> tuple[Tensor, Tensor]:
        x0, z = look(x, t), increment()
        mean, std = self.sde.bridge(x, x0, t, s, 1.0)
        low = mean + std * z
        return low, self.sde.bridge(x, 0.5 * (x0 + look(low, s)), t, s, 1.0)[0] + std * z

    def keys(self, draw: Draw, x: Tensor) -> Tensor:
        words = [draw(x.float()).flatten(1)[:, 0].cpu() for _ in range(2)]
        return torch.stack(words, 1).view(torch.int64)[:, 0]


class DPMAdaptive(StepControl):
    """DPM-Solver-12 or -23: a move of one order controls that of the next. As many evaluations a try as the order.

    Moves are bridges by a noise that is constant, with h = log(r_t / r_s) and eps_i seen after a share i of h:

        12: low by eps,                        high by eps_(1/2)
        23: low by eps + 3/2 (eps_(1/3) - eps),  high by eps + 3/2 w(h) (eps_(2/3) - eps),
            eps_(2/3) after eps + 2 w(2h / 3) (eps_(1/3) - eps),    w(h) = 1 / h - 1 / (exp(h) - 1)

    Args:
        control_rtol: relative tolerance of a move, above 0; usually 0.01 to 0.1.
        control_atol: absolute tolerance of a move, above 0, in units of the encoded data; 0.0078 is one grey level.
        order: order of ``high``, 2 or 3; 2 keeps the marginals better at large tolerances, 3 takes fewer evaluations at
            small ones.
    Raises: as ``StepControl``; ValueError for another order.
    Reference: Lu et al., "DPM-Solver", 2022, algorithms 1, 2 and appendix C. arXiv:2206.00927
    """

    def __init__(self, sde: SDE, control_rtol: float = 0.05, control_atol: float = 0.0078, order: int = 2) -> None:
        super().__init__(sde, control_rtol, control_atol)
        if order not in (2, 3):
            raise ValueError(f"order {order}: dpm_adaptive has orders 2 and 3")
        self.order, self.power = order, 1 / order

    def propose(self, look: Look, x: Tensor, t: Tensor, s: Tensor, increment: Increment) -> tuple[Tensor, Tensor]:
        sde, (late, early) = self.sde, (self.sde.log_snr(time) for time in (t, s))
        eps = sde.eps(x, look(x, t), t)

        def move(noise: Tensor, time: Tensor) -> Tensor:
            return sde.bridge(x, sde.x0(x, noise, t), t, time)[0]

        def seen(noise: Tensor, share: float) -> Tensor:
            time = sde.time(torch.lerp(late, early, share))
            y = move(noise, time)
            return sde.eps(y, look(y, time), time)

        if self.order == 2:
            return move(eps, s), move(seen(eps, 1 / 2), s)
        h = 0.5 * (early - late)
        first = seen(eps, 1 / 3) - eps
        second = seen(eps + 2 * _slope_weight(2 * h / 3) * first, 2 / 3) - eps
        return move(eps + 1.5 * first, s), move(eps + 1.5 * _slope_weight(h) * second, s)


def _slope_weight(h: Tensor) -> Tensor:
    """w(h): the mean of a share of the way from 0 to h under the weight with which the move takes noise there."""
    return 1 / h - 1 / torch.expm1(h)


_MAX_MOVES = 10_000
