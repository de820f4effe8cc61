"""Noise of fresh Rademacher probes: rotated by a Walsh matrix, as in the library, or redrawn at each evaluation.

    python benchmarks/likelihood_probes.py              on the mixture of digits, as images and as vectors
    python benchmarks/likelihood_probes.py runs/vpsde   on a trained network as well

Root mean square errors in bits/dim of one example, over three draws of the probes; problems of ``likelihood.py``.
"""

import math
import sys
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.likelihood import Problem, mixture, network  # noqa: E402
from score_sde.samplers import Noise  # noqa: E402
from score_sde.sde_lib import PROBES, Hutchinson, Prediction, log_prob  # noqa: E402
from score_sde.sde_lib.adams_pece import AdamsPECE  # noqa: E402
from score_sde.sde_lib.likelihood import matched_prior  # noqa: E402
from score_sde.sde_lib.process import Time  # noqa: E402
from score_sde.sde_lib.trace import redrawn  # noqa: E402

ROWS = ((8, 1), (16, 1), (24, 1), (32, 1), (48, 1), (32, 4), (32, 16))
"""Evaluations, and probes per evaluation."""


def flattened(problem: Problem) -> Problem:
    """Returns the problem on flattened examples, whose entries have no spatial order."""
    shape = problem.x.shape[1:]

    def vectors(x: Tensor, t: Time) -> Prediction:
        return Prediction(problem.denoise(x.reshape(-1, *shape), t).x0.flatten(1))

    gaussian = type(problem.gaussian)(problem.gaussian.mean.flatten(), problem.gaussian.rest)
    return problem._replace(denoise=vectors, gaussian=gaussian, x=problem.x.flatten(1))


def error(problem: Problem, evaluations: int, probes: int, turn: bool) -> float:
    """Returns the root mean square error over examples and draws."""
    found = []
    for draw in range(3):
        trace = Hutchinson(Noise(torch.arange(len(problem.x)) + 1000 * draw), probes, fresh=True)
        if not turn:
            trace.kind = PROBES["rademacher"]._replace(fresh=redrawn)

        def prior(latent: Tensor) -> Tensor:
            return matched_prior(problem.sde, problem.gaussian, latent)

        given = problem.sde, problem.denoise, problem.x, problem.gaussian, trace
        found.append(log_prob(*given, solver=AdamsPECE(evaluations), prior_log_prob=prior).nats - problem.truth)
    return torch.stack(found).square().mean().sqrt().item() / (problem.x[0].numel() * math.log(2))


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    problems = {"images": mixture(), "vectors": flattened(mixture())}
    if len(sys.argv) > 1:
        problems["network"] = network(Path(sys.argv[1]))
    print(f"{'':26s}" + "".join(f"{name:22s}" for name in problems))
    for evaluations, probes in ROWS:
        cells = [[error(problem, evaluations, probes, turn) for turn in (True, False)] for problem in problems.values()]
        line = "".join(f"{f'{turned:.1e}, anew {anew:.1e}':22s}" for turned, anew in cells)
        print(f"{evaluations} evaluations, {probes:2d} probes  {line}".rstrip(), flush=True)


if __name__ == "__main__":
    main()
