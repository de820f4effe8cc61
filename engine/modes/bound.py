"""Bound on the likelihood of a split."""

import math
import time
from pathlib import Path

import numpy as np
import torch
from ml_collections import ConfigDict

from score_sde.engine import checkpoint
from score_sde.engine.bound import chain, continuous, plot, report
from score_sde.engine.config import Options
from score_sde.engine.datasets import check_form, read_dataset
from score_sde.engine.drawing import Counted
from score_sde.engine.files import write_json, write_npz
from score_sde.engine.likelihood_report import stderr
from score_sde.engine.load import check_flow, load
from score_sde.engine.log import Progress, say, versions
from score_sde.engine.randomness import BOUND, noise, positions
from score_sde.engine.results import question, result_files
from score_sde.sde_lib import Discrete, NonFiniteError


def run(config: ConfigDict, workdir: Path, options: Options) -> None:
    """Bound each example of a split once; write <split>.json, .npz with a row for each, and rate_distortion.png."""
    settings, split = config.bound, options.split or "test"
    experiment, denoiser, found = load(config, workdir, options)
    check_flow(denoiser, workdir)
    facts, dataset = experiment.facts, read_dataset(config, split)
    check_form(config, dataset, facts)
    num = min(settings.num_examples or len(dataset), len(dataset))
    counted = Counted(denoiser)
    evaluate, about = (chain if isinstance(experiment.sde, Discrete) else continuous)(config, experiment, counted)

    parts, progress, start = [], Progress(num, "examples"), time.perf_counter()
    for first in range(0, num, settings.batch_size):
        where = positions(first, min(settings.batch_size, num - first))
        x0 = experiment.codec.encode(dataset.batch(where.numpy())["x"].to(experiment.device))
        with torch.no_grad():
            part = evaluate(x0, noise(config.seed, BOUND, where))
        finite = torch.isfinite(part.nats).cpu()
        if not finite.all():
            bad = where[~finite][0]
            raise NonFiniteError(f"the bound of example {bad} is not finite; check the network and the data")
        parts.append(part)
        progress.advance(len(x0))
    progress.close()
    columns = ((part.prior, part.levels, part.distortion) for part in parts)
    prior, rate, distortion = (torch.cat(column).double().cpu().numpy() for column in zip(*columns, strict=True))
    scaling = 0.0 if facts.levels else experiment.codec.log_det(facts.shape)
    nats, log_snr = scaling - (prior + rate.sum(1)), parts[0].log_snr.numpy()
    unit = math.prod(facts.shape) * math.log(2) if facts.levels else 1.0
    prior, rate, distortion = prior / unit, rate / unit, distortion / (experiment.bin_width or 1.0)
    bits = prior + rate.sum(1) if facts.levels else None
    result = {
        "bits_per_dim": None if bits is None else float(bits.mean()),
        "bits_per_dim_stderr": None if bits is None else stderr(bits),
        "nats": float(nats.mean()),
        "nats_stderr": stderr(nats),
        "terms": {
            "prior": float(prior.mean()),
            "diffusion": float(rate[:, 1:].sum(1).mean()),
            "decoder": float(rate[:, 0].mean()),
            **({} if facts.levels else {"scaling": -scaling}),
        },
        "unit": "bits/dim" if facts.levels else "nats",
        **about,
        "num_examples": num,
        "nfe": counted.calls / len(parts),
        "split": split,
        "sde": config.sde.name,
        "weights": options.weights,
        "seed": config.seed,
        "checkpoint_step": checkpoint.read_meta(found)["step"],
        "seconds": time.perf_counter() - start,
        "asked": question(config, ("data", "bound"), options, found, split=split, bound__num_examples=num),
        "changes": options.changes,
        "versions": versions(),
    }
    folder, shown = workdir / "bound", "rate_distortion.png" if split == "test" else f"rate_distortion-{split}.png"
    rows = {"nats": nats, "prior": prior, "rate": rate, "distortion": distortion, "log_snr": log_snr}
    with result_files(folder, (f"{split}.json", f"{split}.npz", shown), result["asked"]) as partial:
        write_npz(partial / f"{split}.npz", **rows, **({} if bits is None else {"bits_per_dim": bits}))
        plot(partial / shown, result, prior.mean(), rate.mean(0), np.sqrt((distortion**2).mean(0)), log_snr)
        write_json(partial / f"{split}.json", result)
    say(*report(result).split("\n"))
    say(f"files are {folder / split}.json and .npz, and {folder / shown}")
