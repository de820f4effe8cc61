"""The selftest of a user's own sampler, SDE or denoiser: correct ones pass, and each mistake fails its row."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

from score_sde.samplers import DDIM, STEPS, Step
from score_sde.sde_lib import SDES, VPSDE, GaussianMixture
from score_sde.selftest import check
from score_sde.selftest.steps import ORDERS


def failed(rows):
    return [row.what for row in rows if not row.passed]


# --- correct objects --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["euler_maruyama", "dpmpp_2m", "adams"])
def test_steps_of_the_library_pass(name):
    rows = check(sampler=STEPS[name], order=ORDERS.get(name, 1))
    assert failed(rows) == []
    assert len(rows) == 12


def test_a_step_that_has_no_order_passes():
    rows = check(sampler=STEPS["pc"], order=None)
    assert failed(rows) == []
    assert not [row for row in rows if "order" in row.what]


def test_a_step_for_ends_of_the_flow_passes():
    assert failed(check(sampler=STEPS["consistency"])) == []


@pytest.mark.parametrize("name", ["subvpsde", "edm", "ddpm"])
def test_sdes_of_the_library_pass(name):
    rows = check(sde=SDES[name])
    assert failed(rows) == []
    assert len(rows) == 10


def euler(sde):
    """Euler's method for the probability flow in sigma / alpha, as a loop of its own."""

    def run(denoise, x, times, draw):
        ratios = torch.exp(-0.5 * sde.log_snr(times)).tolist()
        y = x / sde.alpha(times[0].item())
        for t, now, later in zip(times.tolist(), ratios, ratios[1:]):
            y = y + (later - now) * (y - denoise(sde.alpha(t) * y, t).x0) / now
        return sde.alpha(times[-1].item()) * y

    return run


def test_one_sampler_in_every_form():
    """A step, its class, a factory, and a function of the whole trajectory give the same rows."""
    sde = SDES["vpsde"]()
    assert failed(check(sampler=euler)) == []
    cases = [DDIM(sde), DDIM, lambda sde: DDIM(sde), euler, euler(sde)]
    rows = [[row for row in check(sampler=case, sde=sde)[10:] if "order" in row.what] for case in cases]
    assert [len(of_case) for of_case in rows] == [1] * 5
    assert [of_case[0].measured for of_case in rows] == pytest.approx([rows[0][0].measured] * 5, rel=1e-9)


def test_a_published_move():
    """Euler in sigma / alpha is DDIM, and not ancestral sampling."""
    assert failed(check(sampler=euler, move="ddim")) == []
    names = failed(check(sampler=euler, move="ancestral"))
    assert names == [f"euler, {sde}: one move against the closed form of ancestral" for sde in ("VPSDE", "VESDE")]


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def data(request):
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=request.param)
    return GaussianMixture(torch.ones(2, dtype=request.param), means, 0.05)


def test_an_exact_denoiser_passes(data):
    sde = SDES["vpsde"]()
    assert failed(check(denoiser=data.denoiser(sde), sde=sde, data=data)) == []


# --- mistakes ---------------------------------------------------------------------------------------------------------


class Midpoint(Step):
    """A step with the estimate at the middle in log-SNR, of order 2 if the middle is one half."""

    def __init__(self, sde, half=0.5):
        self.sde, self.half = sde, half

    def __call__(self, denoise, x, t, s, draw):
        l, k = self.sde.marginal(t).log_snr, self.sde.marginal(s).log_snr
        middle = self.sde.time(torch.tensor(l + self.half * (k - l), dtype=torch.float64)).item()
        there, _ = self.sde.bridge(x, denoise(x, t).x0, t, middle)
        eps = self.sde.eps(there, denoise(there, middle).x0, middle)
        return self.sde.perturb(self.sde.x0(x, eps, t), eps, s)


def test_a_wrong_coefficient_costs_the_order():
    sde = SDES["vpsde"]()
    assert failed(check(sampler=Midpoint(sde), order=2)) == []
    assert failed(check(sampler=Midpoint(sde, half=0.4), order=2)) == ["Midpoint, VPSDE: shortfall from order 2"]


def test_noise_of_a_wrong_size_is_no_sample_of_the_data():
    class Loud(STEPS["euler_maruyama"]):
        def __call__(self, denoise, x, t, s, draw):
            return super().__call__(denoise, x, t, s, lambda like: 1.1 * draw(like))

    names = failed(check(sampler=Loud, sde=SDES["vpsde"](), move="euler_maruyama"))
    assert names[:3] == [
        "Loud, VPSDE: one move against the closed form of euler_maruyama",
        "Loud, VPSDE: shortfall from order 1",
        "Loud, VPSDE: mean and variance in the limit of many steps",
    ]


def test_noise_of_a_generator_depends_on_the_batch():
    class Unkeyed(STEPS["ancestral"]):
        def __call__(self, denoise, x, t, s, draw):
            return super().__call__(denoise, x, t, s, torch.randn_like)

    assert "Unkeyed: the same samples alone and in a batch" in failed(check(sampler=Unkeyed, order=None))


def test_a_sampler_that_is_not_affine_has_no_order():
    names = failed(check(sampler=STEPS["pc"], sde=SDES["vpsde"]))
    assert "PredictorCorrector, VPSDE: affine in the state and the noise for an affine denoiser" in names


def test_a_diffusion_that_does_not_match_sigma():
    class SubVP(VPSDE):
        """VP with the diffusion of sub-VP."""

        def diffusion(self, t):
            if not isinstance(t, torch.Tensor):
                return self.diffusion(torch.tensor(t, dtype=torch.float64)).item()
            return super().diffusion(t) * torch.sqrt(-torch.expm1(4 * self.log_alpha(t)))

    assert failed(check(sde=SubVP)) == ["SubVP: marginals against the moment equations"]


def test_a_wrong_inverse():
    class Off(VPSDE):
        def time(self, log_snr):
            return super().time(log_snr + 1e-6)

    assert "Off: log-SNR to time and back" in failed(check(sde=Off()))


def test_a_denoiser_that_is_off_by_one_per_cent(data):
    sde = SDES["vpsde"]()
    exact = data.denoiser(sde)

    def high(x, t):
        return 1.01 * exact(x, t).x0

    rows = check(denoiser=high, sde=sde, data=data)
    assert failed(rows) == [
        "high: x0 against the posterior mean, relative to the data's root mean square",
        "high: score against the gradient of the log-density, in units of x0",
    ]
    assert failed(check(denoiser=high, sde=sde, data=data, tolerance=0.03)) == []


def test_a_denoiser_that_depends_on_its_batch(data):
    sde = SDES["edm"]()

    def norm(x, t):
        return data.denoiser(sde)(x - x.mean(0), t).x0

    assert "norm: the same estimates alone and in a batch" in failed(check(denoiser=norm, sde=sde, data=data))


# --- unchecked objects ------------------------------------------------------------------------------------------------


def test_an_exception_is_a_failed_row_and_the_others_continue():
    def stop(denoise, x, times, draw):
        raise ArithmeticError("no such number")

    *of_sde, row = check(sampler=stop, sde=SDES["vpsde"])
    assert failed(of_sde) == []
    assert row.what == "stopped by ArithmeticError: no such number"
    assert math.isnan(row.measured)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "nothing to check"),
        ({"denoiser": lambda x, t: x}, "give sde= and data="),
        ({"sampler": lambda denoise, x, times, draw: x}, "give sde="),
        ({"sampler": lambda x, times: x}, "takes 2 arguments"),
        ({"sampler": "ddim"}, "sampler='ddim': need the object itself"),
        ({"sde": "vpsde"}, "sde='vpsde': need the object itself"),
        ({"sampler": DDIM(SDES["edm"]()), "sde": SDES["vpsde"]}, "DDIM is a step of another SDE than sde="),
        ({"sampler": STEPS["ddim"], "move": "adams"}, "move 'adams' has no closed form; euler_maruyama"),
    ],
)
def test_unsupported_objects_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        check(**options)


# --- the documentation page -------------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[1] / "docs" / "selftest.md").read_text()
EULER, AZULA, DIFFUSERS = (block.partition("```")[0] for block in PAGE.split("```python\n")[1:])


def test_the_example_of_the_page(capsys):
    found = {}
    exec(EULER, found)
    assert failed(found["rows"]) == []
    assert capsys.readouterr().out.count("passed") == len(found["rows"]) == 14


@pytest.mark.skipif(not importlib.util.find_spec("azula"), reason="azula is not installed")
def test_a_sampler_of_azula():
    found = {}
    exec(EULER + AZULA, found)
    assert failed(found["rows"]) == []


@pytest.mark.skipif(not importlib.util.find_spec("diffusers"), reason="diffusers is not installed")
def test_a_scheduler_of_diffusers():
    """The order drops from three to two where the page says so."""
    found = {}
    exec(EULER + DIFFUSERS, found)
    assert failed(found["rows"]) == []
    assert failed(found["third"]) == [f"diffusers_dpmpp, {sde}: shortfall from order 3" for sde in ("VPSDE", "VESDE")]
    assert [row.measured for row in found["third"] if not row.passed] == pytest.approx([1, 1], abs=0.1)
    assert failed(check(sampler=STEPS["dpmpp_3m"], order=3)) == []
