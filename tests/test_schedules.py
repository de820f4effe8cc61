"""Schedules in log-SNR: their distributions, both ends of the time interval, and a learned schedule's optimum."""

import math

import pytest
import torch
from scipy import stats

from score_sde.samplers import GRIDS, Heun
from score_sde.sde_lib import VPSDE, LaplaceSDE, LearnedSDE, LogisticSDE, MonotoneSchedule, RectifiedSDE, SigmoidSDE

L = torch.linspace(-12, 12, 97, dtype=torch.float64)


# --- distribution of the log-SNR --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("process", "law"), [(LaplaceSDE, stats.laplace), (LogisticSDE, stats.logistic)])
@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (-1.5, 0.5), (2.0, 2.0)])
def test_time_is_the_probability_of_a_higher_log_snr(process, law, mean, scale):
    sde = process(mean, scale)
    expected = torch.from_numpy(law(mean, scale).sf(L.numpy()))
    torch.testing.assert_close(sde.time(L), expected, rtol=1e-13, atol=0)
    inside = (expected > sde.t_min) & (expected < sde.t_max)
    density = (sde.sigma(expected) / sde.diffusion(expected)) ** 2
    expected_density = torch.from_numpy(law(mean, scale).pdf(L.numpy()))
    torch.testing.assert_close(density[inside], expected_density[inside], rtol=1e-9, atol=0)


def test_logistic_of_scale_two_has_the_log_snr_of_rectified_flow():
    t = torch.linspace(0.001, 0.999, 50, dtype=torch.float64)
    torch.testing.assert_close(LogisticSDE().log_snr(t), RectifiedSDE().log_snr(t), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tau", [0.05, 0.3, 1.0, 50.0])
def test_the_sigmoid_is_accurate_at_every_temperature(tau):
    """No digits are lost where the sigmoid is flat or nearly straight."""
    sde = SigmoidSDE(tau=tau)
    t = torch.cat([torch.logspace(-5, -1, 30), torch.linspace(0.15, 0.9995, 30)]).double()
    l = sde.log_snr(t)
    assert (l.diff() < 0).all()
    torch.testing.assert_close(sde.time(l), t, rtol=1e-10, atol=0)
    torch.testing.assert_close(sde.log_snr(1 - t[30:]), -sde.log_snr(t[30:]), rtol=1e-9, atol=1e-9)


def test_a_hot_sigmoid_is_a_straight_line():
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    torch.testing.assert_close(SigmoidSDE(tau=1e4).alpha(t) ** 2, 1 - t, rtol=1e-6, atol=0)


@pytest.mark.parametrize("process", [SigmoidSDE, LaplaceSDE, LogisticSDE])
def test_both_ends_keep_their_digits_in_float32(process):
    sde = process()
    t = torch.tensor([1e-6, 1e-5, 1e-3, 0.5, 0.999, 1 - 2**-20])
    single, double = sde.marginal(t), sde.marginal(t.double())
    for ours, exact in zip(single, double):
        torch.testing.assert_close(ours.double(), exact, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(single.alpha**2 + single.sigma**2, torch.ones(6), rtol=5e-7, atol=0)


# --- the learned schedule ---------------------------------------------------------------------------------------------


@pytest.fixture
def schedule():
    """A schedule with weights, centres and widths other than the initial ones."""
    generator, schedule = torch.Generator().manual_seed(0), MonotoneSchedule(-9.0, 11.0, 5)
    for parameter in schedule.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator)
    return schedule


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_a_learned_schedule_falls_from_one_to_zero(schedule, dtype):
    l = torch.linspace(-9, 11, 201, dtype=dtype)
    times = schedule(l)
    assert times.dtype == schedule.log_snr(times).dtype == schedule.density(l).dtype == dtype
    assert (times.diff() < 0).all()
    assert (times[0].item(), times[-1].item()) == (pytest.approx(1, abs=1e-15), 0)


def test_its_density_is_its_slope(schedule):
    l = torch.linspace(-9, 11, 2001, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(schedule(l)[1:-1].sum(), l)
    torch.testing.assert_close(schedule.density(l)[1:-1], -slope[1:-1], rtol=1e-10, atol=1e-14)
    assert torch.trapezoid(schedule.density(l), l).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("steepness", [0.0, 3.0])
def test_its_inverse_is_exact(schedule, steepness):
    """Also where sigmoids are so steep that Newton's method alone would leave the interval."""
    schedule.log_widths.data -= steepness
    t = torch.cat([torch.linspace(0, 1, 101), torch.logspace(-12, -2, 11)]).double()
    torch.testing.assert_close(schedule(schedule.log_snr(t)), t, rtol=1e-10, atol=1e-16)
    l = torch.linspace(-9, 11, 101, dtype=torch.float64)
    error = (schedule.log_snr(schedule(l)) - l).abs()
    assert (error <= 1e-10 + 1e-15 / schedule.density(l)).all()


def test_beyond_its_ends_it_is_linear(schedule):
    t = torch.tensor([-0.3, 1.2], dtype=torch.float64)
    ends = torch.tensor([11.0, -9.0], dtype=torch.float64)
    l = schedule.log_snr(t)
    torch.testing.assert_close(l, ends - (t - torch.tensor([0.0, 1.0])) / schedule.density(ends))
    torch.testing.assert_close(schedule(l), t)


def test_its_inverse_is_differentiable_in_time_and_parameters(schedule):
    schedule.double()
    t = torch.tensor([0.02, 0.4, 0.9], dtype=torch.float64, requires_grad=True)

    def inverse(t, *parameters):
        return torch.func.functional_call(Inverse(schedule), dict(zip(names, parameters)), (t,))

    names, parameters = zip(*Inverse(schedule).named_parameters())
    assert torch.autograd.gradcheck(inverse, (t, *parameters), atol=1e-6)


class Inverse(torch.nn.Module):
    """Module that evaluates the inverse of a schedule."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

    def forward(self, t):
        return self.schedule.log_snr(t)


def bump(l):
    """A loss concentrated around log-SNR 2."""
    return torch.exp(-0.5 * ((l - 2) / 1.5) ** 2) + 0.02


def logistic_and_floor(l):
    """A loss that a schedule can match exactly."""
    return 4 * torch.sigmoid(l + 1) * torch.sigmoid(-l - 1) + 0.1


@pytest.mark.parametrize("loss", [bump, logistic_and_floor])
def test_fitting_finds_the_density_of_least_variance(loss):
    """The optimum is p proportional to m, for which the estimate m(l) / p(l) is the same for every l."""
    schedule = MonotoneSchedule(-8.0, 8.0, 6)
    l = -8 + 16 * (torch.arange(200, dtype=torch.float64) + 0.5) / 200  # q is uniform
    least = (16 * loss(l).mean()) ** 2
    optimiser = torch.optim.LBFGS(schedule.parameters(), max_iter=50, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        variance = schedule.variance(l, loss(l) ** 2, torch.full_like(l, 1 / 16))
        variance.backward()
        return variance

    first = closure().item()
    optimiser.step(closure)
    assert first > 1.3 * least
    assert closure().item() == pytest.approx(least.item(), rel=2e-3)
    optimum = loss(l) / least.sqrt()
    assert ((schedule.density(l) - optimum).abs() < 0.03 * optimum.max()).all()


def test_the_objective_is_the_second_moment_of_the_estimate(schedule):
    """Times stratified over the schedule's own distribution, q = p: the mean of (m / p)^2."""
    t = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    l = schedule.log_snr(t).detach()
    p = schedule.density(l).detach()
    direct = (bump(l) / p).square().mean()
    assert schedule.variance(l, bump(l) ** 2, p).item() == pytest.approx(direct.item(), rel=1e-12)
    even = torch.linspace(-9, 11, 20_001, dtype=torch.float64)
    integral = torch.trapezoid(bump(even) ** 2 / schedule.density(even).detach(), even)
    assert direct.item() == pytest.approx(integral.item(), rel=1e-2)


def test_the_process_of_a_learned_schedule(schedule, plane):
    """Variance preserving, with the rates of its density; its flow equals every other process's."""
    sde = LearnedSDE(schedule)
    t = torch.linspace(0, 1, 21, dtype=torch.float64)
    alpha, sigma, log_snr = (value.detach() for value in sde.marginal(t))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t))
    torch.testing.assert_close(log_snr, schedule.log_snr(t).detach())
    density = schedule.density(log_snr).detach()
    torch.testing.assert_close(sde.diffusion(t), sigma / density.sqrt())
    torch.testing.assert_close(sde.drift(t), -0.5 * sigma**2 / density)
    y, ends = torch.tensor([[3.0, -1.0], [0.5, 2.0]]).double(), torch.tensor([-5.0, 6.0]).double()
    last = []
    for process in (sde, VPSDE()):
        times = GRIDS["log_snr"](process, 6, *process.time(ends).tolist()).tolist()
        x = process.marginal(times[0]).alpha * y
        for k in range(6):
            x = Heun(process)(plane.denoiser(process), x, times[k], times[k + 1], None)
        last.append(x / process.marginal(times[-1]).alpha)
    torch.testing.assert_close(*last, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"l_min": 3.0, "l_max": 3.0}, "l_min 3.0 and l_max 3.0: need l_min < l_max"),
        ({"l_max": math.nan}, "l_max nan"),
        ({"num_sigmoids": 0}, "num_sigmoids 0: need at least 1"),
    ],
)
def test_an_impossible_schedule_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MonotoneSchedule(**options)
