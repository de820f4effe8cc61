"""Train and sample for a long time, and watch memory, open files and threads: they have to stay level.

    python benchmarks/soak.py --minutes 60

Two processes at once, on Linux: a training run that logs, evaluates, draws and saves all the time, and one that draws
batch after batch with one sampler after another, command after command. Prints a table in Markdown, draws
docs/images/soak.png with --plot, and exits with 1 if anything grew.
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
"""By how much the last fifth may exceed the one after the start, relative; memory jitters."""


def training(workdir: Path, total_images: int) -> list[str]:
    """The command that trains."""
    keys = {**SMALL, **OFTEN, "train.total_images": total_images}
    flags = ["--config=vpsde", "--mode=train", "--device=cpu", f"--workdir={workdir}"]
    return [sys.executable, str(ROOT / "run.py"), *flags, *(f"--config.{key}={value}" for key, value in keys.items())]


def watch(pid: int) -> dict[str, float]:
    """What a process holds at this moment."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        "memory_mb": int(status["VmRSS"].split()[0]) / 1024,
        "files": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(status["Threads"]),
    }


def level(values: list[float]) -> tuple[float, float]:
    """The medians of the fifth after the start and of the last fifth; of files the least, for some are open briefly."""
    num = len(values) // 5
    return statistics.median(values[num : 2 * num]), statistics.median(values[-num:])


def plot(path: Path, found: dict[str, list[dict[str, float]]]) -> None:
    """A panel for each thing watched, a line for each process."""
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
    """Watch, and say what grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two looks")
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
            found[name].append({"minutes": (time.perf_counter() - start) / 60, **watch(process.pid)})
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
        told = " | ".join(f"{early:.0f}, {late:.0f}" for early, late in levels.values())
        print(f"| {name} | {work[name]} | {args.minutes:g} | {told} | {', '.join(more) or 'nothing'} |")
    if args.plot:
        plot(ROOT / "docs" / "images" / "soak.png", found)
    return int(grew > 0)


if __name__ == "__main__":
    sys.exit(main())
