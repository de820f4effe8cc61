"""Input from Python programs: a correct result, or one error that states the remedy."""

import numpy as np
import pytest
import torch

from score_sde.models import NETWORKS
from score_sde.samplers import (
    GRIDS,
    NOISES,
    ODE,
    STEPS,
    Noise,
    autoguidance,
    classifier,
    classifier_free,
    dynamic_threshold,
    masked,
    moment_matching,
    pigdm,
    replacement,
    sample,
    sdedit,
    static_threshold,
    translate,
    within,
)
from score_sde.samplers.calibration import follow
from score_sde.sde_lib import (
    ADAPTIVE,
    SDES,
    SOLVERS,
    TORCHDIFFEQ,
    Denoiser,
    Exact,
    Gaussian,
    GaussianMixture,
    Hutchinson,
    PerExample,
    diffusion_bound,
    log_prob,
    sample_log_prob,
    variational_bound,
)

ADAPTIVE_STEPS = {"ode", "dpm_adaptive", "adaptive_sde"}


@pytest.fixture
def process():
    return SDES["vpsde"]()


@pytest.fixture
def denoise(process):
    """Exact, for two points in the plane, with a variance."""
    return two_bumps().denoiser(process, v=0.5)


def two_bumps():
    return GaussianMixture(torch.ones(2), torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), 0.05)


def draw_of(x):
    return Noise(torch.arange(len(x)))


def sampled(name, denoise, x):
    """Samples a state in a few steps with the step of this name."""
    times = GRIDS["karras"](denoise.sde, 1 if name in ADAPTIVE_STEPS else 4)
    with torch.no_grad():
        return sample(STEPS[name](denoise.sde), denoise, x, times, draw_of(x))


# --- seeds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize(
    "seeds",
    [[3, 7, 250], range(7, 9), torch.tensor([3, 7], dtype=torch.int32), torch.tensor([250, 1]).byte()],
    ids=["list", "range", "int32", "uint8"],
)
def test_integers_of_any_kind_are_seeds(kind, seeds):
    expected = NOISES[kind](torch.tensor([int(seed) for seed in seeds]))
    like = torch.empty(len(seeds), 2, 3)
    assert torch.equal(NOISES[kind](seeds)(like), expected(like))


def test_numbers_of_numpy_are_seeds():
    like, expected = torch.empty(3, 2), Noise(torch.arange(3))(torch.empty(3, 2))
    assert torch.equal(Noise(np.arange(3))(like), expected)
    assert torch.equal(Noise(list(np.arange(3)))(like), expected)


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        (torch.arange(3.0), "seeds of torch.float32: need integers"),
        ([0, 1.5, 2], "seeds that are not integers below .* use a list of int"),
        (torch.ones(3, dtype=torch.bool), "seeds of torch.bool: need integers"),
        (torch.arange(3)[:, None], r"seeds of shape \(3, 1\): need one for each example, \(B,\)"),
        (3, r"seeds of shape \(\): need one for each example, \(B,\)"),
        ([2**63], r"seeds that are not integers below 2\^63"),
    ],
)
def test_other_seeds_are_refused(seeds, message):
    with pytest.raises(ValueError, match=message):
        Noise(seeds)


@pytest.mark.parametrize("options", [{"stream": -1}, {"stream": 1 << 64}, {"stream": 0.5}, {"start": -1}])
def test_streams_and_starts_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} .*: need "):
        Noise(torch.arange(3), **options)


@pytest.mark.parametrize("num", [1, 3, 5])
def test_a_batch_has_as_many_examples_as_seeds(num):
    noise = Noise(torch.arange(4))
    noise(torch.empty(4, 2))
    with pytest.raises(ValueError, match=f"4 seeds for a batch of {num} examples: need one for each"):
        noise(torch.empty(num, 2))


# --- empty batches ----------------------------------------------------------------------------------------------------


def test_sampling_an_empty_batch(denoise):
    shapes = {name: sampled(name, denoise, torch.zeros(0, 2)).shape for name in STEPS}
    assert shapes == dict.fromkeys(STEPS, (0, 2))


def test_solvers_of_torchdiffeq_on_an_empty_batch(denoise, process):
    none, times = torch.zeros(0, 2), GRIDS["karras"](process, 3)
    for solver in TORCHDIFFEQ:
        assert sample(ODE(process, solver), denoise, none, times, draw_of(none)).shape == (0, 2), solver


@pytest.mark.parametrize("name", SOLVERS)
def test_likelihood_of_an_empty_batch(denoise, process, name):
    none, solver = torch.zeros(0, 2), SOLVERS[name]()
    for trace in (Exact(), Hutchinson(draw_of(none), 2)):
        found = log_prob(process, denoise, none, solver=solver, trace=trace)
        assert found.nats.shape == found.calls.shape == (0,)
        assert found.latent.shape == (0, 2)
    assert sample_log_prob(process, denoise, none, solver=solver).x.shape == (0, 2)


def test_bound_of_an_empty_batch(denoise, process):
    none, chain = torch.zeros(0, 2), SDES["ddpm"](num_levels=20)
    guess = Gaussian.standard(none)
    assert diffusion_bound(process, denoise, none, guess, torch.zeros(0, 4), draw_of(none), 0.0).nats.shape == (0,)
    exact = two_bumps().denoiser(chain)
    assert variational_bound(chain, exact, none, draw_of(none), 0.5, 0.0).levels.shape == (0, 20)


def test_editing_an_empty_batch(denoise, process):
    none, flow, step = torch.zeros(0, 2), ODE(process), STEPS["ancestral"](process)
    times, draw = GRIDS["uniform"](process, 4, start=0.5), draw_of(none)
    assert translate(flow, denoise, flow, denoise, none).shape == (0, 2)
    known = replacement(none, masked(torch.tensor([1, 0])), draw)
    assert sdedit(step, denoise, none, times, draw, known).shape == (0, 2)
    measured = {"forward": lambda x: x[:, :1], "y": torch.zeros(1, 1), "std": 0.1}
    guided = [
        pigdm(denoise, process, gaussian=Gaussian.standard(none), **measured),
        moment_matching(denoise, process, **measured),
        dynamic_threshold(denoise),
        classifier_free(lambda x, t, keep: denoise(x, t), 2.0),
    ]
    for look in guided:
        assert sdedit(step, look, none, times, draw).shape == (0, 2)


@pytest.mark.parametrize("name", ["mlp", "unet"])
def test_networks_on_an_empty_batch(process, name):
    none = torch.zeros(0, 1, 8, 8)
    assert Denoiser(NETWORKS[name](shape=(1, 8, 8)), process, "edm", 0.5)(none, 0.5).x0.shape == none.shape


# --- states of another kind -------------------------------------------------------------------------------------------

OTHER_STATES = {
    "whole": (torch.ones(3, 2, dtype=torch.int64), r"the state is of torch.int64: .* give x.float\(\)"),
    "bool": (torch.ones(3, 2, dtype=torch.bool), r"the state is of torch.bool: .* give x.float\(\)"),
    "complex": (torch.ones(3, 2, dtype=torch.complex64), "the state is of torch.complex64: .* torch.view_as_real"),
}


@pytest.fixture(params=OTHER_STATES)
def other_state(request):
    return OTHER_STATES[request.param]


def test_steps_refuse_integer_states(denoise):
    x, message = OTHER_STATES["whole"]
    for name in STEPS:
        with pytest.raises(ValueError, match=message):
            sampled(name, denoise, x)


def test_states_are_real_floating_point_numbers(denoise, process, other_state):
    x, message = other_state
    chain = SDES["ddpm"](num_levels=4)
    network = Denoiser(NETWORKS["mlp"](shape=(2,)), process, "edm", 0.5)
    guess, plain = Gaussian.standard(torch.zeros(3, 2)), lambda x, t: denoise(x.float(), t)
    calls = [
        lambda: denoise(x, 0.5),
        lambda: network(x, 0.5),
        lambda: network.score(x, 0.5),
        lambda: draw_of(x)(x),
        lambda: sample(STEPS["ddim"](process), plain, x, GRIDS["uniform"](process, 2), draw_of(x)),
        lambda: ODE(process).encode(plain, x),
        *(lambda solver=solver: log_prob(process, plain, x, solver=solver()) for solver in SOLVERS.values()),
        lambda: diffusion_bound(process, plain, x, guess, torch.zeros(3, 4), torch.zeros_like, 0.0),
        lambda: variational_bound(chain, plain, x, torch.zeros_like, 0.5, 0.0),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


def test_a_state_is_a_batch_of_a_tensor(denoise):
    with pytest.raises(ValueError, match="the state is of ndarray: give a tensor"):
        denoise(np.zeros((3, 2)), 0.5)
    with pytest.raises(ValueError, match=r"the state is one number: need a batch of examples"):
        denoise(torch.tensor(1.0), 0.5)


# --- grids ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adams", "ancestral", "ode"])
def test_a_grid_may_be_a_list_or_of_another_dtype(denoise, process, name):
    x, times = torch.ones(3, 2), [1.0, 0.5, 0.125]
    expected = sample(STEPS[name](process), denoise, x, torch.tensor(times, dtype=torch.float64), draw_of(x))
    for grid in (times, torch.tensor(times), np.array(times)):
        assert torch.equal(sample(STEPS[name](process), denoise, x, grid, draw_of(x)), expected)


def test_the_ends_of_an_sde_may_be_rounded_to_float32(denoise, process):
    x, times = torch.ones(3, 2), GRIDS["uniform"](process, 3)
    assert times.float()[-1].double() != times[-1]
    found = sample(STEPS["ddim"](process), denoise, x, times.float(), draw_of(x))
    torch.testing.assert_close(found, sample(STEPS["ddim"](process), denoise, x, times, draw_of(x)))


def test_a_single_time_is_the_last_denoising(denoise, process):
    x = torch.ones(3, 2)
    assert torch.equal(sample(STEPS["ddim"](process), denoise, x, [0.5], draw_of(x)), denoise(x, 0.5).x0)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([], r"times of shape \(0,\): need \(N \+ 1,\)"),
        ([[1.0, 0.5]], r"times of shape \(1, 2\): need \(N \+ 1,\)"),
        ([0.1, 0.5, 1.0], "time 1 is 0.5 after 0.1: times must decrease"),
        ([1.0, 0.5, 0.5, 0.1], "time 2 is 0.5 after 0.5: times .* without repeats"),
        ([1.0, 0.1, 0.5], "times from 1 to 0.5: the first must have noise, and the last must be the smallest"),
        ([0.0], "times from 0 to 0: the first must have noise"),
        ([1.0, float("nan"), 0.1], "time 1 is nan: need 1e-05 to 1 for this SDE"),
        ([float("inf"), 0.5], "time 0 is inf: need 1e-05 to 1 for this SDE"),
        ([2.0, 0.5], "time 0 is 2: need 1e-05 to 1 for this SDE"),
        ([1.0, 1e-7], "time 1 is 1e-07: need 1e-05 to 1 for this SDE"),
        ([1.0, -0.5], "time 1 is -0.5: need 1e-05 to 1 for this SDE"),
    ],
)
def test_invalid_times_are_refused(denoise, process, times, message):
    x, step = torch.ones(3, 2), STEPS["adams"](process)
    for work in (sample, sdedit):
        with pytest.raises(ValueError, match=message):
            work(step, denoise, x, torch.tensor(times), draw_of(x))
    with pytest.raises(ValueError, match=message):
        follow(step, denoise, x, times)


@pytest.mark.parametrize(("t", "s"), [(0.5, 2.0), (float("nan"), 1.0), (-1.0, 0.5), (0.5, 0.5)])
def test_the_flow_goes_between_two_times_of_the_sde(denoise, process, t, s):
    for start, end in ((t, s), (s, t)):
        with pytest.raises(ValueError, match=r"time \d is .*: "):
            ODE(process).follow(denoise, torch.ones(3, 2), start, end)


# --- denoisers --------------------------------------------------------------------------------------------------------


def uses_of(process, x):
    """Every function that takes a denoiser of a process, by name: functions of the denoiser."""
    chain, guess = SDES["ddpm"](num_levels=20), Gaussian.standard(x)
    times, measured = GRIDS["uniform"](process, 4), {"forward": lambda x: x[:, :1], "y": x[:1, :1], "std": 0.1}
    found = {
        f"sample {name}": lambda d, name=name: sample(STEPS[name](process), d, x, times, draw_of(x))
        for name in ("adams", "heun", "pc", "adaptive_sde")
    }
    found |= {
        "encode": lambda d: ODE(process).encode(d, x),
        "sdedit": lambda d: sdedit(STEPS["ddim"](process), d, x, times, draw_of(x)),
        "likelihood": lambda d: log_prob(process, d, x, solver=SOLVERS["adams_pece"](6)).nats,
        "sample_log_prob": lambda d: sample_log_prob(process, d, x).nats,
        "bound": lambda d: diffusion_bound(process, d, x, guess, torch.full((len(x), 1), 0.5), draw_of(x), 0.0).nats,
        "bound of a chain": lambda d: variational_bound(chain, d, x, draw_of(x), 0.5, 0.0).nats,
        "classifier": lambda d: classifier(d, process, lambda x, t: -x.square().sum(1), 2.0)(x, 0.5).x0,
        "within": lambda d: within(d, d, process)(x, 0.5).x0,
        "pigdm": lambda d: pigdm(d, process, gaussian=guess, **measured)(x, 0.5).x0,
        "moment_matching": lambda d: moment_matching(d, process, **measured)(x, 0.5).x0,
    }
    return found


def test_a_function_to_x0_is_a_denoiser(denoise, process):
    x = torch.tensor([[0.3, -0.2], [0.9, 0.4]])  # two examples, so that x0 could be unpacked as (x0, variance)
    for name, use in uses_of(process, x).items():
        of = denoise if name != "bound of a chain" else two_bumps().denoiser(SDES["ddpm"](num_levels=20))
        plain = lambda x, t, of=of: of(x, t).x0  # noqa: E731
        for function in (plain, PerExample(lambda rows, plain=plain: plain)):
            torch.testing.assert_close(use(function), use(of), rtol=0, atol=0, msg=name)
    plain = lambda x, t, keep=None: denoise(x, t).x0  # noqa: E731
    pairs = (lambda d: autoguidance(d, d, 2.0), lambda d: classifier_free(d, 2.0))
    for guide in (dynamic_threshold, static_threshold, *pairs):
        assert torch.equal(guide(plain)(x, 0.5).x0, guide(lambda x, t, keep=None: denoise(x, t))(x, 0.5).x0)


def test_a_float64_function_does_not_change_the_dtype_of_the_state(denoise, process):
    x = torch.ones(3, 2)
    for name in ("ddim", "adams", "ode"):
        found = sample(STEPS[name](process), lambda x, t: denoise(x, t).x0.double(), x, [1.0, 0.5, 0.1], draw_of(x))
        assert found.dtype == torch.float32


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: x[:, :1], r"the denoiser returns shape \(3, 1\) for x of shape \(3, 2\)"),
        (lambda x: {"x0": x}, r"the denoiser returns dict for x of shape \(3, 2\): need x0"),
        (lambda x: None, r"the denoiser returns NoneType for x"),
    ],
)
def test_invalid_estimates_are_refused(process, answer, message):
    for use in (uses_of(process, torch.ones(3, 2))[name] for name in ("sample adams", "likelihood", "bound", "within")):
        with pytest.raises(ValueError, match=message):
            use(lambda x, t: answer(x))


def test_a_denoiser_of_another_sde_is_refused(process):
    x = torch.ones(2, 2)
    network = NETWORKS["mlp"](shape=(2,))
    for other in (SDES["vesde"](), SDES["vpsde"](beta_max=10.0), SDES["ddpm"](num_levels=100)):
        exact = two_bumps().denoiser(other)
        for denoise in (exact, Denoiser(network, other, "edm", 0.5), PerExample(lambda rows, exact=exact: exact)):
            for name, use in uses_of(process, x).items():
                kinds = f"states are of {'Discrete' if 'chain' in name else 'VPSDE'} and .* {type(other).__name__}"
                with pytest.raises(ValueError, match=f"{kinds}: at t = .* make both of one SDE"):
                    use(denoise)
    with pytest.raises(ValueError, match="make both of one SDE"):
        autoguidance(Denoiser(network, process, "edm", 0.5), Denoiser(network, SDES["vesde"](), "edm", 0.5), 2.0)


def test_another_object_of_the_same_sde_is_accepted(denoise, process):
    x, times = torch.ones(2, 2), [1.0, 0.5]
    same = two_bumps().denoiser(SDES["vpsde"]())
    found = [sample(STEPS["ddim"](process), d, x, times, draw_of(x)) for d in (denoise, same)]
    assert torch.equal(*found)


# --- conditions of exact denoisers ------------------------------------------------------------------------------------


def test_a_label_of_an_exact_denoiser_is_a_component(process):
    """Also with a mask of kept labels, through guidance and a likelihood."""
    mixture, x = two_bumps(), torch.tensor([[0.3, -0.2], [0.1, 0.4], [-0.6, 0.2]])
    label, denoise = torch.tensor([1, 0, 1]), mixture.denoiser(process)
    parts = [GaussianMixture(torch.ones(1), mixture.means[k : k + 1], 0.05).denoiser(process) for k in range(2)]
    expected = torch.stack([parts[k](x[i : i + 1], 0.4).x0[0] for i, k in enumerate(label)])
    torch.testing.assert_close(denoise(x, 0.4, label=label).x0, expected)
    torch.testing.assert_close(denoise.score(x, 0.4, label=label), process.score(x, expected, 0.4))
    keep = torch.tensor([True, False, True])
    mixed = torch.where(keep[:, None], expected, denoise(x, 0.4).x0)
    torch.testing.assert_close(denoise(x, 0.4, keep=keep, label=label).x0, mixed)
    guided = classifier_free(denoise, 3.0)(x, 0.4, label=label).x0
    torch.testing.assert_close(guided, torch.lerp(denoise(x, 0.4).x0, expected, 3.0))
    nats = log_prob(process, denoise, x[:2], label=label[:2]).nats
    of_parts = torch.cat([log_prob(process, parts[k], x[i : i + 1]).nats for i, k in enumerate(label[:2])])
    torch.testing.assert_close(nats, of_parts, rtol=1e-3, atol=1e-3)


def test_other_conditions_of_an_exact_denoiser_are_refused(denoise):
    x = torch.ones(3, 2)
    with pytest.raises(ValueError, match="unknown condition 'text': an exact denoiser takes label and keep"):
        denoise(x, 0.5, text=torch.zeros(3))
    for label in (torch.tensor([0, 1]), torch.tensor([0, 1, 2]), torch.tensor(1)):
        with pytest.raises(ValueError, match=r"labels of shape .* for 3 examples: need one for each, 0 to 1"):
            denoise(x, 0.5, label=label)


# --- tolerances -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_tolerance_below_the_precision_is_refused(name):
    """1e-12 is reachable in float64 but means endless steps in float32; one of the two tolerances suffices."""
    process, x = SDES["vpsde"](), torch.tensor([[0.3, -0.2], [0.9, 0.4]], dtype=torch.float64)
    denoise = GaussianMixture(torch.ones(1).double(), torch.ones(1, 2).double(), 0.5).denoiser(process)
    found = ODE(process, name, rtol=1e-12, atol=1e-12).encode(denoise, x)
    first, last = (process.marginal(t) for t in (process.t_min, process.t_max))
    spread = ((0.5 * last.alpha**2 + last.sigma**2) / (0.5 * first.alpha**2 + first.sigma**2)) ** 0.5
    torch.testing.assert_close(found, last.alpha + spread * (x - first.alpha), rtol=0, atol=1e-10)
    for rtol, atol in ((1e-12, 1e-4), (1e-4, 1e-12)):
        torch.testing.assert_close(
            ODE(process, name, rtol, atol).encode(denoise, x.float()), found.float(), rtol=0, atol=1e-3
        )
    message = "rtol 1e-12 and atol 1e-12: states are float32, so need one of the two at least 5.8e-11"
    for solve in (
        lambda: ODE(process, name, rtol=1e-12, atol=1e-12).encode(denoise, x.float()),
        lambda: log_prob(process, denoise, x.float(), solver=SOLVERS[name](1e-12, 1e-12)),
    ):
        with pytest.raises(ValueError, match=message):
            solve()
