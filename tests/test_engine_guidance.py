"""Labels and guidance from the command line: conditions of the network, refusals, and training with labels."""

import json
import shutil

import numpy as np
import pytest
import torch

from score_sde import run as command_line
from score_sde import sde_lib
from score_sde.configs.choices import choose
from score_sde.data import batch_at
from score_sde.engine import tuned
from score_sde.engine.config import Options, load, stored
from score_sde.engine.datasets import read_dataset
from score_sde.engine.drawing import draw, draw_pairs
from score_sde.engine.guidance import Guidance
from score_sde.engine.load import load as load_run
from score_sde.engine.load import load_model
from score_sde.engine.randomness import kept
from score_sde.engine.sampler import make_step, make_times
from score_sde.engine.training.trainer import Trainer
from score_sde.engine.training.validation import Validation
from score_sde.samplers import GRIDS, STEPS
from tests.runs import tolerances

SMALL = {
    "network.channels": 8,
    "optim.learning_rate": 1e-2,
    "optim.warmup_images": 0,
    "train.batch_size": 16,
    "train.sample_every": 0,
}


def command(*words):
    """Runs a command in this process and returns its exit status."""
    return command_line.main(["run.py", *map(str, words)])


def trained(workdir, config, images, **keys):
    """Folder of a short run of this config, with other values for some keys."""
    values = SMALL | {key.replace("__", "."): value for key, value in keys.items()} | {"train.total_images": images}
    words = [f"--config.{key}={value}" for key, value in values.items()]
    assert command("--mode=train", f"--config={config}", "--device=cpu", f"--workdir={workdir}", *words) == 0
    return workdir


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A conditional run, with checkpoints of steps 30 and 60."""
    folder = tmp_path_factory.mktemp("labelled")
    return trained(folder, "conditional", 960, train__label_dropout=0.2, train__checkpoint_every=30)


@pytest.fixture(scope="module")
def certain(tmp_path_factory):
    """A conditional run trained without label dropout."""
    return trained(tmp_path_factory.mktemp("certain"), "conditional", 32, train__label_dropout=0)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A classifier of noisy digits."""
    return trained(tmp_path_factory.mktemp("classifier"), "classifier", 1600)


@pytest.fixture
def drawn():
    """Samples from a run: (arrays, manifest)."""

    def run(workdir, *words, sampler="ddim", steps=4, num=5):
        flags = (f"--sampler={sampler}", f"--steps={steps}", f"--num_samples={num}")
        loose = tolerances(sampler, control_rtol=0.5)
        assert command("--mode=sample", f"--workdir={workdir}", *flags, *loose, *words) == 0
        folder = workdir / "samples" / f"{sampler}-{steps}"
        return dict(np.load(folder / "samples.npz")), json.loads((folder / "manifest.json").read_text())

    return run


@pytest.fixture
def asked(monkeypatch):
    """Records the calls of a run's network: a list of (number of examples, conditions)."""
    found, forward = [], sde_lib.Denoiser.forward

    def listen(self, x, t, **cond):
        found.append((len(x), cond))
        return forward(self, x, t, **cond)

    monkeypatch.setattr(sde_lib.Denoiser, "forward", listen)
    return found


def refused(capsys, status, message, *words):
    """Asserts that a command fails with this message, in one line, and leaves no samples."""
    assert command("--mode=sample", "--num_samples=2", "--steps=2", "--sampler=ddim", *words) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "expected"), [("3", [3] * 12), ("0", [0] * 12), ("all", [*range(10), 0, 1])])
def test_a_label_reaches_the_network_and_the_files(text, expected, labelled, drawn, asked):
    found, manifest = drawn(labelled, f"--label={text}", "--batch_size=8", num=12)
    assert found["label"].tolist() == expected
    told = [(num, cond["label"].tolist()) for num, cond in asked]
    assert told == [(8, expected[:8])] * (len(told) // 2) + [(4, expected[8:])] * (len(told) // 2)
    assert manifest["guidance"] == {"label": text if text == "all" else int(text)}


def test_samples_of_a_label_match_the_network_called_directly(labelled, drawn):
    found, _ = drawn(labelled, "--label=7")
    config = stored(labelled)
    config.sample.sampler, config.sample.steps = choose("sample.sampler", "ddim"), 4
    experiment, denoise, _ = load_run(config, labelled, Options())
    sevens = torch.full((5,), 7)
    step, times = make_step(config.sample, experiment), make_times(config.sample, experiment)
    expected = draw(experiment, lambda x, t: denoise(x, t, label=sevens), step, times, torch.arange(5))
    assert np.array_equal(found["samples"], expected.movedim(1, -1))
    plain, manifest = drawn(labelled)
    assert "label" not in plain
    assert manifest["guidance"] == {}
    assert not np.array_equal(found["samples"], plain["samples"])


@pytest.mark.parametrize("sampler", ["ddim", "ancestral", "pc", "adams", "ode", "adaptive_sde"])
def test_a_labelled_sample_does_not_depend_on_the_batch_size(sampler, labelled, drawn):
    """Labels continue from the first sample for any batch size and seed; solvers that drop finished examples keep the
    labels of the others.
    """
    words, steps = ("--label=all", "--config.guidance.scale=2"), 1 if sampler in ("ode", "adaptive_sde") else 3
    alone, some = (drawn(labelled, *words, f"--batch_size={b}", sampler=sampler, steps=steps, num=3)[0] for b in (1, 3))
    assert np.array_equal(alone["samples"], some["samples"])
    assert some["label"].tolist() == [0, 1, 2]


def test_the_seed_offset_does_not_shift_labels(labelled, drawn, asked):
    found, _ = drawn(labelled, "--label=all", "--seed=3")
    assert found["label"].tolist() == asked[0][1]["label"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("text", ["10", "-1", "3.0", "three", "²"])
def test_labels_out_of_range(text, labelled, capsys):
    refused(capsys, 2, f"error: --label {text}: need 0 to 9, or all", f"--workdir={labelled}", f"--label={text}")


@pytest.mark.parametrize("text", ["3", "all"])
def test_a_label_for_an_unconditional_run(text, digits, capsys):
    message = f"error: --label {text}: {digits} was trained without labels; train with --config conditional, or name a"
    refused(capsys, 2, message, f"--workdir={digits}", f"--label={text}")


# --- the scale of a label ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ddim", "ancestral", "ode"])
def test_scales_0_and_1_equal_the_unconditional_and_conditional_run(sampler, labelled, drawn):
    steps = 1 if sampler == "ode" else 4
    keep = "--config.sample.keep_latents=true"
    without, labels, none, one, two = (
        drawn(labelled, keep, *words, sampler=sampler, steps=steps)[0]["x0"]
        for words in (
            (),
            ("--label=4",),
            *(("--label=4", f"--config.guidance.scale={scale}") for scale in (0, 1, 2)),
        )
    )
    assert np.array_equal(none, without)
    assert np.array_equal(one, labels)
    for other in (without, labels):
        assert abs(two - other).max() > 1e-2


def test_a_scale_is_one_evaluation_of_twice_the_batch(labelled, drawn, asked):
    _, manifest = drawn(labelled, "--label=2", "--config.guidance.scale=3")
    assert manifest["nfe"] == len(asked) == 5
    for num, cond in asked:
        assert num == 10
        assert cond["label"].tolist() == [2] * 10
        assert cond["keep"].tolist() == [True] * 5 + [False] * 5
    assert manifest["guidance"] == {"scale": 3.0, "label": 2, "low": 0.0, "high": 1e9}


@pytest.mark.parametrize("run", ["labelled", "digits"])
def test_a_scale_needs_a_label(run, request, capsys):
    words = (f"--workdir={request.getfixturevalue(run)}", "--config.guidance.scale=2")
    refused(capsys, 2, "error: guidance.scale 2.0 needs a label and a run trained with labels: add --label 0", *words)


@pytest.mark.parametrize("scale", [0.0, 2.0])
def test_a_scale_needs_label_dropout_in_training(scale, certain, drawn, capsys):
    words = (f"--workdir={certain}", "--label=1", f"--config.guidance.scale={scale}")
    refused(capsys, 2, "was trained with train.label_dropout 0; train with 0.1", *words)
    drawn(certain, "--label=1")


def test_a_run_that_always_had_a_label_needs_one(certain, capsys):
    refused(capsys, 2, "has no unconditional estimate: add --label 0 or --label all", f"--workdir={certain}")


# --- interval and thresholds ------------------------------------------------------------------------------------------


def test_guidance_acts_between_two_noise_levels(labelled, drawn, asked):
    """It evaluates twice the batch within the interval, and the label alone elsewhere."""
    words = ("--label=1", "--config.guidance.scale=2", "--config.guidance.low=0.5", "--config.guidance.high=5")
    _, manifest = drawn(labelled, *words, steps=12)
    sde = sde_lib.SDES["vpsde"]()
    ratios = [sde.marginal(t) for t in GRIDS[STEPS["ddim"].grid or sde.grid](sde, 12, None, 1e-3).tolist()]
    inside = [0.5 <= marginal.sigma / marginal.alpha <= 5 for marginal in ratios]
    assert [num == 10 for num, _ in asked] == inside
    assert 2 < sum(inside) < 11
    assert manifest["guidance"].items() >= {"low": 0.5, "high": 5.0}.items()


def test_an_interval_with_nothing_in_it_is_the_label_alone(labelled, drawn):
    words = ("--label=1", "--config.guidance.scale=2", "--config.guidance.low=1e7", "--config.guidance.high=1e8")
    assert np.array_equal(drawn(labelled, *words)[0]["samples"], drawn(labelled, "--label=1")[0]["samples"])


def test_an_empty_interval_is_refused(labelled, capsys):
    words = ("--label=1", "--config.guidance.scale=2", "--config.guidance.low=2", "--config.guidance.high=1")
    refused(capsys, 2, "noise levels from 2.0 to 1.0: need 0 <= low < high", f"--workdir={labelled}", *words)


@pytest.mark.parametrize("threshold", ["static", "dynamic"])
@pytest.mark.parametrize("low", [-1.0, 0.0])
def test_thresholds_keep_estimates_in_the_range_of_the_data(threshold, low, labelled, monkeypatch):
    """The codec's range, even for a network with arbitrary output."""
    config = stored(labelled)
    config.guidance.threshold, config.codec.low = threshold, low
    experiment, _, _ = load_run(config, labelled, Options())
    guidance = Guidance(config, labelled, experiment)
    x = 3 * torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = guidance(lambda x, t: sde_lib.Prediction(x), torch.arange(4))(x, 0.5).x0
    assert found.min() == pytest.approx(low, abs=1e-6)
    assert found.max() == pytest.approx(1, abs=1e-6)
    inside = (x > low) & (x < 1)
    assert torch.equal(found[inside], x[inside]) == (threshold == "static")
    assert guidance.record() == {"threshold": threshold} | ({"quantile": 0.995} if threshold == "dynamic" else {})


def test_invalid_thresholds_are_refused(digits, points, capsys):
    words = (f"--workdir={digits}", "--config.guidance.threshold=dinamic")
    refused(capsys, 2, "error: unknown threshold 'dinamic'; did you mean 'dynamic'?", *words)
    words = (f"--workdir={digits}", "--config.guidance.threshold=dynamic", "--config.guidance.quantile=0")
    refused(capsys, 2, "error: guidance.quantile 0.0: need above 0 to 1, usually 0.995", *words)
    words = (f"--workdir={points}", "--config.guidance.threshold=static")
    refused(
        capsys, 2, f"error: guidance.threshold static clips to the range of levels, and the data of {points}", *words
    )


# --- a weaker run -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_noise(tmp_path_factory):
    """A run on the same data with another process."""
    return trained(tmp_path_factory.mktemp("vesde"), "vesde", 32)


def test_samples_are_guided_away_from_a_weaker_run(digits, other_noise, drawn):
    """By hand: lerp of the estimates, at the same log-SNR and the same x / alpha in both processes."""
    config = stored(digits)
    config.sample.sampler, config.sample.steps = choose("sample.sampler", "ddim"), 4
    (experiment, denoise, _), (theirs, weak, _) = (
        load_run(stored(folder), folder, Options()) for folder in (digits, other_noise)
    )

    def expected(x, t):
        alpha, _, log_snr = experiment.sde.marginal(t)
        there = theirs.sde.time(torch.tensor(log_snr, dtype=torch.float64)).item()
        there = min(max(there, theirs.sde.t_min), theirs.sde.t_max)
        below = weak(theirs.sde.marginal(there).alpha / alpha * x, there).x0
        return sde_lib.Prediction(below + 3 * (denoise(x, t).x0 - below))

    step, times = make_step(config.sample, experiment), make_times(config.sample, experiment)
    x0 = draw_pairs(experiment, expected, step, times, torch.arange(5))[1]
    words = (f"--config.guidance.autoguidance={other_noise}", "--config.guidance.autoguidance_scale=3")
    found, manifest = drawn(digits, *words, "--config.sample.keep_latents=true")
    np.testing.assert_allclose(found["x0"], x0, rtol=0, atol=1e-3)
    assert manifest["guidance"].items() >= {"autoguidance": str(other_noise), "autoguidance_scale": 3.0}.items()
    plain, _ = drawn(digits)
    alone, _ = drawn(digits, words[0], "--config.guidance.autoguidance_scale=1")
    assert np.array_equal(alone["samples"], plain["samples"])
    assert not np.array_equal(found["samples"], plain["samples"])


@pytest.mark.parametrize(
    ("run", "other", "status", "message"),
    [
        (
            "digits",
            "points",
            2,
            "has data of shape (2,) in 0 levels from 0 up, this run data of shape (1, 8, 8) in 17",
        ),
        ("digits", "labelled", 2, "has 10 classes, this run 0: need as many"),
        ("labelled", "digits", 2, "has 0 classes, this run 10: need as many"),
        ("digits", "classifier", 2, "is a classifier, which draws nothing"),
        ("digits", "tmp_path", 3, "config.json is missing; train one"),
    ],
)
def test_unsuitable_weaker_runs_are_refused(run, other, status, message, request, capsys):
    run, other = map(request.getfixturevalue, (run, other))
    refused(capsys, status, message, f"--workdir={run}", f"--config.guidance.autoguidance={other}")


# --- a classifier -----------------------------------------------------------------------------------------------------


def own_log_prob(folder, x0, label):
    """Mean log-probability of a label for clean examples, by a classifier."""
    experiment, classify, _ = load_model(stored(folder), folder, Options())
    with torch.no_grad():
        return classify.log_prob(label)(torch.from_numpy(x0), experiment.sde.t_min).mean().item()


@pytest.mark.parametrize("run", ["digits", "labelled"])
def test_a_classifier_raises_its_own_probability_of_the_label(run, request, classifier, drawn):
    workdir, found = request.getfixturevalue(run), {}
    for scale in (0, 1, 8):
        words = (f"--config.guidance.classifier={classifier}", f"--config.guidance.classifier_scale={scale}")
        words += ("--label=3", "--config.sample.keep_latents=true")
        arrays, manifest = drawn(workdir, *words, num=16, steps=10)
        found[scale] = own_log_prob(classifier, arrays["x0"], torch.from_numpy(arrays["label"]))
        assert manifest["guidance"].items() >= {"label": 3, "classifier": str(classifier)}.items()
        assert manifest["nfe"] == 11
    assert found[0] < found[1] < found[8] - 0.2


def test_without_a_label_a_classifier_takes_every_class_in_turn(digits, classifier, drawn, asked):
    """The run's own network receives no label."""
    found, manifest = drawn(digits, f"--config.guidance.classifier={classifier}", num=12)
    assert found["label"].tolist() == [*range(10), 0, 1]
    assert manifest["guidance"]["label"] == "all"
    assert all(cond == {} for _, cond in asked)


def test_classifier_guidance_of_examples_that_finish_at_different_times(digits, classifier, drawn):
    words = (f"--config.guidance.classifier={classifier}", "--config.guidance.classifier_scale=4")
    alone, whole = (drawn(digits, *words, f"--batch_size={b}", sampler="ode", steps=1)[0] for b in (1, 8))
    assert np.array_equal(alone["samples"], whole["samples"])
    assert len(np.unique(whole["samples"], axis=0)) == 5


@pytest.mark.parametrize(
    ("run", "other", "status", "message"),
    [
        ("digits", "labelled", 2, "is not a classifier: train one with python run.py --config classifier"),
        ("other_noise", "classifier", 2, "train one with python run.py --config classifier --mode train --workdir "),
        (
            "points",
            "classifier",
            2,
            "has data of shape (1, 8, 8) in 17 levels from -1 up, this run data of",
        ),
        ("digits", "tmp_path", 3, ": train one with python run.py --config classifier --mode train --workdir "),
    ],
)
def test_unsuitable_classifiers_are_refused(run, other, status, message, request, capsys):
    run, other = map(request.getfixturevalue, (run, other))
    refused(capsys, status, message, f"--workdir={run}", f"--config.guidance.classifier={other}")


def test_classifiers_of_other_noise_encodings_or_classes(digits, labelled, classifier, tmp_path, capsys, rewrite):
    """The same process with another option; the same levels with another first one; classes other than the run's."""
    edits = {
        "noise": ("sde", "beta_max", 15.0, digits, "has the noise of vpsde"),
        "encoding": ("codec", "low", 0.0, digits, "in 17 levels from 0 up, this run data"),
    }
    for name, (section, key, value, run, message) in edits.items():
        shutil.copytree(classifier, tmp_path / name)
        rewrite(tmp_path / name, section, key, value)
        refused(capsys, 2, message, f"--workdir={run}", f"--config.guidance.classifier={tmp_path / name}")
    config = stored(labelled)
    config.network.num_classes, config.guidance.classifier = 4, str(classifier)
    experiment, _, _ = load_run(stored(labelled), labelled, Options())
    with pytest.raises(ValueError, match="has 10 classes, this run 4"):
        Guidance(config, labelled, experiment)


# --- modes without guidance -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("--label=3",), ("--config.guidance.threshold=static",)])
def test_calibrations_and_densities_refuse_guidance(words, labelled, capsys):
    line = (f"--workdir={labelled}", *words)
    refused(capsys, 2, "error: a calibration is of the flow without label", *line, "--config.sample.grid=tuned")
    message = "error: --log_prob is of the run's own density: leave --label and guidance out"
    refused(capsys, 2, message, *line, "--sampler=ode", "--log_prob")


def test_an_existing_calibration_is_not_used_with_a_label(labelled, drawn, capsys):
    path = tuned.plan_path(labelled, "adams", 3)
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    for words, said in (((), 1), (("--label=3",), 0)):
        drawn(labelled, *words, sampler="adams", steps=3)
        assert capsys.readouterr().out.count("not tuned: ") == said
    path.unlink()


@pytest.mark.parametrize("task", ["interpolate", "encode", "decode"])
def test_paths_and_latents_take_no_label(task, labelled, capsys):
    assert command("--mode=edit", f"--task={task}", f"--workdir={labelled}", "--label=3") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: --task {task} takes no label and no guidance; leave them out"


# --- training with labels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5, 1.0])
def test_the_fraction_of_kept_labels(dropout):
    """To four standard errors; it depends on the position alone, and differs for another seed."""
    num = 20_000
    found = kept(5, torch.arange(num), dropout)
    assert found.dtype == torch.bool
    assert found.float().mean().item() == pytest.approx(1 - dropout, abs=4 * (dropout * (1 - dropout) / num) ** 0.5)
    assert torch.equal(kept(5, torch.arange(700, 900), dropout), found[700:900])
    assert torch.equal(kept(6, torch.arange(num), dropout), found) == (dropout in (0, 1))


def test_training_passes_the_kept_labels_to_the_network(tmp_path, asked):
    config = load("conditional")
    config.network.channels, config.train.batch_size, config.train.label_dropout, config.device = 8, 16, 0.4, "cpu"
    dataset = read_dataset(config.data, "train")
    for _ in Trainer(config, tmp_path, dataset).steps(3):
        pass
    assert len(asked) == 3
    for step, (num, cond) in enumerate(asked):
        assert num == 16
        where = torch.arange(16 * step, 16 * (step + 1))
        assert torch.equal(cond["keep"], kept(config.seed, where, 0.4))
        assert torch.equal(cond["label"], batch_at(dataset, config.seed, 16 * step, 16)["label"])
    assert 0 < sum(int(cond["keep"].sum()) for _, cond in asked) < 48


def test_a_run_with_labels_resumes_bit_for_bit(labelled, tmp_path):
    shutil.copytree(labelled, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    shutil.rmtree(folder / "step_00000060")
    assert command("--mode=train", f"--workdir={tmp_path / 'run'}", "--device=cpu") == 0
    for name in ("model.safetensors", "ema-0.999.safetensors"):
        again, before = ((at / "step_00000060" / name).read_bytes() for at in (folder, labelled / "checkpoints"))
        assert again == before


@pytest.mark.parametrize("dropout", [-0.1, 1.5])
def test_a_label_dropout_outside_of_0_to_1_is_refused(dropout, tmp_path, capsys):
    words = (f"--config.train.label_dropout={dropout}", f"--workdir={tmp_path / 'run'}")
    assert command("--mode=train", "--config=conditional", *words) == 2
    assert capsys.readouterr().err == f"error: train.label_dropout {dropout}: need 0 to 1\n"


def test_the_effect_of_the_label_is_logged(labelled, digits):
    """Recomputed from the checkpoint; a run without labels has none."""
    lines = [json.loads(line) for line in (labelled / "metrics.jsonl").read_text().splitlines()]
    logged = [line["validation_label_effect"] for line in lines if "validation_label_effect" in line]
    config = stored(labelled)
    experiment, denoise, _ = load_run(config, labelled, Options())
    validation = Validation(config, experiment, read_dataset(config.data, "test"))
    x = experiment.sde.perturb(validation.x0, validation.eps, validation.t)
    with torch.no_grad():
        with_label = denoise(x, validation.t, label=validation.cond["label"]).x0
        without = denoise(x, validation.t).x0
    expected = (with_label - without).norm() / (with_label - validation.x0).norm()
    assert logged[-1] == pytest.approx(expected.item(), rel=1e-4)
    assert logged[-1] > 0.01
    assert "label_effect" not in (digits / "metrics.jsonl").read_text()


def test_a_network_that_ignores_the_label_has_no_effect_of_it(labelled):
    config = stored(labelled)
    experiment, _, _ = load_run(config, labelled, Options())
    table = experiment.network.get_submodule("conditioning.label.table")
    with torch.no_grad():
        table.weight.copy_(table.weight[-1:].expand_as(table.weight).clone())
    validation = Validation(config, experiment, read_dataset(config.data, "test"))
    assert validation.losses(experiment.network)["validation_label_effect"] == 0
    with torch.no_grad():
        table.weight[:-1] += 0.1
    assert validation.losses(experiment.network)["validation_label_effect"] > 1e-3


def test_the_config_with_labels_uses_the_digits():
    config = load("conditional")
    assert config.network.num_classes == read_dataset(config.data, "train").num_classes == 10
    assert config.train.label_dropout == 0.1
