"""Pairs of ways to run a network, with and without a condition, against the plain float32 run.

Precision, compilation, distribution, averages and guidance are wrappers around a network or a denoiser. Each has its
own
tests; these nest them.
"""

import json
import shutil

import numpy as np
import pytest
import torch

from score_sde import run as command_line
from score_sde.engine import ranks
from score_sde.engine.config import Options, override, stored
from score_sde.engine.drawing import Counted, draw_run
from score_sde.engine.inference import frozen
from score_sde.engine.training.ema import EMA
from score_sde.models import MLP, Captioned, Classifier
from score_sde.samplers import autoguidance, classifier, classifier_free, dynamic_threshold, static_threshold, within
from score_sde.sde_lib import SDES, Classification, Denoiser, PerExample, for_examples, transport
from score_sde.sde_lib import Classifier as NoisyClassifier
from score_sde.sde_lib.objective import Denoising

SDE = SDES["vpsde"]()
CLOSE = {torch.float32: {"rtol": 1e-5, "atol": 1e-6}, torch.bfloat16: {"rtol": 0.03, "atol": 0.03}}
"""Tolerances by the network's precision."""

draw = torch.Generator().manual_seed(0)
X = torch.randn(6, 1, 8, 8, generator=draw)
EPS = torch.randn(6, 1, 8, 8, generator=draw)
T = torch.linspace(0.2, 0.8, 6).reshape(6, 1, 1, 1)
LABEL, KEEP = torch.arange(6) % 3, torch.arange(6) > 0
CONDITIONS = {"without": {}, "with": {"label": LABEL, "keep": KEEP}}


@pytest.fixture
def graphs(monkeypatch):
    """Lets torch.compile capture graphs and run them unchanged; returns the list of captured graphs."""
    compile_, captured = torch.compile, []
    torch._dynamo.reset()  # a function is captured at most eight times

    def backend(graph, inputs):
        captured.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda call, **_: compile_(call, backend=backend, dynamic=False))
    return captured


@pytest.fixture
def group(monkeypatch, tmp_path):
    """A process group of one, whose network is wrapped as in a larger group."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    monkeypatch.setattr(ranks, "_everyone", lambda: torch.distributed.group.WORLD)
    monkeypatch.setattr(ranks, "size", lambda: 2)
    monkeypatch.setattr(ranks, "sum_over", lambda values: values)
    yield
    torch.distributed.destroy_process_group()


def network(kind=MLP, **options):
    """A small network whose last layers are not zero, identical at each call."""
    torch.manual_seed(0)
    made = kind((1, 8, 8), **options)
    with torch.no_grad():
        for parameter in made.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.2)
    return made


def mlp():
    return network(MLP, width=8, depth=1, num_classes=3)


def trained_classifier(kind=Classifier, **options):
    return network(kind, channels=4, num_classes=2, dropout=0.0, **options)


# --- training ---------------------------------------------------------------------------------------------------------

WRAPPED = {"alone": lambda network: network, "parallel": ranks.parallel, "sharded": ranks.sharded}


def loss_and_gradients(made, denoise, objective, precision, **cond):
    """The losses of a batch, and the gradient of their mean."""
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        losses = objective(denoise, X, EPS, T, torch.randn_like, 0.0, **cond)
    losses.mean().backward()
    gradients = torch.cat([ranks.whole(p.grad).flatten() for p in made.parameters() if p.grad is not None])
    return losses.detach(), gradients


TRAINING = [
    ("alone", torch.float32, True),
    ("parallel", torch.bfloat16, False),
    ("parallel", torch.bfloat16, True),
    ("sharded", torch.float32, False),
    ("sharded", torch.bfloat16, False),
]
"""A sharded network is not compiled: tests/test_sharding.py."""


@pytest.mark.parametrize(("name", "precision", "compiled"), TRAINING)
def test_training(group, graphs, name, precision, compiled):
    """Losses and gradients of denoising with and without a label, and of a classifier."""
    denoising, classification = Denoising(SDE, lambda sde, t: torch.ones_like(t)), Classification(SDE)
    cases = [(mlp, Denoiser, ("eps", 0.5), denoising, cond) for cond in CONDITIONS.values()]
    cases.append((trained_classifier, NoisyClassifier, (0.5,), classification, {"label": LABEL % 2}))
    for make, model, options, objective, cond in cases:
        plain, made = make(), make()
        expected = loss_and_gradients(plain, model(plain, SDE, *options), objective, torch.float32, **cond)
        wrapped = WRAPPED[name](made)
        assert getattr(wrapped, "num_classes", None) == getattr(plain, "num_classes", None)
        denoise = model(torch.compile(wrapped) if compiled else wrapped, SDE, *options)
        found = loss_and_gradients(made, denoise, objective, precision, **cond)
        for one, other in zip(found, expected, strict=True):
            scale = other.abs().max()
            torch.testing.assert_close(one / scale, other / scale, **CLOSE[precision])
    assert bool(graphs) == compiled


def test_averages_of_a_sharded_network(group):
    """A profile gathered for pictures and checkpoints equals the one computed without sharding."""
    plain, made = mlp(), mlp()
    ranks.sharded(made)
    averages = [EMA(m, (0.9,), profiles=(0.1,)) for m in (plain, made)]
    for average in averages:
        for parameter in average._followed[0]:
            ranks.local(parameter).data.mul_(1.5)
        average.update()
    with averages[1].whole():
        for k, cond in [(k, cond) for k in range(2) for cond in CONDITIONS.values()]:
            expected, found = (
                Denoiser(frozen(average.networks[k], torch.float32, False), SDE, "eps", 0.5)(X, T, **cond).x0
                for average in averages
            )
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


# --- inference --------------------------------------------------------------------------------------------------------

WAYS = {
    "bfloat16": (torch.bfloat16, False),
    "compiled": (torch.float32, True),
    "bfloat16, compiled": (torch.bfloat16, True),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_inference_network_keeps_attributes_methods_and_weights(graphs, way):
    """Attributes, methods and weights; methods that take states compute in the inference precision."""
    made = trained_classifier(Captioned, names=("cat", "dog"))
    used = frozen(made, *WAYS[way])
    assert type(used) is type(made)
    assert (used.num_classes, used.words) == (made.num_classes, made.words)
    assert [id(p) for p in used.parameters()] == [id(p) for p in made.parameters()]
    pair, plain = (NoisyClassifier(n, SDE, 0.5) for n in (used, made))
    precision = WAYS[way][0]
    for found, expected in ((pair(X, 0.5), plain(X, 0.5)), (pair.features(X, T), plain.features(X, T))):
        torch.testing.assert_close(found / expected.abs().max(), expected / expected.abs().max(), **CLOSE[precision])
        assert found.dtype == torch.float32
        assert torch.equal(found, expected) == (precision == torch.float32)


def guided(denoise, classify, cond):
    """All kinds of guidance, nested; a denoiser for each example."""

    def make(rows):
        own = {key: value[rows] for key, value in cond.items() if key == "label"}
        plain = Counted(denoise)
        lean = classifier_free(plain, 2.0) if own else plain
        lean = classifier(lean, SDE, classify.log_prob(LABEL[rows] % 2), 1.5)
        lean = autoguidance(lean, transport(plain, SDE, SDE), 1.3)
        lean = within(lean, plain, SDE, 0.1, 50.0)
        return lambda x, t: static_threshold(dynamic_threshold(lean))(x, t, **own)

    return PerExample(make)


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("way", WAYS)
def test_guidance(graphs, way, condition):
    """All guidance for a batch and for a subset of it, with networks in each way of inference."""
    precision, compiled = WAYS[way]
    networks = [(frozen(mlp(), *w), frozen(trained_classifier(), *w)) for w in ((torch.float32, False), WAYS[way])]
    plain, fast = (
        guided(Denoiser(n, SDE, "eps", 0.5), NoisyClassifier(c, SDE, 0.5), CONDITIONS[condition]) for n, c in networks
    )
    rows = torch.tensor([4, 1, 2])
    with torch.no_grad():
        whole = plain(X, 0.4).x0
        torch.testing.assert_close(for_examples(plain, rows)(X[rows], 0.4).x0, whole[rows], rtol=1e-5, atol=1e-5)
        for t in (0.4, T):
            expected = plain(X, t).x0
            torch.testing.assert_close(fast(X, t).x0, expected, **CLOSE[precision])
        torch.testing.assert_close(for_examples(fast, rows)(X[rows], 0.4).x0, whole[rows], **CLOSE[precision])
    assert bool(graphs) == compiled


def test_wrappers_of_a_denoiser_by_example_keep_the_examples_apart():
    """Counting, guidance and a change of process keep the denoiser of each example."""
    labels, denoise = torch.arange(6) % 3, Denoiser(mlp().eval(), SDE, "eps", 0.5)
    each = PerExample(lambda rows: lambda x, t: denoise(x, t, label=labels[rows]))
    rows = torch.tensor([5, 0])
    ways = {
        "counted": Counted(each),
        "classifier": classifier(each, SDE, lambda x, t: -x.flatten(1).square().sum(1), 0.5),
        "auto": autoguidance(each, each, 2.0),
        "autoguidance": autoguidance(denoise, weaker=each, scale=2.0),
        "within": within(each, denoise, SDE, 0.1, 1.0),
        "static": static_threshold(each),
        "dynamic": dynamic_threshold(each),
        "carried": transport(each, SDE, SDES["vesde"]()),
        "nested": static_threshold(within(autoguidance(Counted(each), denoise, 1.5), denoise, SDE)),
    }
    for name, wrapped in ways.items():
        with torch.no_grad():
            found, whole = for_examples(wrapped, rows)(X[rows], 0.4).x0, wrapped(X, 0.4).x0
        assert torch.allclose(found, whole[rows], rtol=1e-5, atol=1e-5), name


# --- commands ---------------------------------------------------------------------------------------------------------

SMALL = {
    "network.channels": 8,
    "optim.learning_rate": 1e-2,
    "optim.warmup_images": 0,
    "train.batch_size": 16,
    "train.sample_every": 0,
    "train.total_images": 320,
}


def command(*words):
    """Runs a command in this process and returns its exit status."""
    return command_line.main(["run.py", *map(str, words)])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a run with labels, one without, and a classifier, whose configs set bfloat16 and compilation."""
    folder = tmp_path_factory.mktemp("runs")
    more = {"ema.profiles": "(0.1,)", "train.label_dropout": 0.2}
    for name, config, keys in (("label", "conditional", more), ("none", "vpsde", {}), ("classifier", "classifier", {})):
        words = [f"--config.{key}={value}" for key, value in (SMALL | keys).items()]
        assert command("--mode=train", f"--config={config}", "--device=cpu", f"--workdir={folder / name}", *words) == 0
    for name, precision, compiled in (("low", "bfloat16", False), ("fast", "float32", True)):
        shutil.copytree(folder / "classifier", folder / name)
        config = json.loads((folder / name / "config.json").read_text())
        config["inference"] |= {"precision": precision, "compile": compiled}
        (folder / name / "config.json").write_text(json.dumps(config))
    return folder


FAST = {"inference.compile": "true"}
LOW = {"inference.precision": "bfloat16"}
GUIDED = {"sample.label": "all", "guidance.scale": 2}
LOOSE = {"sample.sampler": "ode", "sample.sampler.rtol": 3e-2, "sample.sampler.atol": 3e-2}
SAMPLES = [
    ("none", {}, LOW | FAST, "ema"),
    ("none", LOOSE, FAST, "ema"),
    ("none", {"guidance.classifier": "classifier"}, LOW, "ema"),
    ("label", {"sample.label": "1"}, LOW | FAST, "ema:0.1"),
    ("label", GUIDED, FAST, "ema:0.1"),
    ("label", GUIDED | LOOSE, LOW, "raw"),
    ("label", GUIDED | {"guidance.classifier": "low"}, FAST, "ema"),
    ("label", GUIDED | {"guidance.classifier": "fast", "guidance.autoguidance": "label"}, LOW, "ema"),
]


@pytest.mark.parametrize(("run", "condition", "way", "weights"), SAMPLES)
def test_sampling(runs, graphs, monkeypatch, run, condition, way, weights):
    """Samples of six seeds; the expected ones use the runs in float32, uncompiled."""
    monkeypatch.chdir(runs)

    def samples(changes):
        config = stored(runs / run)
        override(config, [(key, str(value)) for key, value in changes.items()])
        return draw_run(config, runs / run, Options(weights=weights), 6, 6).x0

    base = {"sample.sampler": "ddim", "sample.steps": 3} | condition
    plain = base | {"guidance.classifier": "classifier"} if "guidance.classifier" in base else base
    expected, found = samples(plain), samples(base | way)
    low = way.get("inference.precision") or condition.get("guidance.classifier") == "low"
    error = (found - expected).abs() / expected.std()
    assert error.mean() < (0.03 if low else 1e-4)
    assert bool(graphs) == ("inference.compile" in way)


@pytest.mark.parametrize(("run", "way"), [("none", LOW), ("label", LOW | FAST)])
def test_likelihood(runs, graphs, run, way):
    """Gradients are not compiled; evaluations without a trace are."""
    words = [
        "--config.likelihood.num_examples=4",
        "--config.likelihood.evaluations=6",
        "--config.likelihood.solver.traces=3",
    ]
    words += ["--config.likelihood.check_examples=0", "--config.likelihood.batch_size=4"]
    found = []
    for changes in ({}, way):
        given = [f"--config.{key}={value}" for key, value in changes.items()]
        assert command("--mode=likelihood", f"--workdir={runs / run}", *words, *given) == 0
        with np.load(runs / run / "likelihood" / "test-uniform.npz") as file:
            found.append(file["bits_per_dim"])
    assert found[1] == pytest.approx(found[0], abs=0.02 if "inference.precision" in way else 1e-5)
    assert bool(graphs) == ("inference.compile" in way)


@pytest.mark.parametrize(("run", "classifier"), [("none", "fast"), ("label", "low")])
def test_evaluation(runs, graphs, run, classifier):
    """Distances in the features of a classifier that runs in bfloat16, or compiled."""
    words = ["--sampler=ddim", "--steps=2", "--config.evaluate.num_samples=30", "--config.evaluate.num_examples=60"]
    words += ["--config.evaluate.subsets=2", "--config.evaluate.subset_size=20"]
    words += ["--config.sample.label=all"] if run == "label" else []
    found = []
    for features in ("classifier", classifier):
        given = f"--config.evaluate.features={runs / features}"
        assert command("--mode=evaluate", f"--workdir={runs / run}", *words, given) == 0
        path = runs / run / "evaluation" / "ddim-2-classifier-test.json"
        found.append(json.loads(path.read_text())["metrics"]["frechet_distance"]["samples"])
    assert found[1] == pytest.approx(found[0], rel=0.03 if classifier == "low" else 1e-5)
