"""Consistency models: boundary, the exact consistency function as ground truth, teachers, and runs."""

import json
import math
import shutil

import pytest
import torch
from torch import nn

from score_sde import run as command_line
from score_sde.engine import checkpoint
from score_sde.engine.build import build
from score_sde.engine.config import load, override
from score_sde.engine.facts import DataFacts
from score_sde.engine.objective import make_objective
from score_sde.sde_lib import (
    SDES,
    ConsistencyDistillation,
    ConsistencyModel,
    ConsistencyTraining,
    Denoiser,
    GaussianMixture,
    Prediction,
    transport,
)
from score_sde.sde_lib.consistency import neighbours

MEAN, VARIANCE = 0.5, 0.3


def ratio(sde, t):
    return sde.sigma(t) / sde.alpha(t)


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def times(sde, num=7):
    """Inner times, uniform in log-SNR, (num, 1)."""
    return sde.time(torch.linspace(4, -4, num, dtype=torch.float64))[:, None]


class Sine(nn.Module):
    """A network whose output is nowhere zero."""

    def forward(self, x, log_snr, **cond):
        return torch.sin(3 * x) + 0.1 * log_snr.reshape(-1, *[1] * (x.ndim - 1)).to(x)


class ExactFlow:
    """Image at t_min of (x, t) under the probability flow of N(MEAN, VARIANCE), with a relative gain error ``tilt``.

    (y - m) / sqrt(v + r^2) is constant along the flow.
    """

    def __init__(self, sde, tilt=0.0):
        self.sde, self.tilt = sde, tilt

    def __call__(self, x, t):
        r, least = ratio(self.sde, t), ratio(self.sde, column(self.sde.t_min))
        gain = ((VARIANCE + least**2) / (VARIANCE + r**2)).sqrt()
        y = x / self.sde.alpha(t)
        return Prediction(MEAN + (1 + self.tilt * (r - least) / (1 + r)) * gain * (y - MEAN))


def gaussian():
    return GaussianMixture(torch.ones(1).double(), torch.full((1, 2), MEAN).double(), VARIANCE)


def draws(sde, num=2000):
    """Data and noise of the Gaussian, and times over the whole interval."""
    generator = torch.Generator().manual_seed(0)
    eps = torch.randn(num, 2, dtype=torch.float64, generator=generator)
    l = -6 + 10 * torch.rand(num, 1, dtype=torch.float64, generator=generator)
    return gaussian().sample(num, generator), eps, sde.time(l)


# --- the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3,), (2, 4), (1, 2, 3)])
def test_the_boundary_is_the_identity_for_any_network(sde, shape):
    model, x = ConsistencyModel(Sine(), sde, 0.7), torch.randn(4, *shape, dtype=torch.float64)
    t = torch.full((4, *[1] * len(shape)), sde.t_min, dtype=torch.float64)
    for time in (t, sde.t_min):
        torch.testing.assert_close(model(x, time).x0, x / sde.alpha(time), rtol=1e-12, atol=1e-12)
    assert (model(x, sde.time(0 * t)).x0 - model(x, t).x0).abs().mean() > 0.1


def test_coefficients_are_those_of_the_paper():
    """EDM, sigma_data 0.5, as printed in the appendix."""
    sde, sigma, least = SDES["edm"](), 3.0, 0.002
    x, network = torch.ones(1, 1, dtype=torch.float64), Sine()
    said = network(x / math.sqrt(sigma**2 + 0.25), torch.tensor([-2 * math.log(sigma)])).item()
    expected = 0.25 / ((sigma - least) ** 2 + 0.25) + 0.5 * (sigma - least) / math.sqrt(0.25 + sigma**2) * said
    assert ConsistencyModel(network, sde, 0.5)(x, sigma).x0.item() == pytest.approx(expected, rel=1e-6)


def test_one_network_on_two_processes_with_the_same_ends():
    """As a function of y and r the model does not depend on the process."""
    edm = SDES["edm"](sigma_min=0.01, sigma_max=50.0)
    ve = SDES["vesde"](sigma_min=0.01, sigma_max=50.0, t_min=0.0)
    y, log_snr = torch.randn(5, 2, dtype=torch.float64), torch.linspace(4, -4, 5, dtype=torch.float64)[:, None]
    first, second = (ConsistencyModel(Sine(), sde, 0.7)(y, sde.time(log_snr)).x0 for sde in (edm, ve))
    torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)


# --- pairs of times ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [1, 2, 7, 100])
def test_neighbours_are_the_ends_of_the_step_that_holds_t(sde, num_steps):
    ends = sde.log_snr(column(sde.t_min, sde.t_max))
    t = torch.cat([times(sde, 50), column(sde.t_min, sde.t_max)])
    later, earlier = neighbours(sde, t, num_steps)
    assert (later >= t * (1 - 1e-9)).all()
    assert (earlier <= t * (1 + 1e-9)).all()
    assert earlier.min() >= sde.t_min
    assert later.max() <= sde.t_max
    step = (ends[0] - ends[1]) / num_steps
    torch.testing.assert_close(sde.log_snr(earlier) - sde.log_snr(later), step.expand_as(t), rtol=1e-6, atol=1e-9)
    place = (ends[0] - sde.log_snr(later)) / step
    torch.testing.assert_close(place, place.round(), rtol=0, atol=1e-6)


def test_steps_double_at_equal_shares_of_the_training():
    objective = ConsistencyTraining(SDES["edm"](), first_steps=10, last_steps=80)
    assert [objective.num_steps(p) for p in (0.0, 0.249, 0.25, 0.5, 0.749, 0.75, 0.999, 1.0)] == [
        10, 10, 20, 40, 40, 80, 80, 80,
    ]  # fmt: skip
    constant = ConsistencyTraining(SDES["edm"](), first_steps=18, last_steps=18)
    assert {constant.num_steps(p) for p in (0.0, 0.5, 1.0)} == {18}
    odd = ConsistencyTraining(SDES["edm"](), first_steps=10, last_steps=50)
    assert [odd.num_steps(p) for p in (0.0, 0.4, 0.7, 1.0)] == [10, 20, 40, 50]


@pytest.mark.parametrize(("first", "last"), [(0, 10), (20, 10)])
def test_steps_out_of_order_are_refused(first, last):
    with pytest.raises(ValueError, match=f"first_steps {first}, last_steps {last}: need"):
        ConsistencyTraining(SDES["edm"](), first, last)


# --- the exact consistency function -----------------------------------------------------------------------------------


def test_distillation_vanishes_at_the_exact_function_with_the_order_of_heun(sde):
    """The image moves by O(h^3), and well below the bend of the metric the loss is its square over h: O(h^5)."""
    x0, eps, t = draws(sde)
    found = []
    for steps in (400, 800):
        objective = ConsistencyDistillation(sde, gaussian().denoiser(sde), steps, steps)
        found.append(objective(ExactFlow(sde), x0, eps, t, torch.randn_like, 0.0).mean().item())
    assert found[1] < 1e-4
    assert math.log2(found[0] / found[1]) == pytest.approx(5, abs=0.5)


def test_distillation_has_its_minimum_at_the_exact_function(sde):
    x0, eps, t = draws(sde)
    objective = ConsistencyDistillation(sde, gaussian().denoiser(sde), 200, 200)
    losses = [objective(ExactFlow(sde, tilt), x0, eps, t, None, 0.0).mean().item() for tilt in (-0.1, 0.0, 0.1)]
    assert losses[1] < 0.1 * min(losses[0], losses[2])


def test_training_is_exact_where_the_data_are_one_point(sde):
    """The straight line to the point is the flow, for any step size: f = m + (y - m) r_min / r."""
    x0, eps, t = draws(sde)
    x0 = torch.full_like(x0, MEAN)
    least = ratio(sde, column(sde.t_min))

    def exact(x, t):
        return Prediction(MEAN + (x / sde.alpha(t) - MEAN) * least / ratio(sde, t))

    loss = ConsistencyTraining(sde, 10, 10)(exact, x0, eps, t, torch.randn_like, 0.0)
    assert loss.abs().max() < 1e-9


@pytest.mark.parametrize("tilt", [-0.2, 0.2])
def test_the_gradient_of_training_points_towards_the_exact_function(sde, tilt):
    """Equal noise at both times follows the flow only on average; the gradient with a fixed
    target has the right sign."""
    x0, eps, t = draws(sde, 20_000)
    wrong = torch.tensor(tilt, dtype=torch.float64, requires_grad=True)
    objective = ConsistencyTraining(sde, 100, 100)
    objective.huber = 10.0  # keeps all differences below the bend, where the loss is quadratic
    objective(ExactFlow(sde, wrong), x0, eps, t, torch.randn_like, 0.0).mean().backward()
    assert math.copysign(1, wrong.grad.item()) == math.copysign(1, tilt)


@pytest.mark.parametrize("name", ["consistency_training", "consistency_distillation"])
def test_the_target_has_no_gradient_and_the_same_dropout(name):
    sde = SDES["vpsde"]()
    seen = []

    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(()))

        def forward(self, x, log_snr):
            mask = nn.functional.dropout(torch.ones_like(x), 0.5)
            seen.append((mask, torch.is_grad_enabled()))
            return self.gain * mask

    options = {"teacher": gaussian().denoiser(sde)} if name == "consistency_distillation" else {}
    kind = {"consistency_training": ConsistencyTraining, "consistency_distillation": ConsistencyDistillation}[name]
    x0, eps, t = draws(sde, 16)
    torch.manual_seed(3)
    kind(sde, **options)(ConsistencyModel(Dropping(), sde, 0.7), x0, eps, t, torch.randn_like, 0.5)
    (first, graded), (second, also) = seen
    assert {graded, also} == {True, False}
    assert torch.equal(first, second)
    assert 0 < first.mean() < 2


@pytest.mark.slow
def test_training_on_points_recovers_the_flow():
    """Against the closed-form flow of a Gaussian, with and without a teacher; a constant would err by 0.5."""
    sde = SDES["edm"](sigma_min=0.01, sigma_max=20.0)
    generator = torch.Generator().manual_seed(0)
    for kind, options in ((ConsistencyTraining, {}), (ConsistencyDistillation, {"teacher": gaussian().denoiser(sde)})):
        torch.manual_seed(0)
        network = Small()
        model, objective = (
            ConsistencyModel(network, sde, 0.7).double(),
            kind(sde, first_steps=10, last_steps=40, **options),
        )
        optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
        for step in range(800):
            x0 = gaussian().sample(256, generator)
            eps = torch.randn(256, 2, dtype=torch.float64, generator=generator)
            l = -6 + 13 * torch.rand(256, 1, dtype=torch.float64, generator=generator)
            objective(model, x0, eps, sde.time(l), None, step / 800).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        eps = torch.randn(2000, 2, dtype=torch.float64, generator=generator)
        x = sde.perturb(gaussian().sample(2000, generator), eps, 5.0)
        t = torch.full((2000, 1), 5.0, dtype=torch.float64)
        error = (model(x, t).x0 - ExactFlow(sde)(x, t).x0).square().mean().sqrt().item()
        assert error < 0.15, kind


class Small(nn.Module):
    """Two hidden layers on points in the plane and their log-SNR."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2)
        ).double()  # fmt: skip

    def forward(self, x, log_snr):
        return self.layers(torch.cat([x, 0.2 * log_snr[:, None].to(x)], 1))


# --- teachers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SDES)
def test_a_denoiser_carried_to_another_process_is_the_exact_one_there(sde, source, plane):
    """At log-SNR values that both processes reach."""
    source = SDES[source]()
    ends = [process.log_snr(column(process.t_min, process.t_max)).flatten().tolist() for process in (sde, source)]
    l = torch.linspace(min(e[0] for e in ends), max(e[1] for e in ends), 9, dtype=torch.float64)[1:-1, None]
    t, generator = sde.time(l), torch.Generator().manual_seed(0)
    x = sde.perturb(plane.sample(7, generator), torch.randn(7, 2, dtype=torch.float64, generator=generator), t)
    carried = transport(plane.denoiser(source), source, sde)
    torch.testing.assert_close(carried(x, t).x0, plane.denoiser(sde)(x, t).x0, rtol=1e-6, atol=1e-7)


def test_a_teacher_is_evaluated_at_the_end_of_its_interval_beyond_it(plane):
    source, sde = SDES["edm"](sigma_min=0.1, sigma_max=10.0), SDES["edm"]()
    carried, x = transport(plane.denoiser(source), source, sde), torch.ones(1, 2, dtype=torch.float64)
    for t, end in ((0.01, 0.1), (50.0, 10.0)):
        torch.testing.assert_close(carried(x, column(t)).x0, plane.denoiser(sde)(x, column(end)).x0)


def config_of(**changes):
    keys = {"device": "cpu", "network.channels": 8, "network.learned_variance": True}
    keys |= {"loss.objective": "consistency_distillation", **changes}
    config = load("edm")
    override(config, [(key, str(value)) for key, value in keys.items()])
    return config


def test_a_teacher_is_the_average_of_its_run_on_its_own_process(digits):
    """The run is VP; as a teacher on EDM it returns its own estimate at the same log-SNR."""
    config = config_of(**{"loss.teacher": digits})
    facts = DataFacts.from_dict(checkpoint.read_meta(checkpoint.find(digits / "checkpoints"))["data"])
    experiment = build(config, facts)
    teacher = make_objective(config, experiment).teacher
    network = build(config, facts).network
    checkpoint.load_network(checkpoint.find(digits / "checkpoints"), "ema-0.999.safetensors", network)
    vp = SDES["vpsde"]()
    own = Denoiser(network.eval(), vp, "edm", facts.std)
    y, t = torch.randn(3, 1, 8, 8), torch.full((3, 1, 1, 1), 0.7)
    there = vp.time(experiment.sde.log_snr(t))
    torch.testing.assert_close(teacher(y, t).x0, own(vp.alpha(there) * y, there).x0, rtol=1e-4, atol=1e-5)
    assert not teacher(y, t).x0.requires_grad


def test_a_teacher_of_other_data_is_refused(points, digits):
    config = config_of(**{"loss.teacher": points})
    facts = DataFacts(shape=(1, 8, 8), levels=17, std=0.7, diameter=9.0)
    with pytest.raises(ValueError, match=r"has data of shape \(2,\) and 0 levels, not of \(1, 8, 8\) and 17"):
        make_objective(config, build(config, facts))


# --- runs -------------------------------------------------------------------------------------------------------------

TINY = {"device": "cpu", "network.channels": 8, "network.dropout": 0.1, "train.batch_size": 4, "train.total_images": 32}
TINY |= {"network.learned_variance": True}  # as in the run ``digits``
TINY |= {"train.sample_every": 0, "train.evaluate_every": 0, "optim.warmup_images": 0, "loss.objective.last_steps": 40}


def command(mode, workdir, config=None, **keys):
    words = [f"--config.{key}={value}" for key, value in keys.items()]
    words += [f"--config={config}"] if config else []
    return command_line.main(["run.py", f"--mode={mode}", f"--workdir={workdir}", *words])


def weights(workdir):
    found = checkpoint.read_meta(checkpoint.find(workdir / "checkpoints"))["sha256"]
    return {name: digest for name, digest in found.items() if name.endswith("safetensors")}


@pytest.mark.parametrize("name", ["consistency_training", "consistency"])
def test_a_stopped_run_resumes_bit_for_bit(name, digits, tmp_path, monkeypatch):
    """Across doublings of the number of steps, with dropout and a teacher of another process."""
    from score_sde.engine.training.trainer import Trainer

    keys = TINY | {"train.checkpoint_every": 3}
    if name == "consistency":
        keys |= {"loss.teacher": digits, "train.init": digits}
    assert command("train", tmp_path / "whole", name, **keys) == 0
    step, calls = Trainer._train_step, []

    def stop(self):
        calls.append(self.step)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", stop)
        assert command("train", tmp_path / "pieces", name, **keys) == 130
    assert command("train", tmp_path / "pieces", name, **keys) == 0
    assert weights(tmp_path / "pieces") == weights(tmp_path / "whole")


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_as_many_evaluations_as_steps(steps, tmp_path):
    assert command("train", tmp_path, "consistency_training", **TINY) == 0
    assert command("sample", tmp_path, **{"sample.steps": steps, "sample.num_samples": 3}) == 0
    manifest = json.loads((tmp_path / "samples" / f"consistency-{steps}" / "manifest.json").read_text())
    assert manifest["nfe"] == steps


def test_training_starts_from_the_average_of_another_run(digits, tmp_path):
    """With a learning rate of zero, the first checkpoint contains the initial weights."""
    keys = TINY | {"train.init": digits, "optim.learning_rate": 0, "network.dropout": 0.0}
    assert command("train", tmp_path, "consistency_training", **keys) == 0
    start = checkpoint.read_meta(checkpoint.find(digits / "checkpoints"))["sha256"]["ema-0.999.safetensors"]
    assert weights(tmp_path)["model.safetensors"] == start


def test_a_run_resumes_without_the_run_it_started_from(digits, tmp_path):
    start = shutil.copytree(digits, tmp_path / "start")
    keys = TINY | {"train.init": start, "train.checkpoint_every": 4}
    assert command("train", tmp_path / "run", "consistency_training", **keys) == 0
    shutil.rmtree(start)
    assert command("train", tmp_path / "run", "consistency_training", **keys | {"train.total_images": 40}) == 0


@pytest.mark.parametrize("key", ["train.init", "loss.teacher"])
def test_a_missing_run_is_named_with_the_command_that_creates_it(key, tmp_path, capsys, monkeypatch, digits):
    monkeypatch.chdir(tmp_path)
    keys = TINY | {"loss.teacher": digits, "train.init": ""} | {key: "runs/edm"}
    assert command("train", "new", "consistency", **keys) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"error: no run in {tmp_path}/runs/edm, which {key} names: train one with "
        f"python run.py --config edm --mode train --workdir {tmp_path}/runs/edm"
    )
    assert not (tmp_path / "new").exists()


def test_starting_from_another_network_is_refused(digits, tmp_path, capsys):
    keys = TINY | {"train.init": digits, "network.channels": 16}
    assert command("train", tmp_path / "new", "consistency_training", **keys) == 3
    assert "holds another network, " in capsys.readouterr().err


def test_no_teacher_is_refused(tmp_path, capsys):
    assert command("train", tmp_path / "new", "consistency", **TINY | {"loss.teacher": "", "train.init": ""}) == 2
    assert "loss.teacher is empty: give the folder of a trained run, such as runs/edm" in capsys.readouterr().err
