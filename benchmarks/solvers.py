"""Error by number of evaluations of our default solver and the solvers of other packages, in one run.

    pip install -e .[bench]
    OMP_NUM_THREADS=1 python benchmarks/solvers.py                    on mixtures with exact denoisers
    OMP_NUM_THREADS=1 python benchmarks/solvers.py runs/vpsde ...     on trained networks, against their own flow
    OMP_NUM_THREADS=1 python benchmarks/solvers.py runs/vpsde --tuned     ours with the calibrations of the run
    OMP_NUM_THREADS=1 python benchmarks/solvers.py --overhead         milliseconds per step beyond the network

All computations are in float64. A solver moves starts to the last noisy time with a given number of evaluations. Its
errors against the exact flow are the root mean square over starts and coordinates, dominated by the few starts between
two modes, and the median over starts of the root mean square over coordinates. Every other solver runs on every fixed
grid, and the best combination for each number of evaluations, selected afterwards, is compared with our single default.
--chosen FILE compares on new starts with the combinations that were best in an earlier run, which removes the selection
bias. --tuned uses the plans of ``run.py --mode tune --config.sample.t_min=0``, fitted to other starts. The results of
other packages are computed once and cached in the folder of ``benchmarks/problems.py``; --fresh recomputes them.
"""

import argparse
import json
import math
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.command import end  # noqa: E402
from benchmarks.peers import Peer, peers  # noqa: E402
from benchmarks.problems import CACHE, MIXTURES, PROCESSES, Problem, calibrated, exact, trained  # noqa: E402
from score_sde.engine.errors import CheckpointError  # noqa: E402
from score_sde.samplers import GRIDS, STEPS, Adams, Step  # noqa: E402
from score_sde.sde_lib import SDE, SDES, Gaussian, Prediction  # noqa: E402

EVALUATIONS = (5, 8, 10, 15, 20, 30, 50, 100)
STARTS = {"gmm1d": 4096, "gmm2d": 4096, "digits64": 512}
STARTS_OF_RUN = 32
FIXED = {"time": "uniform", "quad": "quadratic", "logsnr": "log_snr", "rho7": "karras", "fm": "flow", "atan": "angle"}

FLOWS = ("ddim", "heun", "dpm", "dpmpp_2m", "dpmpp_3m", "deis", "ipndm", "vab", "unipc", "adams")
"""Our deterministic steps, whose orders are measured."""
ORDER_MOVES = (100, 200, 400)
OVERHEAD_MOVES, OVERHEAD_ROUNDS = (20, 50), 15


Own = Callable[[int], tuple[Step, Tensor]]
"""Number of evaluations -> our step and its times."""


class Error(NamedTuple):
    """Error of states at the last time: root mean square over all of them, and median."""

    rms: float
    median: float


class Best(NamedTuple):
    """The lowest error, and the name of its solver and grid."""

    error: float
    name: str


def ours(problem: Problem, num: int) -> tuple[Step, Tensor]:
    """Returns step and times of our default for this number of evaluations."""
    times = GRIDS["logistic"](problem.sde, num, std=problem.gaussian.std, dimensions=problem.dimensions)
    return Adams(problem.sde, gaussian=problem.gaussian), times


def error(problem: Problem, y: Tensor) -> Error:
    """Returns the error of the states y of a solver."""
    square = (y - problem.ends).square().flatten(1).mean(1)
    return Error(square.mean().sqrt().item(), square.sqrt().median().item())


def walk(problem: Problem, step: Step, times: Tensor) -> Tensor:
    """Returns the states y at the last of the times, by one of our steps."""
    sde, numbers = problem.sde, times.tolist()
    sde.tabulate(times)
    step.reset(numbers)
    x = sde.marginal(numbers[0]).alpha * problem.y
    for t, s in pairwise(numbers):
        x = step(problem.denoise, x, t, s, torch.randn_like)
    return x / sde.marginal(numbers[-1]).alpha


def measured(
    problem: Problem, name: str, peer: Peer, grid: str, fresh: bool, nums: Sequence[int] = EVALUATIONS
) -> dict[int, Error]:
    """Returns the errors of a peer on a grid by number of evaluations, from the cache if they are in it."""
    sde = problem.sde
    path = CACHE / f"{problem.key}-{name}-{grid}.json".replace(" ", "_")
    found = {} if fresh or not path.exists() else json.loads(path.read_text())
    for num in (num for num in nums if str(num) not in found):
        denoise = Ratios(problem)
        ratios = torch.exp(-0.5 * sde.log_snr(GRIDS[FIXED[grid]](sde, num // peer.cost)))
        found[str(num)] = error(problem, peer.solve(denoise, problem.y, ratios))
        if denoise.calls > num:
            raise RuntimeError(f"{name}: {denoise.calls} evaluations where {num} were given")
        path.write_text(json.dumps(found))
    return {num: Error(*found[str(num)]) for num in nums}


class Ratios:
    """The denoiser in the signature of the peers, (y, ratio) -> x0, with a count of its calls."""

    def __init__(self, problem: Problem) -> None:
        self.sde, self.denoise, self.calls = problem.sde, problem.denoise, 0

    def __call__(self, y: Tensor, ratio: float) -> Tensor:
        self.calls += 1
        t = self.sde.time(torch.tensor(-2 * math.log(ratio), dtype=torch.float64)).item()
        t = min(max(t, self.sde.t_min), self.sde.t_max)
        return self.denoise(self.sde.marginal(t).alpha * y, t).x0


def grids(sde: SDE) -> list[str]:
    """Returns the fixed grids of a process; grids in t are left out if t is the noise level."""
    return [name for name in FIXED if name not in ("time", "quad") or sde.marginal(sde.t_max).alpha < 1]


def survey(problem: Problem, options: argparse.Namespace) -> dict[str, dict[int, Error]]:
    """Returns the errors of the selected peers on all fixed grids, by "name [grid]" and number of evaluations."""
    found = {}
    for name, peer in peers(problem.sde)[0].items():
        if not re.search(options.peers, name):
            continue
        for grid in grids(problem.sde):
            found[f"{name} [{grid}]"] = measured(problem, name, peer, grid, options.fresh, options.evaluations)
        print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def best(found: dict[str, dict[int, Error]], num: int, by: str) -> Best:
    """Returns the lowest error, ``rms`` or ``median``, at a number of evaluations."""
    errors = ((getattr(errors[num], by), name) for name, errors in found.items())
    return Best(*min(pair for pair in errors if math.isfinite(pair[0])))


def again(problem: Problem, row: str, num: int, by: str, options: argparse.Namespace) -> Best:
    """Returns the error on these starts of a peer and its grid, given as "name [grid]"."""
    name, _, grid = row.rpartition(" [")
    errors = measured(problem, name, peers(problem.sde)[0][name], grid.rstrip("]"), options.fresh, [num])
    return Best(getattr(errors[num], by), row)


def table(
    name: str, problem: Problem, own: Own, options: argparse.Namespace
) -> dict[str, dict[str, dict[str, object]]]:
    """Print our errors and the best peers'; returns all numbers by number of evaluations and kind of error.

    Args:
        own: our step and times; if it raises an error for a number of evaluations, the row contains the message.
    """
    print(name, end=" ", file=sys.stderr, flush=True)
    earlier = json.loads(options.chosen.read_text())["tables"][name] if options.chosen else None
    found, cells = {} if earlier else survey(problem, options), {}
    print(
        f"\n{name}, {len(problem.y)} starts\n{'':4s}{'best by RMS':42s} {'RMS':>8s} {'ours':>8s} {'ratio':>7s}   "
        f"{'best by median':42s} {'median':>8s} {'ours':>8s} {'ratio':>7s}"
    )
    for num in options.evaluations:
        try:
            reached = error(problem, walk(problem, *own(num)))
        except (CheckpointError, ValueError) as missing:
            print(f"{num:3d} {missing}", flush=True)
            continue
        cells[str(num)], line = {}, []
        for by in Error._fields:
            mine = getattr(reached, by)
            peer = (
                again(problem, earlier[str(num)][by]["peer"][1], num, by, options) if earlier else best(found, num, by)
            )
            ratio = peer.error / mine
            cells[str(num)][by] = {"peer": peer, "ours": mine, "ratio": ratio}
            line.append(f"{peer.name:42s} {peer.error:8.1e} {mine:8.1e} {ratio:7.2f}")
        cells[str(num)]["all"] = {name: errors[num] for name, errors in found.items()}
        print(f"{num:3d} " + "   ".join(line), flush=True)
    return cells


def summary(tables: dict[str, dict]) -> None:
    """Print the mean and the lowest ratio over all cells."""
    cells = [(name, num, cell) for name, rows in tables.items() for num, cell in rows.items()]
    if not cells:
        return
    for by in Error._fields:
        ratios = {f"{name} at {num}": cell[by]["ratio"] for name, num, cell in cells}
        mean = math.exp(statistics.fmean(math.log(ratio) for ratio in ratios.values()))
        worst = min(ratios, key=ratios.get)
        print(f"{by}: best peer over ours {mean:.2f} in geometric mean, {ratios[worst]:.2f} at least ({worst})")


def plot(path: Path, tables: dict[str, dict]) -> None:
    """Draw the medians, a panel per problem: each peer's best grid as a grey line, ours in colour."""
    from matplotlib.figure import Figure

    names = list(tables)
    rows = math.ceil(len(names) / len(PROCESSES))
    figure = Figure(figsize=(12, 2.8 * rows), layout="constrained")
    panels = figure.subplots(rows, min(len(names), len(PROCESSES)), squeeze=False).flatten()
    for panel, name in zip(panels, names):
        nums = [int(num) for num in tables[name]]
        peer_names = {row.rpartition(" [")[0] for cell in tables[name].values() for row in cell["all"]}
        for peer in sorted(peer_names):
            lowest = [
                min(error[1] for row, error in cell["all"].items() if row.rpartition(" [")[0] == peer)
                for cell in tables[name].values()
            ]
            panel.loglog(nums, lowest, color="0.75", linewidth=1)
        panel.loglog(nums, [cell["median"]["ours"] for cell in tables[name].values()], color="tab:red", linewidth=2)
        panel.set_title(name, fontsize=10)
        panel.set_xticks(nums, map(str, nums), fontsize=8)
        panel.minorticks_off()
    figure.supxlabel("evaluations")
    figure.supylabel("median error")
    figure.savefig(path, dpi=80)


def orders(seed: int) -> dict[str, dict[str, list[float]]]:
    """Print and return the orders of our steps: log2 of the ratio of errors when the moves are halved."""
    print(f"\norders by median on gmm1d, log-SNR grid, {' to '.join(map(str, ORDER_MOVES))} moves")
    print(f"{'':12s}" + "".join(f"{process:>14s}" for process in PROCESSES))
    found: dict[str, dict[str, list[float]]] = {}
    for name in FLOWS:
        found[name] = {}
        for process in PROCESSES:
            problem = exact("gmm1d", process, 256, seed)
            grid = GRIDS["log_snr"]
            errors = [
                error(problem, walk(problem, STEPS[name](problem.sde), grid(problem.sde, n))).median
                for n in ORDER_MOVES
            ]
            found[name][process] = [math.log2(a / b) for a, b in pairwise(errors)]
        print(f"{name:12s}" + "".join("{:9.2f}{:5.2f}".format(*pair) for pair in found[name].values()), flush=True)
    return found


def overhead() -> dict[str, list[float]]:
    """Print and return milliseconds per step beyond the network, for 16 images of 3x32x32 on two threads."""
    torch.set_num_threads(2)
    sde, y = SDES["vpsde"](), torch.zeros(16, 3, 32, 32)
    zero = Prediction(torch.zeros_like(y))
    gaussian = Gaussian(torch.zeros(3, 32, 32), 0.25)
    problem = Problem("", sde, lambda x, t: zero, gaussian, math.inf, y, y)

    def contenders(num: int) -> dict[str, Callable[[], Tensor]]:
        times = GRIDS["log_snr"](sde, num)
        ratios = torch.exp(-0.5 * sde.log_snr(times))
        found = {"ours": lambda: walk(problem, *ours(problem, num))}
        for name, peer in peers(sde)[0].items():
            found[name] = lambda peer=peer: peer.solve(lambda y, ratio: zero.x0, y, ratios)
        return found

    few, many = OVERHEAD_MOVES
    runs = [(name, num, run) for num in OVERHEAD_MOVES for name, run in contenders(num).items()]
    taken: dict[str, dict[int, list[float]]] = {name: {num: [] for num in OVERHEAD_MOVES} for name, *_ in runs}
    for _ in range(OVERHEAD_ROUNDS):
        for name, num, run in runs:
            start = time.perf_counter()
            run()
            taken[name][num].append(1e3 * (time.perf_counter() - start) / num)
    found = {name: [statistics.median(times[num]) for num in OVERHEAD_MOVES] for name, times in taken.items()}
    print(f"\nmilliseconds a step beyond the network\n{'':42s} {few:4d} steps {many:4d} steps")
    for name, (short, long) in found.items():
        print(f"{name:42s} {short:10.3f} {long:10.3f}")
    return found


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of trained runs; default: the mixtures")
    parser.add_argument("--seed", type=int, default=0, help="seed of the starts")
    parser.add_argument("--num", type=int, help="starts; default 4096, in 64 dimensions 512, for a network 32")
    parser.add_argument("--evaluations", nargs="+", type=int, default=EVALUATIONS, help="numbers of evaluations")
    parser.add_argument("--peers", default="", help="regular expression for the names of peers; default: all")
    parser.add_argument("--chosen", type=Path, help="the --json file of an earlier run with another seed")
    parser.add_argument("--tuned", action="store_true", help="use the plans of the runs instead of our default")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    parser.add_argument("--plot", type=Path, help="file for a picture of the medians")
    parser.add_argument("--fresh", action="store_true", help="recompute cached results")
    parser.add_argument("--overhead", action="store_true", help="time steps instead")
    options = parser.parse_args()
    if options.tuned and not options.runs:
        parser.error("--tuned needs folders of runs")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)  # diffusers warns about deprecated options
    for package, version in peers(SDES["edm"]())[1].items():
        print(f"{package} {version}" if version else f"{package} is not installed: its solvers are skipped")
    numbers: dict[str, object] = {}
    if options.overhead:
        numbers["overhead"] = overhead()
    else:
        numbers["tables"] = tables = {}
        with torch.no_grad():
            for name, make in problems(options).items():
                problem, own = make()
                tables[name] = table(name, problem, own, options)
            print()
            summary(tables)
            if options.plot:
                plot(options.plot, tables)
            if not options.runs:
                numbers["orders"] = orders(options.seed)
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=1))


def problems(options: argparse.Namespace) -> dict[str, Callable[[], tuple[Problem, Own]]]:
    """Returns the selected problems by name, each with our solver."""

    def of_run(run: Path) -> tuple[Problem, Own]:
        found = trained(run, options.num or STARTS_OF_RUN, options.seed)
        return found, partial(calibrated, run) if options.tuned else partial(ours, found)

    def of_mixture(mixture: str, process: str) -> tuple[Problem, Own]:
        found = exact(mixture, process, options.num or STARTS[mixture], options.seed)
        return found, partial(ours, found)

    if options.runs:
        return {run.name: partial(of_run, run) for run in options.runs}
    return {
        f"{mixture}/{process}": partial(of_mixture, mixture, process) for mixture in MIXTURES for process in PROCESSES
    }


if __name__ == "__main__":
    end(main)
