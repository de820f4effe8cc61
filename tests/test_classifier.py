"""Classifiers of noisy states: the exact posterior is their optimum and guides exactly; training runs."""

import json

import numpy as np
import pytest
import torch

from score_sde import run as command_line
from score_sde.engine.config import load, override
from score_sde.engine.datasets import read_dataset
from score_sde.engine.training.trainer import Trainer
from score_sde.engine.training.validation import Validation
from score_sde.samplers import classifier as guided
from score_sde.sde_lib import Classification, Classifier, GaussianMixture

SIGMA_DATA = 0.6


class Posterior(torch.nn.Module):
    """log p(k | x_t) of a mixture's components, up to a constant, with the interface of a network."""

    def __init__(self, mixture, sde):
        super().__init__()
        self.mixture, self.sde = mixture, sde
        self.tilt = torch.nn.Parameter(torch.zeros(len(mixture.means), dtype=torch.float64))
        self.gain = torch.nn.Parameter(torch.zeros(len(mixture.means), dtype=torch.float64))

    def forward(self, x, log_snr):
        t = self.sde.time(log_snr.double()).reshape(-1, *[1] * (x.ndim - 1))
        alpha, sigma, _ = self.sde.marginal(t)
        state = x * ((alpha * SIGMA_DATA) ** 2 + sigma**2) ** 0.5
        joint, *_ = self.mixture._components(state, alpha, sigma)
        return joint + self.tilt + self.gain * state.flatten(1).sum(1, keepdim=True)


@pytest.fixture
def drawn(shaped_mixture, sde):
    """Components, data, noise and times at five log-SNR levels."""
    num, generator = 20_000, torch.Generator().manual_seed(0)
    mixture = shaped_mixture
    label = torch.multinomial(mixture.log_weights.exp(), num, replacement=True, generator=generator)
    parts = [
        GaussianMixture(torch.ones(1, dtype=torch.float64), mixture.means[k : k + 1], mixture.variances[k : k + 1],
                        mixture.bases[k : k + 1]).sample(num, generator)
        for k in range(len(mixture.means))
    ]  # fmt: skip
    x0 = torch.stack(parts)[label, torch.arange(num)].reshape(num, *mixture.shape)
    eps = torch.randn(x0.shape, dtype=torch.float64, generator=generator)
    t = sde.time(torch.linspace(-3, 5, 5, dtype=torch.float64)).repeat(num // 5).reshape(-1, *[1] * (x0.ndim - 1))
    return label, x0, eps, t


def test_the_posterior_is_where_the_cross_entropy_is_least(shaped_mixture, sde, drawn):
    """Its value is the mean entropy of the posterior, and no offset or slope of the logits lowers it."""
    label, x0, eps, t = drawn
    network = Posterior(shaped_mixture, sde)
    classify = Classifier(network, sde, SIGMA_DATA)
    loss = Classification(sde)(classify, x0, eps, t, torch.randn_like, 0.0, label=label)
    assert loss.shape == (len(x0),)
    p = classify(sde.perturb(x0, eps, t), t).softmax(1)
    difference = (loss + (p * p.log()).sum(1)).detach()
    assert abs(difference.mean()) < 4 * difference.std() / len(loss) ** 0.5
    # The gradient of an example is (p - one hot) times the input, of mean 0 at the optimum alone.
    residual = p.detach() - torch.nn.functional.one_hot(label, p.shape[1])
    state = sde.perturb(x0, eps, t).flatten(1).sum(1, keepdim=True)
    for parameter, rows in ((network.tilt, residual), (network.gain, residual * state)):
        (slope,) = torch.autograd.grad(loss.mean(), parameter, retain_graph=True)
        torch.testing.assert_close(slope, rows.mean(0), rtol=1e-6, atol=1e-9)
        assert (slope.abs() < 4 * rows.std(0) / len(rows) ** 0.5).all()


def test_the_exact_classifier_guides_to_the_exact_conditional(shaped_mixture, sde):
    mixture = shaped_mixture
    classify = Classifier(Posterior(mixture, sde), sde, SIGMA_DATA)
    one = GaussianMixture(
        torch.ones(1, dtype=torch.float64), mixture.means[1:2], mixture.variances[1:2], mixture.bases[1:2]
    )
    for log_snr in (-3.0, 0.0, 3.0):
        t = sde.time(torch.tensor(log_snr, dtype=torch.float64)).item()
        x = (
            torch.randn(8, *mixture.shape, dtype=torch.float64)
            * (sde.marginal(t).alpha ** 2 + sde.marginal(t).sigma ** 2) ** 0.5
        )
        log_prob = classify.log_prob(torch.ones(8, dtype=torch.int64))
        found = guided(mixture.denoiser(sde), sde, log_prob, 1.0)(x, t).x0
        expected = one.posterior_mean(x, *sde.marginal(t)[:2]).reshape(x.shape)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_accuracy_is_reported_by_noise_level(shaped_mixture, sde, drawn):
    label, x0, eps, _ = drawn
    found = Classification(sde).report(
        Classifier(Posterior(shaped_mixture, sde), sde, SIGMA_DATA), x0, eps, label=label
    )
    for key, value in found.items():
        t = sde.t_min
        if "log_snr" in key:
            t = sde.time(torch.tensor(float(key.rpartition("_")[2]), dtype=torch.float64)).item()
        alpha, sigma, _ = sde.marginal(t)
        x = x0 if key == "accuracy" else alpha * x0 + sigma * eps
        joint, *_ = shaped_mixture._components(x, alpha, sigma)
        assert value == pytest.approx((joint.argmax(1) == label).double().mean().item(), abs=1e-3)
    assert found["accuracy"] > found["accuracy/log_snr_0"] > found["accuracy/log_snr_-4"]


# --- runs -------------------------------------------------------------------------------------------------------------

TINY = ("--device=cpu", "--config.network.channels=8", "--config.train.total_images=64", "--config.train.batch_size=16")


def command(*words):
    return command_line.main(["run.py", *map(str, words)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of four steps."""
    workdir = tmp_path_factory.mktemp("classifier")
    assert (
        command("--config=classifier", "--mode=train", f"--workdir={workdir}", *TINY, "--config.train.sample_every=1")
        == 0
    )
    return workdir


def test_training_reports_accuracy_and_draws_no_samples(trained):
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["validation_loss_of_zero"] == pytest.approx(np.log(10), rel=1e-5)
    assert 0 <= last["validation_accuracy"] <= 1
    assert {"validation_accuracy/log_snr_4", "validation_accuracy/log_snr_-4"} <= last.keys()
    assert not (trained / "samples").exists()


@pytest.mark.parametrize("mode", ["sample", "likelihood", "evaluate", "bound", "edit --task=interpolate"])
def test_modes_that_need_a_denoiser_refuse_a_classifier(trained, capsys, mode):
    capsys.readouterr()
    features = ["--config.evaluate.features=identity"] if mode == "evaluate" else []
    assert command(*f"--mode={mode}".split(), f"--workdir={trained}", *features) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {trained} is a classifier, which draws nothing and has no density; ")
    assert f"--mode evaluate --config.evaluate.features={trained}" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--config=vpsde", "--config.loss.objective=classification"),
            "loss.objective 'classification' does not train",
        ),
        (("--config=vpsde", "--config.network.name=classifier"), "loss.objective 'denoising' does not train"),
        (("--config=classifier", "--config.network.num_classes=3"), "network.num_classes 3: the data have 10"),
        (("--config=classifier", "--config.data.name=moons", "--config.codec.name=identity"), "the data have 0"),
    ],
)
def test_invalid_configs_are_refused(tmp_path, capsys, words, message):
    assert command("--mode=train", f"--workdir={tmp_path / 'new'}", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_the_recipe_classifies_the_digits(tmp_path):
    """97 of 100 held-out digits, near the best that the noise allows."""
    config = load("classifier")
    override(config, [("device", "cpu")])
    trainer = Trainer(config, tmp_path, read_dataset(config.data, "train"))
    for _ in trainer.steps(config.train.total_images // config.train.batch_size):
        pass
    found = Validation(config, trainer.experiment, read_dataset(config.data, "test")).losses(trainer.ema.networks[0])
    assert found["validation_accuracy"] >= 0.97
    assert found["validation_accuracy/log_snr_2"] >= 0.95
    assert found["validation_accuracy/log_snr_0"] >= 0.65
