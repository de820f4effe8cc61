"""Train and sample for a long time, and check that memory, open files and threads stay constant.

    python benchmarks/soak.py --minutes 60

Two processes run at once, on Linux: a training run that logs, evaluates, draws and saves often, and a process that runs
sampling commands, cycling through samplers. Prints a Markdown table, draws docs/images/soak.png with --plot, and exits
with 1 if anything grew.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]

SMALL = {"network.channels": 8, "train.batch_size": 16, "train.total_images": 16_000_000_000}
OFTEN = {"train.log_every": 20, "train.evaluate_every": 200, "train.sample_every": 400, "train.checkpoint_every": 100}
OFTEN |= {"ema.profiles": (0.05, 0.1), "ema.snapshot_every": 50, "ema.max_snapshots": 16}

SAMPLERS = ["adams", "pc", "ddim", "ode", "ancestral", "unipc", "edm", "adaptive_sde"]

DRAWING = """
import contextlib, io, itertools, sys
from score_sde import run
workdir, samplers = sys.argv[1], sys.argv[2:]
for k, sampler in enumerate(itertools.cycle(samplers)):
    with contextlib.redirect_stdout(io.StringIO()):
        words = ["--mode=sample", f"--workdir={workdir}", "--num_samples=64", "--batch_size=16", f"--seed={64 * k}"]
        steps = [] if sampler in ("ode", "adaptive_sde") else ["--steps=10"]
        assert run.main(["run.py", *words, *steps, f"--sampler={sampler}"]) == 0
    print(k + 1, flush=True)
"""


ALLOWED = {"memory_mb": 0.05, "files": 0.0, "threads": 0.0}
"""Allowed growth of the last fifth relative to the second fifth; memory fluctuates."""


def training(workdir: Path, total_images: int) -> list[str]:
    """Returns the training command."""
    keys = {**SMALL, **OFTEN, "train.total_images": total_images}
    flags = ["--config=vpsde", "--mode=train", "--device=cpu", f"--workdir={workdir}"]
    return [sys.executable, str(ROOT / "run.py"), *flags, *(f"--config.{key}={value}" for key, value in keys.items())]


def usage(pid: int) -> dict[str, float]:
    """Returns the current memory, open files and threads of a process."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        "memory_mb": int(status["VmRSS"].split()[0]) / 1024,
        "files": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(status["Threads"]),
    }


def level(values: list[float]) -> tuple[float, float]:
    """Returns the medians of the second and of the last fifth."""
    num = len(values) // 5
    return statistics.median(values[num : 2 * num]), statistics.median(values[-num:])


def plot(path: Path, found: dict[str, list[dict[str, float]]]) -> None:
    """Draw a panel per resource, with a line per process."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(11, 3), layout="constrained")
    for panel, (key, label) in zip(
        panels, {"memory_mb": "memory, MB", "files": "open files", "threads": "threads"}.items()
    ):
        for name, rows in found.items():
            panel.plot([row["minutes"] for row in rows], [row[key] for row in rows], label=name, linewidth=1)
        panel.set(xlabel="minutes", ylabel=label)
        panel.set_ylim(bottom=0)
    panels[0].legend()
    figure.savefig(path, dpi=110)


def main() -> int:
    """Run both processes, and print the resources that grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two measurements")
    parser.add_argument("--plot", action="store_true", help="write docs/images/soak.png")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(training(folder / "drawn", 1600), check=True, stdout=subprocess.DEVNULL, env=environment)
    drawing = [sys.executable, "-c", DRAWING, str(folder / "drawn"), *SAMPLERS]
    commands = {"training": training(folder / "trained", SMALL["train.total_images"]), "sampling": drawing}
    processes = {}
    for name, command in commands.items():
        with open(folder / f"{name}.log", "w") as log:
            processes[name] = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    start = time.perf_counter()
    for _ in itertools.takewhile(lambda _: time.perf_counter() - start < 60 * args.minutes, itertools.count()):
        time.sleep(args.every)
        for name, process in processes.items():
            if process.poll() is not None:
                print(f"{name} ended with {process.returncode}: {(folder / f'{name}.log').read_text()[-500:]}")
                return 1
            found[name].append({"minutes": (time.perf_counter() - start) / 60, **usage(process.pid)})
    for process in processes.values():
        process.kill()
        process.wait()
    work = {
        "training": f"{json.loads((folder / 'trained' / 'metrics.jsonl').read_text().splitlines()[-1])['step']} steps",
        "sampling": f"{(folder / 'sampling.log').read_text().split()[-1]} commands of 64 samples",
    }
    print("| | work | minutes | memory, MB: early, late | open files: early, late | threads: early, late | grew |")
    print("|---|---|---|---|---|---|---|")
    grew = 0
    for name, rows in found.items():
        levels = {key: level([row[key] for row in rows]) for key in ALLOWED}
        more = [key for key, (early, late) in levels.items() if late > early * (1 + ALLOWED[key])]
        grew += len(more)
        cells = " | ".join(f"{early:.0f}, {late:.0f}" for early, late in levels.values())
        print(f"| {name} | {work[name]} | {args.minutes:g} | {cells} | {', '.join(more) or 'nothing'} |")
    if args.plot:
        plot(ROOT / "docs" / "images" / "soak.png", found)
    return int(grew > 0)


if __name__ == "__main__":
    sys.exit(main())
