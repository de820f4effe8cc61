"""GPU code paths without a GPU: the device of simulated.py, in a separate process each time.

Programs on it give the CPU's numbers bit for bit, mix no devices, and make the host wait only where that is expected.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from score_sde.selftest.groups import CHECKS

ROOT = Path(__file__).parent.parent


def simulated(program, *words):
    """Runs a program with ``simulated`` and the project importable, and returns its last line, parsed as JSON."""
    start = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]; import simulated\n"
    command = [sys.executable, "-c", start + "import torch; torch.set_num_threads(1)\n" + program, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


# --- the device -------------------------------------------------------------------------------------------------------

DEVICE = """
import json, warnings
found = {}

def kind(name, work):
    with simulated.counted() as waits:
        try:
            work()
        except (RuntimeError, TypeError) as error:
            found[name] = type(error).__name__
            return
    found[name] = sum(waits.values())

a, b = torch.arange(3.0), torch.arange(3.0, device="sim")
kind("mixed", lambda: a + b)
kind("number of the CPU", lambda: b * torch.tensor(2.0))
kind("numpy", b.numpy)
kind("computed", lambda: (b.exp() @ b).sqrt())
kind("made", lambda: torch.full((3,), 2.0, device="sim") + torch.zeros_like(b))
kind("item", lambda: b.sum().item())
kind("bool", lambda: bool((b > 0).any()))
kind("tolist", b.tolist)
kind("cpu", b.cpu)
kind("blocking upload", lambda: a.to("sim"))
kind("queued upload", lambda: a.to("sim", non_blocking=True))
kind("constant", lambda: torch.tensor([1.0, 2.0], device="sim"))
kind("nonzero", lambda: b.nonzero())
kind("mask", lambda: b[b > 1])
kind("indices", lambda: b[torch.arange(2, device="sim")])
kind("masked", lambda: torch.where(b > 1, b, 0))
network = torch.nn.Linear(3, 2).to("sim")
kind("backward", lambda: network(b[None]).sum().backward())
assert network.weight.grad.device.type == "sim"
print(json.dumps(found))
"""


def test_the_simulated_device_waits_and_refuses_like_a_gpu():
    assert simulated(DEVICE) == {
        "mixed": "RuntimeError",
        "number of the CPU": 0,
        "numpy": "TypeError",
        "computed": 0,
        "made": 0,
        "item": 1,
        "bool": 1,
        "tolist": 1,
        "cpu": 1,
        "blocking upload": 1,
        "queued upload": 0,
        "constant": 1,
        "nonzero": 1,
        "mask": 1,
        "indices": 0,
        "masked": 0,
        "backward": 0,
    }


# --- waits ------------------------------------------------------------------------------------------------------------

TRAINING = """
import json, tempfile
from pathlib import Path
from score_sde.engine.datasets import read_dataset
from score_sde.engine.config import load, override
from score_sde.engine.training.trainer import Trainer

found = {}
for name in sys.argv[1:]:
    config = load(name)
    override(config, [("device", "sim"), ("train.batch_size", "8"), ("train.microbatch", "0")])
    if "channels" in config.network and config.network.name in ("unet", "classifier", "captioned"):
        config.network.channels = 4
    trainer = Trainer(config, Path(tempfile.mkdtemp()), read_dataset(config.data, "train"))
    steps = trainer.steps(10)
    next(steps)
    with simulated.counted() as waits:
        for _ in range(2):
            next(steps)
    found[name] = dict(waits)
print(json.dumps(found))
"""
CONFIGS = ["vpsde", "vesde", "ddpm", "conditional", "points"]
MORE = ["edm", "iddpm", "iddpm_vlb", "ncsn", "classifier", "clip", "rectified", "sliced", "consistency_training"]
"""Not ``learned``, whose schedule is inverted by iterations that the host controls (docs/performance.md)."""


@pytest.mark.parametrize("configs", [CONFIGS, pytest.param(MORE, marks=pytest.mark.slow)], ids=["some", "others"])
def test_no_step_of_training_waits(configs):
    assert simulated(TRAINING, *configs) == {name: {} for name in configs}


MOVES = """
import json
from itertools import count
from score_sde.samplers import GRIDS, NOISES, STEPS, Noise
from score_sde.samplers import classifier, classifier_free, dynamic_threshold, pigdm, within
from score_sde.samplers.loop import trajectory
from score_sde.sde_lib import SDES, PerExample, Gaussian, GaussianMixture, Prediction

found = {}
for name in sys.argv[1:]:
    sampler, _, way = name.partition("+")
    sde, device = SDES["vpsde"](), torch.device("sim")
    means = torch.tensor([[-1.0, 0.5, 0.2], [0.8, 0.1, -0.4]], device=device)
    mixture = GaussianMixture(torch.ones(2, device=device), means, 0.1)
    exact, calls = mixture.denoiser(sde, v=0.5), []

    def denoise(x, t, keep=None, label=None):
        calls.append(len(x))
        return exact(x, t)

    guided = denoise
    if way == "guided":
        label = torch.arange(5, device=device) % 2
        guided = classifier_free(denoise, 2.0)
        guided = classifier(guided, sde, lambda x, t: -(x[:, 0] - label) ** 2, 1.0)
        guided = dynamic_threshold(within(guided, denoise, sde, 0.1, 50.0))
    if way == "measured":
        gaussian = Gaussian(means[0], 0.5)
        guided = pigdm(denoise, sde, lambda x: x[:, 1:], means[:1, 1:], 0.1, gaussian)
    step = STEPS[sampler](sde, control_rtol=0.3, control_atol=0.1) if sampler == "adaptive_sde" else STEPS[sampler](sde)
    adaptive = sampler in ("ode", "dpm_adaptive", "adaptive_sde")
    times = GRIDS["karras"](sde, 1 if adaptive else 12)
    draw = NOISES["brownian" if way == "brownian" else "independent"](torch.arange(5))
    x = draw(torch.empty(5, 3, device=device))
    with torch.no_grad():
        moves = trajectory(step, guided, x, times, draw)
        if adaptive:
            with simulated.counted() as waits:
                next(moves)
            found[name] = [sum(waits.values()), len(calls)]
        else:
            next(moves)
            with simulated.counted() as waits:
                for _ in moves:
                    pass
            found[name] = dict(waits)
print(json.dumps(found))
"""
FIXED = ["adams", "ancestral", "pc", "heun", "adams+guided", "ddim+measured", "dpmpp_2m_sde+brownian"]
OTHERS = ["euler_maruyama", "reverse_diffusion", "ancestral_learned", "ald", "ddim", "edm", "dpm_2s", "dpm_3s"]
OTHERS += ["dpmpp_2s", "rk4", "rk45", "plms", "pndm", "multistep", "dpm", "dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde"]
OTHERS += ["dpmpp_3m_sde", "sa", "deis", "ipndm", "vab", "unipc", "consistency", "pc+guided", "heun+measured"]


@pytest.mark.parametrize("names", [FIXED, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["some", "others"])
def test_no_step_of_a_fixed_grid_waits(names):
    """From the second step on; the first one may upload shared data."""
    assert simulated(MOVES, *names) == {name: {} for name in names}


def test_every_sampler_has_a_test_of_its_waits():
    from score_sde.samplers import STEPS

    assert {*STEPS} == {name.split("+")[0] for name in FIXED + OTHERS} | {*PER_STEP}


PER_STEP = {"ode": 6, "dpm_adaptive": 2, "adaptive_sde": 2}
"""Evaluations of an adaptive step; before the first one, a solver may wait a few times."""


def test_adaptive_solvers_wait_once_a_step():
    for name, (waits, calls) in simulated(MOVES, *PER_STEP).items():
        assert calls // PER_STEP[name] > 5
        assert waits <= calls // PER_STEP[name] + 3, name


LIKELIHOOD = """
import json
from score_sde.samplers import Noise
from score_sde.sde_lib import SDES, Exact, Gaussian, GaussianMixture, Hutchinson, log_prob
from score_sde.sde_lib.adams_pece import AdamsPECE
from score_sde.sde_lib.runge_kutta import DormandPrince

sde, found = SDES["vpsde"](), {}
for trace in ("exact", "rademacher", "gauss", "orthogonal"):
    nats = {}
    for device in ("sim", "cpu"):
        means = torch.tensor([[[-1.0, 0.5], [0.2, 0.8]]]).to(device)
        denoise = GaussianMixture(torch.ones(1, device=device), means, 0.1).denoiser(sde)
        x, gaussian = means.expand(4, 2, 2).clone(), Gaussian(means[0], 0.5)

        def measure(solver):
            fresh = not solver.adaptive
            probes = Exact() if trace == "exact" else Hutchinson(Noise(torch.arange(4)), 2, trace, fresh)
            with simulated.counted() as waits:
                result = log_prob(sde, denoise, x, gaussian, probes, solver=solver)
            return sum(waits.values()), result

        solvers = AdamsPECE(8, 4), AdamsPECE(24, 16), DormandPrince(1e-3, 1e-3)
        few, many, adaptive = map(measure, solvers)
        nats[device] = [result.nats.tolist() for _, result in (few, many, adaptive)]
        if device == "sim":
            steps = int(adaptive[1].calls.max()) // 6
            found[trace] = {"few": few[0], "many": many[0], "adaptive": adaptive[0], "steps": steps}
    found[trace]["same"] = nats["sim"] == nats["cpu"]
print(json.dumps(found))
"""


def test_no_evaluation_of_a_likelihood_waits():
    """As many waits for 24 evaluations as for 8: a fixed number a batch, and one more a step for adaptive solvers."""
    for trace, found in simulated(LIKELIHOOD).items():
        assert found["same"], trace
        assert found["few"] == found["many"] <= 8, trace
        assert found["adaptive"] <= found["steps"] + 8, trace


# --- modes and samplers -----------------------------------------------------------------------------------------------

MODES = """
import json
from score_sde import run

folder, commands = sys.argv[1], json.loads(sys.argv[2])
statuses = {}
for name, words in commands.items():
    for device in ("cpu", "sim"):
        line = [word.replace("DIR", f"{folder}/{device}") for word in words]
        statuses[f"{name} on {device}"] = run.main(["run.py", f"--device={device}", *line])
print()
print(json.dumps(statuses))
"""
TINY = ["--config.network.channels=4", "--config.optim.learning_rate=1e-2", "--config.optim.warmup_images=0"]
TINY += [
    "--config.network.dropout=0",
    "--config.train.batch_size=8",
    "--config.train.total_images=16",
    "--config.train.sample_every=0",
]
RUN, LEARNED = "--workdir=DIR/run", "--config.network.learned_variance=true"


def command(mode, *words, **changes):
    return [f"--mode={mode}", RUN, *words, *(f"--config.{key.replace('__', '.')}={v}" for key, v in changes.items())]


FEW = {"sample__num_samples": 2}
TRAIN = {
    "train": ["--mode=train", "--config=conditional", RUN, *TINY, "--config.ema.profiles=(0.1,)", LEARNED],
    "classifier": ["--mode=train", "--config=classifier", "--workdir=DIR/classifier", *TINY],
}
SCORED = {"likelihood__num_examples": 2, "likelihood__check_examples": 0}
SOME = {
    **TRAIN,
    "sample": command("sample", "--sampler=adams", "--steps=3", "--label=all", guidance__scale=2, **FEW),
    "likelihood": command("likelihood", likelihood__evaluations=3, likelihood__solver__traces=2, **SCORED),
    "superres": command("edit", "--task=superres", "--steps=2", edit__num_examples=2),
}
TASKS = {
    "inpaint": {"task__mask": "2,2,4,4"},
    "deblur": {"noise": 0.1},
    "superres": {"method": "dps"},
    "sdedit": {},
    "translate": {"task__other": "DIR/run"},
    "interpolate": {"task__frames": 3},
    "encode": {},
}
"""Tasks of the mode edit, and keys of its section."""
DIFFERENT = {"seconds", "versions", "device", "images_per_second", "sha256", "checkpoint", "workdir", "batch_size"}
"""Keys of results that depend on the clock, the machine or the folder."""


def everything():
    """Commands of every mode and every sampler."""
    from score_sde.engine.editing import TASKS as TASK_CLASSES
    from score_sde.samplers import STEPS
    from tests.runs import tolerances

    found = dict(TRAIN)
    for name in STEPS:
        steps = [] if name in ("ode", "dpm_adaptive", "adaptive_sde") else ["--steps=4"]
        words = [f"--sampler={name}", *steps, "--label=all", *tolerances(name, 0.1, 0.1)]
        found[f"sample {name}"] = command("sample", *words, **FEW)
    for task, keys in TASKS.items():
        more = {f"edit__{key}": value for key, value in {"num_examples": 2, **keys}.items()}
        flow = ["--sampler=ode", *tolerances("ode", 0.1)] if TASK_CLASSES[task].uses_flow else []
        found[f"edit {task}"] = command("edit", f"--task={task}", "--steps=2", *flow, **more)
    few = {"evaluate__num_samples": 4, "evaluate__num_examples": 8, "evaluate__subsets": 1, "evaluate__subset_size": 3}
    few |= {"evaluate__features": "DIR/classifier", "sample__label": "all"}
    found["evaluate"] = command("evaluate", "--sampler=ddim", "--steps=2", **few)
    found["bound"] = command("bound", bound__num_examples=2, bound__evaluations=4)
    found["profiles"] = command("profiles")
    return found


def contents(folder):
    """All numbers of a run by file and key: arrays, weights, metrics and results."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                found |= {f"{name} {key}": arrays[key] for key in arrays.files}
        elif path.suffix == ".safetensors":
            found |= {f"{name} {key}": value for key, value in load_file(path).items()}
        elif path.suffix == ".jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{k: v for k, v in line.items() if k not in DIFFERENT} for line in lines]
    return found


def assert_same_numbers(folder, statuses):
    assert set(statuses.values()) == {0}, statuses
    cpu, sim = contents(folder / "cpu"), contents(folder / "sim")
    assert cpu.keys() == sim.keys()
    assert len(cpu) > 20
    for name, value in cpu.items():
        same = value == sim[name]
        if isinstance(value, np.ndarray):
            same = np.array_equal(value, sim[name], equal_nan=value.dtype.kind == "f")
        assert same, name


def test_modes_give_the_numbers_of_the_cpu(tmp_path):
    assert_same_numbers(tmp_path, simulated(MODES, tmp_path, json.dumps(SOME)))


@pytest.mark.slow
def test_every_mode_and_sampler_gives_the_numbers_of_the_cpu(tmp_path):
    assert_same_numbers(tmp_path, simulated(MODES, tmp_path, json.dumps(everything())))


# --- the selftest -----------------------------------------------------------------------------------------------------

SELFTEST = """
import json
from score_sde.selftest import Setting
from score_sde.selftest.groups import CHECKS, results

setting, found = Setting(torch.device("sim"), torch.float32), {}
for group in sys.argv[1:]:
    rows = list(results(group, setting))
    found[group] = [len(rows) > 0, [row.what for row in rows if not row.passed]]
print(json.dumps(found))
"""
QUICK = ("exact", "denoisers", "score_matching", "codecs")
HEAVY = ("steps", "sampling", "likelihood")
"""Minutes each, so in separate processes."""


@pytest.mark.parametrize("part", ["some", *(pytest.param(part, marks=pytest.mark.slow) for part in (*HEAVY, "others"))])
def test_the_selftest_passes(part):
    groups = {"some": QUICK, "others": sorted(set(CHECKS) - {*HEAVY, *QUICK})}.get(part, (part,))
    assert simulated(SELFTEST, *groups) == {group: [True, []] for group in groups}
