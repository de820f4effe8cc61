"""Construction from configs: every name of every table builds, and open keys are derived from the data."""

import dataclasses
import json
import math
import shutil
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from score_sde.configs import choices
from score_sde.data import DATASETS, DataError, examples, order, statistics
from score_sde.engine import checkpoint
from score_sde.engine.build import build, make
from score_sde.engine.codecs import fit_codec, moment_matched
from score_sde.engine.config import Options, load, names, override, stored
from score_sde.engine.datasets import read_dataset
from score_sde.engine.devices import make_device
from score_sde.engine.facts import DataFacts
from score_sde.engine.load import load as load_run
from score_sde.engine.objective import make_timestep_sampler, make_weight
from score_sde.models import NETWORKS
from score_sde.sde_lib import OBJECTIVES, PARAMETERIZATIONS, SDES, TIMESTEP_SAMPLERS, WEIGHTS, Gaussian
from score_sde.storage.naming import pick

IMAGES = DataFacts(shape=(1, 8, 8), levels=17, std=0.7, diameter=9.0)
POINTS = DataFacts(shape=(2,), levels=0, std=0.6, diameter=3.0)
SHAPES = {"points": POINTS, "mnist": DataFacts((1, 28, 28), 256, 0.6, 20.0)}
SHAPES["cifar10"] = DataFacts((3, 32, 32), 256, 0.5, 50.0)
for name, shape in {"table": (3,), "signals": (2, 8), "fields": (2, 8, 6)}.items():
    SHAPES[name] = DataFacts(shape, 0, 1.0, 9.0, codec={"means": shape[0] * (0.0,), "stds": shape[0] * (1.0,)})


def config_with(name="vpsde", **changes):
    """A config with some keys changed; dots of keys are written as two underscores."""
    config = load(name)
    override(config, [("device", "cpu"), *((key.replace("__", "."), str(value)) for key, value in changes.items())])
    return config


def answers(experiment, config):
    """Output of the denoiser or classifier of a new network for a batch."""
    t = torch.full((2, *[1] * len(experiment.facts.shape)), 0.5)
    found = experiment.denoiser(experiment.network, config)(torch.ones(2, *experiment.facts.shape), t)
    return getattr(found, "x0", found)


# --- every name -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names())
def test_the_network_of_each_config_takes_its_data(name):
    config = config_with(name)
    experiment = build(config, SHAPES.get(name, IMAGES))
    generates = OBJECTIVES[config.loss.objective.name].trains_denoiser()
    answer = experiment.facts.shape if generates else (config.network.num_classes,)
    assert answers(experiment, config).shape == (2, *answer)


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_each_sde_with_each_parameterization(sde, parameterization):
    config = config_with(sde__name=sde, denoiser__parameterization=parameterization)
    experiment = build(config, IMAGES)
    assert type(experiment.sde) is type(SDES[sde]())
    assert torch.isfinite(answers(experiment, config)).all()


WITH_CLASSES = [
    name
    for name, kind in NETWORKS.items()
    if not hasattr(kind, "output_kinds") and "num_classes" in choices.defaults("network", name)
]


@pytest.mark.parametrize("network", sorted(WITH_CLASSES))
def test_labels_reach_each_network(network):
    config = config_with({"mlp": "points"}.get(network, "vpsde"), network__name=network, network__num_classes=3)
    experiment = build(config, POINTS if network == "mlp" else IMAGES)
    x, label = torch.ones(2, *experiment.facts.shape), torch.tensor([0, 2])
    assert experiment.network(x, torch.zeros(2), label=label).shape == x.shape


@pytest.mark.parametrize("name", WEIGHTS)
def test_each_weight_is_positive(name):
    sde, t = SDES["vpsde"](), torch.linspace(0.01, 1, 5).reshape(-1, 1)
    weight = make_weight(config_with(loss__weight=name).loss.weight, sigma_data=0.5)(sde, t)
    assert weight.shape == t.shape
    assert (weight > 0).all()


def test_the_edm_weight_takes_the_deviation_of_the_data():
    sde, t = SDES["vpsde"](), torch.tensor([[0.3]])
    alpha, sigma, _ = sde.marginal(0.3)
    weight = make_weight(config_with(loss__weight="edm").loss.weight, sigma_data=0.5)(sde, t)
    assert weight.item() == pytest.approx((alpha**2 * 0.5**2 + sigma**2) / (0.5 * sigma) ** 2, rel=1e-5)


@pytest.mark.parametrize("name", TIMESTEP_SAMPLERS)
@pytest.mark.parametrize("sde", SDES)
def test_each_timestep_sampler_stays_in_the_interval(name, sde):
    sde = SDES[sde]()
    t, correction = make_timestep_sampler(config_with(loss__timestep_sampler=name).loss.timestep_sampler)(
        sde, torch.linspace(0, 0.999, 50).reshape(-1, 1)
    )
    assert t.min() >= sde.t_min
    assert t.max() <= sde.t_max
    assert (correction > 0).all()


def test_the_lognormal_law_takes_mean_and_deviation():
    """The quantile one standard deviation above the mean, where the ends of the interval cut off almost nothing."""
    sde, above = SDES["edm"](), 0.5 * math.erfc(-1 / math.sqrt(2))
    options = {"mean": -0.7, "std": 0.4, "tail": 0.0}
    changes = {f"loss__timestep_sampler__{key}": value for key, value in options.items()}
    t, _ = make_timestep_sampler(config_with(**changes).loss.timestep_sampler)(sde, torch.tensor([[0.5], [above]]))
    torch.testing.assert_close(
        -0.5 * sde.log_snr(t.double()).flatten(), torch.tensor([-0.7, -0.3]).double(), atol=1e-4, rtol=0
    )


# --- facts measured on the data ---------------------------------------------------------------------------------------


def test_facts_of_the_digits():
    config = config_with()
    dataset = read_dataset(config.data, "train")
    facts = DataFacts.of(dataset, fit_codec(config, "train", dataset))
    x = (dataset.batch(np.arange(len(dataset)))["x"].double().numpy() + 0.5) * 2 / 17 - 1
    assert (facts.shape, facts.levels) == ((1, 8, 8), 17)
    assert facts.std == pytest.approx(x.std(), rel=1e-5)
    assert DataFacts.from_dict(json.loads(json.dumps(asdict(facts)))) == facts


def test_the_moment_matched_gaussian_of_the_digits_is_their_covariance_with_the_noise_within_a_level():
    config = config_with()
    dataset = read_dataset(config.data, "train")
    found = moment_matched(dataset, fit_codec(config, "train", dataset))
    x = (dataset.batch(np.arange(len(dataset)))["x"].double().numpy().reshape(-1, 64) + 0.5) * 2 / 17 - 1
    covariance = (found.directions * found.variances) @ found.directions.mT
    np.testing.assert_allclose(covariance, np.cov(x.T, bias=True) + (2 / 17) ** 2 / 12 * np.eye(64), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.mean.numpy(), x.mean(0).reshape(1, 8, 8), rtol=0, atol=1e-6)
    assert {value.dtype for value in found.state_dict().values()} == {torch.float64}


def test_real_valued_data_have_no_noise_within_a_level():
    config = config_with("points")
    dataset = read_dataset(config.data, "train")
    found = moment_matched(dataset, fit_codec(config, "train", dataset))
    x = dataset.batch(order(0, 0, len(dataset))[:10_000])["x"].double().numpy()
    covariance = (found.directions * found.variances) @ found.directions.mT
    np.testing.assert_allclose(covariance, np.cov(x.T, bias=True), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("entries", "num"), [(1, 1), (63, 1), (64, 1), (6_400, 100), (10**9, 1437)])
def test_the_moment_matched_gaussian_uses_as_many_examples_as_fit_in_memory(entries, num, monkeypatch):
    """It uses the first of the examples measured for the other facts, at least one."""
    monkeypatch.setattr(statistics, "MOST_ENTRIES", entries)
    dataset = read_dataset(config_with().data, "train")
    codec = fit_codec(config_with(), "train", dataset)
    expected = codec.encode(dataset.batch(order(0, 0, len(dataset))[:num])["x"])
    assert torch.equal(examples(dataset, codec), expected)


@pytest.mark.parametrize(("std", "variance"), [(0.5, 0.25), (0.0, 1.0)])
def test_without_a_moment_matched_gaussian_the_default_has_the_deviation_of_the_data(std, variance):
    found = build(config_with(), dataclasses.replace(IMAGES, std=std)).gaussian
    assert (found.rest, len(found.variances)) == (variance, 0)
    assert torch.equal(found.mean, torch.zeros(1, 8, 8, dtype=torch.float64))
    given = Gaussian(torch.ones(1, 8, 8, dtype=torch.float64), 0.5)
    assert build(config_with(), IMAGES, given).gaussian is given


def test_a_trained_run_has_its_moment_matched_gaussian(digits, tmp_path):
    """It is read, not measured; an older checkpoint without one gives a Gaussian of the data's standard deviation."""
    config = stored(digits)
    dataset = read_dataset(config.data, "train")
    found = load_run(config, digits, Options())[0].gaussian.state_dict()
    measured = moment_matched(dataset, fit_codec(config, "train", dataset)).state_dict()
    assert all(torch.equal(found[key], measured[key]) for key in measured)
    newest = checkpoint.find(digits / "checkpoints")
    path = shutil.copytree(newest, tmp_path / "checkpoints" / newest.name)
    meta = json.loads((path / "meta.json").read_text())
    del meta["sha256"][checkpoint.GAUSSIAN]
    (path / "meta.json").write_text(json.dumps(meta))
    experiment, *_ = load_run(config, tmp_path, Options())
    assert experiment.gaussian.std == pytest.approx(experiment.facts.std, rel=1e-12)


@pytest.mark.parametrize(("given", "taken"), [(0.0, IMAGES.std), (0.25, 0.25)])
def test_sigma_data_is_measured_unless_given(given, taken):
    config = config_with(denoiser__sigma_data=given)
    experiment = build(config, IMAGES)
    assert experiment.denoiser(experiment.network, config).sigma_data == taken


@pytest.mark.parametrize("sde", ["vesde", "edm"])
@pytest.mark.parametrize(("given", "taken"), [(0.0, IMAGES.diameter), (20.0, 20.0)])
def test_sigma_max_is_the_diameter_unless_given(sde, given, taken):
    made = build(config_with(sde, sde__sigma_max=given), IMAGES).sde
    assert made.sigma(torch.tensor(made.t_max)).item() == pytest.approx(taken, rel=1e-5)


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_a_path_is_read_or_refused(name):
    with pytest.raises((ValueError, DataError), match="nowhere"):
        read_dataset(config_with(data__name=name, data__path="nowhere").data, "test")


def test_images_take_both_paths(tmp_path):
    for folder, num in (("a", 3), ("b", 2)):
        (tmp_path / folder).mkdir()
        for k in range(num):
            Image.new("L", (4, 4), k).save(tmp_path / folder / f"{k}.png")
    config = config_with(data__name="images", data__path=tmp_path / "a", data__test_path=tmp_path / "b")
    assert [len(read_dataset(config.data, split)) for split in ("train", "test")] == [3, 2]


# --- refused configs --------------------------------------------------------------------------------------------------


def test_make_passes_the_options_without_the_name():
    assert make({"pair": lambda **options: options}, "thing", {"name": "pair", "a": 1}, b=2) == {"a": 1, "b": 2}


def test_an_unknown_name_gives_similar_names():
    with pytest.raises(ValueError, match="unknown sde 'vpsd'; did you mean 'vpsde'"):
        pick(SDES, "sde", "vpsd")


@pytest.mark.parametrize(
    ("facts", "changes", "words"),
    [
        (POINTS, {"network__name": "mlp"}, "codec pixels .* take codec standardize or identity"),
        (IMAGES, {"codec__name": "identity"}, "codec identity .* use codec pixels"),
        (POINTS, {"codec__name": "identity"}, r"\(C, H, W\), not \(2,\)"),
        (IMAGES, {"network__channel_mult": (1, 1, 1, 1, 1)}, "does not divide by 16"),
        (IMAGES, {"denoiser__parameterization": "noise"}, "unknown parameterization 'noise'"),
    ],
)
def test_parts_that_do_not_fit_are_refused(facts, changes, words):
    with pytest.raises(ValueError, match=words):
        build(config_with(**changes), facts)


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "cpuu", "", "meta"])
def test_a_missing_device_is_refused(name):
    with pytest.raises(ValueError, match=f"device '{name}' cannot be used: .*; try --device cpu or auto"):
        make_device(name)


def test_available_devices_are_accepted():
    assert make_device("cpu") == torch.device("cpu")
    assert torch.empty(1, device=make_device("auto")).numel() == 1
