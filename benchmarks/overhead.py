"""Overhead of the toolkit beyond the network: a sampling step, a training step, the start of a command.

    OMP_NUM_THREADS=1 python benchmarks/overhead.py

Numbers are medians of CPU time on one thread, with contenders interleaved in one process. The network is the one of
the config vpsde, with batches of 64.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from score_sde.engine.build import build  # noqa: E402
from score_sde.engine.config import load  # noqa: E402
from score_sde.engine.datasets import read_dataset  # noqa: E402
from score_sde.engine.drawing import Counted  # noqa: E402
from score_sde.engine.training.trainer import Trainer  # noqa: E402
from score_sde.samplers import GRIDS, STEPS, Noise, sample  # noqa: E402

BATCH, STEPS_A_RUN, ROUNDS = 64, 50, 9


class Instant(torch.nn.Module):
    """A network that takes no time."""

    def forward(self, x: torch.Tensor, log_snr: torch.Tensor) -> torch.Tensor:
        return x


def cpu_ms(*contenders: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    """Returns the median CPU time of each contender in milliseconds, measured in turns."""
    times = [[] for _ in contenders]
    for contender in contenders:
        contender()
    for _ in range(rounds):
        for contender, taken in zip(contenders, times, strict=True):
            start = time.process_time()
            contender()
            taken.append(1e3 * (time.process_time() - start))
    return [statistics.median(taken) for taken in times]


def sampling() -> None:
    """Print milliseconds per step beyond the network for all samplers except ``ode`` and ``ancestral_learned``."""
    config = load("vpsde")
    trainer = Trainer(config, Path(tempfile.mkdtemp()), read_dataset(config.data, "train"))
    experiment = trainer.experiment
    sde, denoise = experiment.sde, experiment.denoiser(Instant(), config)
    times = GRIDS["log_snr"](sde, STEPS_A_RUN)
    x = torch.zeros(BATCH, *experiment.facts.shape)
    names = [name for name in STEPS if name not in ("ode", "ancestral_learned")]

    def run(name: str, counted: Callable) -> Callable[[], object]:
        return lambda: sample(STEPS[name](sde), counted, x, times, Noise(torch.arange(BATCH)))

    with torch.no_grad():
        network = trainer.network.eval()
        bare = cpu_ms(lambda: network(x, torch.zeros(BATCH)), rounds=31)[0]
        print(f"one call of the network: {bare:.2f} ms")
        print("sampler            ms a step beyond the network   evaluations a step")
        taken = cpu_ms(*(run(name, denoise) for name in names))
        for name, milliseconds in zip(names, taken, strict=True):
            counted = Counted(denoise)
            run(name, counted)()
            print(f"{name:<18} {milliseconds / STEPS_A_RUN:>28.3f} {(counted.calls - 1) / STEPS_A_RUN:>20g}")


def training() -> None:
    """Print the time of a training step, and of forward, backward and fused optimizer step of the same network."""
    config = load("vpsde")
    trainer = Trainer(config, Path(tempfile.mkdtemp()), read_dataset(config.data, "train"))
    network = build(config, trainer.experiment.facts).network.train()
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    x, target = torch.randn(2, BATCH, *trainer.experiment.facts.shape)
    log_snr = torch.randn(BATCH)

    def bare() -> None:
        (network(x, log_snr) - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    steps = trainer.steps(10**9)
    alone, whole = cpu_ms(bare, lambda: next(steps), rounds=101)
    print(f"training step: bare {alone:.2f} ms, whole {whole:.2f} ms, ratio {whole / alone:.3f}")


def starting() -> None:
    """Print the seconds of --help, and the CPU seconds from the start to the end of the first training step."""
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, str(ROOT / "run.py"), "--help"], check=True, capture_output=True)
        taken.append(time.perf_counter() - start)
    print(f"run.py --help: {statistics.median(taken):.2f} s")
    program = (
        "import sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from score_sde.engine.config import load; from score_sde.engine.training.trainer import Trainer\n"
        "from score_sde.engine.datasets import read_dataset\n"
        "config = load('vpsde'); trainer = Trainer(config, Path(sys.argv[2]), read_dataset(config.data, 'train'))\n"
        "next(trainer.steps(1)); print(time.process_time())"
    )
    command = [sys.executable, "-c", program, str(ROOT), tempfile.mkdtemp()]
    taken = [float(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(5)]
    print(f"start of the process to the end of the first training step: {statistics.median(taken):.2f} s of CPU time")


if __name__ == "__main__":
    torch.set_num_threads(1)
    sampling()
    training()
    starting()
