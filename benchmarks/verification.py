"""Deviations of the formulas here from the reference implementations.

    python benchmarks/verification.py

Runs every comparison of tests/parity and prints its deviation. With the complete recordings (environment variable
FIXTURES, or shared/fixtures next to the project's folder) it writes docs/verification.md; with the copies in
tests/data, which hold a part of them, it leaves the page as it is. Exit status 1 if a comparison misses its tolerance.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from parity.groups import GROUPS, SOURCES
from parity.recordings import COMPLETE, ROOT, Group, Recording


class Row(NamedTuple):
    """Result of one group."""

    group: Group
    num_arrays: int
    worst: float
    where: str

    @property
    def met(self) -> bool:
        return self.worst <= self.group.allowed


METRICS = {
    "per_sample": "relative to the largest number of the sample",
    "per_element": "relative to the number plus 0.001",
    "per_hundredth_element": "relative to the number plus 0.01",
    "per_unit_element": "relative to the number plus 0.1",
    "absolute": "absolute",
}

NOT_COMPARED = {
    "score_sde: probability-flow version of reverse diffusion (`*_pf`, `*.pf`, `ode_f`)": "no such step here; the flow "
    "is solved by DDIM, Heun and the ODE step. Its drift is compared.",
    "score_sde: ancestral sampling and correctors on sub-VP": "the reference raises; ours run, and are tested against "
    "exact distributions.",
    "score_sde: the times t = 0 of `sde_math`": "outside the interval of our processes; VP and sub-VP have no noise "
    "there, and no finite log-SNR.",
    "score_sde: float32 below t = 0.005": "the reference loses the digits of its standard deviation there, 0.6 % (VP) "
    "and 1.2 % (sub-VP) at t = 1e-5; our float32 is compared with its float64 instead.",
    "score_sde: `index`, `pc_index`, `beta_min_max`, `ode_G`": "its own look-ups, inputs, or zeros.",
    "score_sde: ODE runs at rtol 1e-3 themselves": "the reference is 8e-3 from the closed form; ours is compared with "
    "the closed form.",
    "score_sde: numbers of function evaluations": "a different solver, in t instead of log-SNR.",
    "score_sde: the label tables (`ve_discrete_labels`)": "compared with their networks.",
    "score_sde: networks, layers and checkpoints": "compared in tests/test_checkpoints_score_sde.py.",
    "EDM: the midpoint rule, Heun and Euler in the time of VP or VE (other `ablation.*`)": "no such step here; ours "
    "use sigma / alpha.",
    "EDM: random numbers from seeds (`stacked.*`)": "another generator, on purpose.",
    "EDM: networks, layers and preconditioning": "compared in tests/test_checkpoints_edm.py.",
    "guided-diffusion: unbounded learned variances": "ours lie between the two bounds, as in the paper.",
    "guided-diffusion: forward and posterior moments of single steps, `alphas_cumprod_next`, chains of another length "
    "than 1000": "the same tables in float32; the tables are compared in float64.",
    "guided-diffusion: classifier guidance": "compared with exact posteriors instead, in the selftest.",
    "guided-diffusion: DDIM in reverse": "no such step here.",
    "guided-diffusion: single DDIM moves of a model of x0 with sigma below 0.1": "the reference's float32 keeps three "
    "digits there.",
    "guided-diffusion: log variances clipped at level 1": "not needed for a chain that ends in a denoising.",
    "guided-diffusion: networks and layers": "compared in tests/test_checkpoints_guided_diffusion.py.",
    "diffusers: DPM-Solver of order 3": "its second difference lacks a factor of 2, and with it the third order.",
    "diffusers: LMS": "its last step, to sigma = 0, follows the polynomial; ours is the denoising.",
    "diffusers: ScoreSdeVe": "its ladder of noise levels follows its own time table; the predictor and corrector are "
    "compared with their original.",
    "diffusers: float32 runs": "float32 tables; the float64 runs of the same schedulers are compared.",
    "diffusers: UNet2D": "compared in tests/test_checkpoints_diffusers.py.",
}


def measure(group: Group) -> Row:
    """Compares all arrays of the group."""
    deviations = {
        f"{name}: {array}": group.deviation(ours, theirs)
        for name in group.recordings()
        for array, ours, theirs in group.compare(Recording(name))
    }
    where = max(deviations, key=deviations.get)
    return Row(group, len(deviations), deviations[where], where)


def report(rows: list[Row]) -> str:
    """The page, in Markdown."""
    sources = "\n".join(f"| {key} | {s.repository} | {s.version} | {s.licence} |" for key, s in SOURCES.items())
    metrics = "\n".join(f"- *{name.replace('_', ' ')}*: {text}" for name, text in METRICS.items())
    results = "\n".join(
        f"| {r.group.source} | {r.group.what} | {r.num_arrays} | {r.worst:.1e} | {r.group.allowed:.0e} "
        f"| {r.group.deviation.__name__.replace('_', ' ')} | {r.where} | {'met' if r.met else '**missed**'} |"
        for r in rows
    )
    gaps = "\n".join(f"| {what} | {why} |" for what, why in NOT_COMPARED.items())
    total, met = sum(r.num_arrays for r in rows), sum(r.met for r in rows)
    return f"""# Verification

    python benchmarks/verification.py

compares the formulas of this library with stored numbers of the reference implementations and prints the deviation of
each group. {total} arrays in {len(rows)} groups; {met} groups meet their tolerance.

The references ran on a CPU with exact scores of Gaussian data and Gaussian mixtures in place of networks. Their
inputs, random numbers and outputs were recorded, and ours takes the same inputs and the same noise. A checkout
contains a part of the recordings in `tests/data`; with the complete recordings the command also writes this page.
`tests/parity` asserts the comparisons and skips each group without recordings.

| reference | repository | state | licence |
|---|---|---|---|
{sources}

The recordings contain numbers only, and no code of a reference was copied.

## Compared

The deviation of a group is the largest over all its arrays:

{metrics}

The tolerances follow the precision of the recordings: 1e-9 for float64, 1e-5 for an update and 1e-3 for a chain in
float32, 1e-4 for adaptive solvers.

| reference | what | arrays | deviation | allowed | metric | where it is largest | verdict |
|---|---|---|---|---|---|---|---|
{results}

The comparison converts three conventions:

- score_sde evaluates its score at the continuous marginal and moves along a chain of N levels. A denoiser of the chain
  that returns this score makes the two comparable.
- Its losses are halved sums; ours are means over the dimensions. The factor is D / 2.
- Its probe estimates the whole trace of the drift; ours computes the linear part exactly. For a Gaussian probe v the
  two differ by (|v|^2 - D) log(alpha_T / alpha_0) nats, for signs by nothing.

A denoiser returns x0. In float32 the score computed from it has an absolute error of 6e-8 / sigma^2. An update
multiplies the score by a factor of the order of sigma^2, so the state keeps its digits. The score itself does not, so
scores are compared where sigma is above 0.001, in float64. The Langevin step of the reference takes the mean norm of
the scores of a batch, here of samples at several times: the least noisy sample then moves by a step size that belongs
to the others, its error is not scaled down, and the deviation is 1.4e-5.

## Not compared

| what | why |
|---|---|
{gaps}
"""


def main() -> int:
    torch.set_num_threads(1)
    rows = []
    for group in GROUPS:
        for name in group.files:
            if group.missing(name):
                print(f"  not compared: {group.missing(name)}  {group.source}: {group.what}")
        if group.recordings():
            rows.append(measure(group))
            print(f"{rows[-1].worst:9.1e} of {group.allowed:.0e}  {group.source}: {group.what}")
    if COMPLETE.is_dir():
        (ROOT / "docs" / "verification.md").write_text(report(rows))
    else:
        print(
            f"docs/verification.md is unchanged: it needs the complete recordings, which are not in {COMPLETE}",
            file=sys.stderr,
        )
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
