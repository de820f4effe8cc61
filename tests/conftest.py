"""Shared fixtures: exact distributions of several ranks, trained runs, and a single thread for reproducible results."""

import hashlib
import json

import pytest
import torch

from score_sde import run as command_line
from score_sde.engine import plane as plane_pictures
from score_sde.engine.config import stored
from score_sde.engine.recipe import MODEL, digest
from score_sde.sde_lib import SDES, GaussianMixture
from tests.trajectories import REPRESENTATIVE, transported

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def account(tmp_path_factory):
    """A temporary folder for the key that signs runs, instead of the folder of the user's account."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("account")))
        yield


@pytest.fixture(scope="session", autouse=True)
def small_pictures():
    """Few cells in the density pictures of data in the plane, still in several parts, the last one short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plane_pictures, "NUM_CELLS", 8)
        patch.setattr(plane_pictures, "CELLS_AT_A_TIME", 24)
        yield


@pytest.fixture
def rewrite():
    """Function (folder, section, key, value) that changes one config value of a run after training."""

    def run(folder, section, key, value):
        values = json.loads((folder / "config.json").read_text())
        values[section][key] = value
        (folder / "config.json").write_text(json.dumps(values))
        for path in folder.glob("checkpoints/step_*/meta.json"):
            meta = json.loads(path.read_text())
            meta["model_sha256"] = digest(stored(folder), MODEL)
            kept = json.dumps({name: value for name, value in meta.items() if name != "sha256"})
            meta["sha256"]["meta.json"] = hashlib.sha256(kept.encode()).hexdigest()
            path.write_text(json.dumps(meta))

    return run


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] * (name not in REPRESENTATIVE)) for name in SDES])
def sde(request):
    """A process with its default options: the representative ones in the quick suite, all with the slow tests.

    ``test_a_step_in_log_snr_is_the_same_for_every_process`` shows why four are enough: a step that is right for one
    process is right for all. The unit tests of processes cover each of them.
    """
    return SDES[request.param]()


def pytest_collection_modifyitems(items):
    """Marks most of the product of processes, ranks and other parameters as slow; the quick suite runs pairs.

    Process i, rank j and case k run where (i + j + k) % 3 = 0, so each pair of the three runs once. Without ranks,
    process i of n and case k of four or more run where (i + k) % (n // 2) = 0, so each case runs on two processes.
    """
    groups = {}
    for item in items:
        chosen = {key: str(value) for key, value in item.callspec.params.items()} if hasattr(item, "callspec") else {}
        if "sde" in chosen and not item.get_closest_marker("slow"):
            place = chosen.pop("sde"), chosen.pop("shaped_mixture", None), tuple(sorted(chosen.items()))
            groups.setdefault(item.function, {})[item] = place
    for members in groups.values():
        axes = [list(dict.fromkeys(axis)) for axis in zip(*members.values())]
        processes, shapes, cases = map(len, axes)
        apart = shapes if shapes > 1 else max(processes // 2, 1) if cases >= 4 else 1
        if len(members) == processes * shapes * cases:
            for item, place in members.items():
                if sum(axis.index(value) for axis, value in zip(axes, place)) % apart:
                    item.add_marker(pytest.mark.slow)


@pytest.fixture
def mixture():
    """Two unequal modes on a line, in float64."""
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    means = torch.tensor([[-1.0], [0.8]], dtype=torch.float64)
    return GaussianMixture(weights, means, torch.tensor([[0.04], [0.16]], dtype=torch.float64))


@pytest.fixture
def plane():
    """Three elongated Gaussians of unequal weight in the plane."""
    means = torch.tensor([[-1.0, 0.5], [0.8, 0.9], [0.2, -1.0]], dtype=torch.float64)
    covariances = torch.tensor(
        [[[0.05, 0.03], [0.03, 0.1]], [[0.2, -0.1], [-0.1, 0.1]], [[0.1, 0.0], [0.0, 0.02]]], dtype=torch.float64
    )
    return GaussianMixture.of_covariances(torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), means, covariances)


@pytest.fixture(params=[(3,), (2, 4), (1, 2, 3)], ids=["vector", "signal", "image"])
def shaped_mixture(request):
    """Three Gaussians with full covariances on examples of one, two and three axes, in float64."""
    generator = torch.Generator().manual_seed(0)
    num = int(torch.tensor(request.param).prod())
    roots = 0.3 * torch.randn(3, num, num, dtype=torch.float64, generator=generator)
    means = torch.randn(3, *request.param, dtype=torch.float64, generator=generator)
    covariances = roots @ roots.mT + 0.05 * torch.eye(num, dtype=torch.float64)
    return GaussianMixture.of_covariances(torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), means, covariances)


@pytest.fixture
def quantiles(sde, mixture):
    """States at t_max, their exact images under the flow at log-SNR 6, and the time of that log-SNR."""
    first, end = sde.marginal(sde.t_max), sde.time(torch.tensor(6.0, dtype=torch.float64)).item()
    x = first.alpha * mixture.mean + first.sigma * torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
    return x, transported(mixture, x, first, sde.marginal(end)), end


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A run on the digits whose weights have moved away from zero, with checkpoints of steps 4 and 8."""
    keys = {
        "network.channels": 8,
        "network.learned_variance": True,
        "optim.learning_rate": 1e-2,
        "optim.warmup_images": 0,
        "optim.decay": "constant",
    }
    keys |= {"train.total_images": 64, "train.batch_size": 8, "train.checkpoint_every": 4, "train.sample_every": 0}
    return _trained(tmp_path_factory.mktemp("digits"), "vpsde", keys)


@pytest.fixture(scope="session")
def points(tmp_path_factory):
    """A run on points whose weights have moved away from zero."""
    keys = {
        "network.width": 16,
        "network.learned_variance": True,
        "optim.learning_rate": 1e-2,
        "optim.warmup_images": 0,
        "train.total_images": 320,
    }
    return _trained(
        tmp_path_factory.mktemp("points"), "points", keys | {"train.batch_size": 32, "train.sample_every": 0}
    )


def _trained(workdir, config, keys):
    """Trains a run of this config, with other values for some keys, and returns its folder."""
    words = [f"--config.{key}={value}" for key, value in keys.items()]
    line = ["run.py", "--mode=train", f"--config={config}", "--device=cpu", f"--workdir={workdir}", *words]
    assert command_line.main(line) == 0
    return workdir
