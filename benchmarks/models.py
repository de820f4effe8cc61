"""Trains, samples and measures every model of docs/models.md, and prints its table.

    python benchmarks/models.py                    all models, in about an hour on two cores
    python benchmarks/models.py ddpm "--config ncsn "   models whose command contains one of these texts

Each row runs and prints two or three commands of ``run.py``: training, 1,000 samples, and the bound for discrete-time
processes. The figure of merit is the Frechet distance of ``benchmarks/digits.py``; bits/dim are the bound. Seconds are
CPU time of one core, start-up included. Finished rows are kept in runs/models.json and not run again; the table at the
end contains all of them.
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.command import end  # noqa: E402
from benchmarks.digits import figures, read  # noqa: E402

RESULTS = Path("runs/models.json")
NUM_SAMPLES = 1000


class Model(NamedTuple):
    """A row: the name of a model, and the arguments of ``run.py`` that train and sample it.

    Args:
        bound: whether to measure the bound, for discrete-time processes.
        needs: configs to train first.
        pairs: arguments of the command that draws the training pairs.
    """

    name: str
    config: str
    sampler: str
    bound: bool = False
    needs: tuple[str, ...] = ()
    pairs: str = ""


PAIRS = "--config rectified --mode sample --num_samples 8000 --config.sample.keep_latents=true"

MODELS = [
    Model("VP SDE", "vpsde", "--sampler pc --steps 250"),
    Model("sub-VP SDE", "subvpsde", "--sampler pc --steps 250"),
    Model("VE SDE", "vesde", "--sampler pc --steps 250"),
    Model("EDM", "edm", "--sampler heun --steps 18 --config.sample.grid=edm"),
    Model("DDPM", "ddpm", "--sampler ancestral --steps 1000", bound=True),
    Model("DDIM", "ddpm", "--sampler ddim --steps 50"),
    Model("DDIM", "ddpm", "--sampler ddim --steps 10"),
    Model("F-PNDM", "ddpm", "--sampler pndm --steps 20"),
    Model("PLMS", "ddpm", "--sampler plms --steps 20"),
    Model("improved DDPM, L_hybrid", "iddpm", "--sampler ancestral_learned --steps 100", bound=True),
    Model("improved DDPM, L_vlb", "iddpm_vlb", "--sampler ancestral_learned --steps 100", bound=True),
    Model("NCSN", "ncsn", "--sampler ald"),
    Model("NCSNv2", "ncsnv2", "--sampler ald"),
    Model("sliced score matching", "sliced", ""),
    Model("cosine schedule, v", "cosine", "--sampler heun --steps 50"),
    Model("sigmoid schedule", "sigmoid", "--sampler heun --steps 50"),
    Model("Laplace schedule", "laplace", "--sampler heun --steps 50"),
    Model("logistic schedule", "logistic", "--sampler heun --steps 50"),
    Model("learned schedule", "learned", "--sampler heun --steps 50"),
    Model("rectified flow", "rectified", "--sampler ddim --steps 50"),
    Model("rectified flow", "rectified", "--sampler ddim --steps 4"),
    Model("reflow", "reflow", "--sampler ddim --steps 4", needs=("rectified",), pairs=PAIRS),
    Model("reflow", "reflow", "--sampler ddim --steps 1", needs=("rectified",), pairs=PAIRS),
    Model("consistency distillation", "consistency", "--sampler consistency --steps 1", needs=("edm",)),
    Model("consistency distillation", "consistency", "--sampler consistency --steps 4", needs=("edm",)),
    Model("consistency training", "consistency_training", "--sampler consistency --steps 1"),
    Model("consistency training", "consistency_training", "--sampler consistency --steps 4"),
]


def run(arguments: str) -> float:
    """Run one command of ``run.py`` on one thread; returns its CPU time in seconds."""
    print(f"python run.py {arguments}", flush=True)
    command = [sys.executable, str(ROOT / "run.py"), *arguments.split()]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def results() -> dict:
    """Returns the results so far."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}, "trained": {}}


def keep(part: str, key: str, value: object) -> None:
    """Add one result to the file."""
    RESULTS.parent.mkdir(exist_ok=True)
    found = results()
    found[part][key] = value
    RESULTS.write_text(json.dumps(found, indent=2))


def measure(model: Model) -> dict:
    """Train, unless an earlier row did, sample, and measure."""
    for config in (*model.needs, model.config):
        if config not in results()["trained"]:
            if model.pairs and config == model.config:
                run(model.pairs)
            keep("trained", config, run(f"--config {config} --mode train"))
    sample = " ".join(f"--config {model.config} --mode sample {model.sampler} --num_samples {NUM_SAMPLES}".split())
    seconds = run(sample)
    folder = max(Path(f"runs/{model.config}/samples").glob("*/manifest.json"), key=lambda p: p.stat().st_mtime).parent
    manifest = json.loads((folder / "manifest.json").read_text())
    distance, confidence, *_ = figures(read(folder / "samples.npz"))
    row = {
        "name": model.name,
        "config": model.config,
        "command": sample,
        "nfe": manifest["nfe"],
        "sample_seconds": seconds,
        "frechet": distance.value,
        "confidence": confidence.value,
        "bits_per_dim": None,
    }
    if model.bound:
        run(f"--config {model.config} --mode bound")
        row["bits_per_dim"] = json.loads(Path(f"runs/{model.config}/bound/test.json").read_text())["bits_per_dim"]
    return row


def table(rows: list[dict], trained: dict[str, float]) -> str:
    """Returns the rows in Markdown."""
    lines = [
        "| model | config | training | sampling | evaluations | 1,000 samples | Frechet | confidence | bits/dim |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        flags = row["command"].split("--mode sample")[1].replace(f"--num_samples {NUM_SAMPLES}", "").strip()
        how = f"`{flags}`" if flags else "as in the config"
        bits = f"{row['bits_per_dim']:.3f}" if row["bits_per_dim"] else ""
        lines.append(
            f"| {row['name']} | `{row['config']}` | {trained[row['config']]:.0f} s | {how} | {row['nfe']:g} | "
            f"{row['sample_seconds']:.0f} s | {row['frechet']:.3f} | {row['confidence']:.3f} | {bits} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure the missing rows, and print the table."""
    wanted = sys.argv[1:]
    keys = [f"--config {model.config} {model.sampler}" for model in MODELS]
    for key, model in zip(keys, MODELS, strict=True):
        if key not in results()["rows"] and (not wanted or any(text in key for text in wanted)):
            keep("rows", key, measure(model))
    found = results()
    print(table([found["rows"][key] for key in keys if key in found["rows"]], found["trained"]))


if __name__ == "__main__":
    end(main)
