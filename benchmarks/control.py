"""Time of an evaluation of a guided denoiser, relative to the plain denoiser.

    OMP_NUM_THREADS=1 python benchmarks/control.py

The networks are untrained networks of the recipes ``conditional``, ``classifier`` and ``clip``; training does not
change their speed. All kinds of guidance run in turns, so that other load affects them equally. A figure is the median
over rounds of an evaluation's time, divided by the plain evaluation's in the same round.

    python benchmarks/control.py --samples runs/vpsde/samples/adams-14/samples.npz --classifier runs/classifier

prints instead the fraction of samples in each class, by a trained classifier.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.command import end  # noqa: E402
from score_sde.engine.build import build  # noqa: E402
from score_sde.engine.config import Options, load, stored  # noqa: E402
from score_sde.engine.facts import DataFacts  # noqa: E402
from score_sde.engine.files import read_npz  # noqa: E402
from score_sde.engine.load import load_model  # noqa: E402
from score_sde.samplers import (  # noqa: E402
    autoguidance,
    classifier,
    classifier_free,
    clean_embedding_guidance,
    dynamic_threshold,
    embedding_guidance,
    masked,
    moment_matching,
    pigdm,
    static_threshold,
    within,
)
from score_sde.sde_lib import Gaussian, Prediction  # noqa: E402

FACTS = DataFacts((1, 8, 8), 17, 0.7, 20.0)
T = 0.4


def models() -> tuple[torch.nn.Module, ...]:
    """Returns a conditional denoiser, a classifier, and a pair of encoders."""
    made = []
    for name in ("conditional", "classifier", "clip"):
        config = load(name)
        config.device = "cpu"
        experiment = build(config, FACTS)
        made.append(experiment.denoiser(experiment.network.eval().requires_grad_(False), config))
    return tuple(made)


def kinds(num: int) -> dict[str, Callable[[Tensor], Prediction]]:
    """Returns, by name, x -> one evaluation of a guided denoiser, for batches of ``num``."""
    denoise, judge, pair = models()
    sde, label = denoise.sde, torch.arange(num) % 10
    target = pair.aim(pair.network.tokens("a three")).detach()
    known = masked(torch.arange(8).reshape(8, 1).expand(8, 8) < 4)
    y, guess = torch.zeros(1, *FACTS.shape), Gaussian(torch.zeros(FACTS.shape).double(), FACTS.std**2)
    free = classifier_free(denoise, 2.0)
    plain = {
        "plain": denoise,
        "label, scale 0 or 1": lambda x, t: denoise(x, t, label=label),
        "label, another scale": lambda x, t: free(x, t, label=label),
        "the same below sigma / alpha": within(lambda x, t: free(x, t, label=label), denoise, sde, high=1e-3),
        "weaker run of the same size": autoguidance(denoise, denoise, 2.0),
        "classifier": classifier(denoise, sde, judge.log_prob(label), 1.0),
        "pair of encoders": embedding_guidance(denoise, sde, pair.embed, target, 1.0),
        "encoder of the estimate": clean_embedding_guidance(
            denoise, sde, lambda x0: pair.embed(x0, sde.t_min), target, 1.0
        ),
        "static threshold": static_threshold(denoise),
        "dynamic threshold": dynamic_threshold(denoise),
        "pigdm, half of the pixels": pigdm(denoise, sde, known, y, 0.0, guess),
        "moment matching, the same": moment_matching(denoise, sde, known, y, 0.05),
    }
    return {name: lambda x, of=of: of(x, T) for name, of in plain.items()}


def shares(samples: Path, folder: Path) -> list[float]:
    """Returns the fraction of the samples in each class, by the classifier of a run."""
    experiment, judge, _ = load_model(stored(folder), folder, Options())
    x = torch.from_numpy(read_npz(samples, "samples")["samples"]).movedim(-1, 1)
    with torch.no_grad():
        found = judge(experiment.codec.encode(x), experiment.sde.t_min).argmax(1)
    return (found.bincount(minlength=judge.num_classes) / len(x)).tolist()


def main() -> None:
    """Print the table, or the fractions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--samples", type=Path, help="a samples.npz")
    parser.add_argument("--classifier", type=Path, default="runs/classifier", help="folder of a classifier's run")
    options = parser.parse_args()
    if options.samples:
        print("  ".join(f"{k}: {share:.3f}" for k, share in enumerate(shares(options.samples, options.classifier))))
        return
    torch.set_num_threads(1)
    evaluations, x = kinds(options.batch), torch.randn(options.batch, *FACTS.shape)
    seconds = {name: [] for name in evaluations}
    with torch.no_grad():
        for _ in range(options.rounds + 3):
            for name, evaluate in evaluations.items():
                start = time.perf_counter()
                evaluate(x)
                seconds[name].append(time.perf_counter() - start)
    taken = {name: np.array(times[3:]) for name, times in seconds.items()}
    print(f"{options.batch} digits, one thread, medians of {options.rounds} rounds\n")
    print("| guidance | ms | of a plain evaluation |\n|---|--:|--:|")
    for name, times in taken.items():
        print(f"| {name} | {1e3 * np.median(times):.1f} | {np.median(times / taken['plain']):.2f} |")


if __name__ == "__main__":
    end(main)
