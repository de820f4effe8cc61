"""The values that each numeric key of configs/default.py may have.

A range is an interval: square brackets include the end, round ones exclude it, infinity too. A number and a plus before
the interval are the least number of entries of a tuple; text after it is a hint for the message. Whatever depends on
several keys, on the data, the process or the sampler is checked where these meet.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

from score_sde.configs import choices

RANGES = {
    "": {
        "seed": "[0, 4611686018427387904]",  # 2^62: sample i takes the seed + i, a signed number of 64 bits
        "threads": "[0, 1024]",
    },
    "data": {
        "size": "[0, 65536]",
        "max_pixels": "[1, inf)",
    },
    "codec": {
        "low": "(-inf, 1) where the values end; -1 or 0",
    },
    "sde": {
        "beta_min": "(0, inf)",
        "beta_max": "(0, inf)",
        "sigma_min": "(0, inf)",
        "sigma_max": "[0, inf)",
        "t_min": "[0, inf)",
        "t_max": "(0, inf)",
        "offset": "[0, inf)",
        "start": "(-inf, inf)",
        "end": "(-inf, inf)",
        "tau": "(0, inf)",
        "mean": "(-inf, inf)",
        "scale": "(0, inf)",
        "num_levels": "[0, inf)",
    },
    "network": {
        "channels": "[1, inf)",
        "channel_mult": "1+ (0, inf)",
        "num_blocks": "[1, 1000]",
        "attention": "0+ [1, inf)",
        "dropout": "[0, 1)",
        "num_classes": "[0, inf)",
        "ladder": "0+ (0, inf)",
        "norm_groups": "[1, inf)",
        "norm_group": "[1, inf)",
        "norm_eps": "(0, 1)",
        "head_channels": "[0, inf)",
        "fir": "0+ (-inf, inf)",
        "fourier_scale": "(0, inf)",
        "num_levels": "[1, inf)",
        "width": "[1, inf)",
        "depth": "[1, 1000]",
        "heads": "[0, inf)",
        "embedding_mult": "[1, inf)",
        "noise_mult": "[1, inf)",
        "augment_dim": "[0, inf)",
        "dimensions": "[1, inf)",
        "patch": "[1, 65536]",
        "mlp_mult": "[1, inf)",
    },
    "denoiser": {
        "sigma_data": "[0, inf) the standard deviation of the encoded data; 0 measures it",
    },
    "loss.objective": {
        "projections": "[1, inf)",
        "first_steps": "[1, inf)",
        "last_steps": "[1, inf)",
        "v": "[0, 1]",
    },
    "loss.weight": {
        "gamma": "(0, inf)",
    },
    "loss.timestep_sampler": {
        "mean": "[-100, 100] of a logarithm",
        "std": "(0, 100] of a logarithm",
        "tail": "[0, 1)",
        "bins": "[1, inf)",
        "history": "[1, inf)",
        "learning_rate": "[0, 1000]",
        "num_sigmoids": "[1, inf)",
    },
    "optim": {
        "learning_rate": "[0, 1000]",
        "beta1": "[0, 1)",
        "beta2": "[0, 1)",
        "weight_decay": "[0, 1e6]",
        "warmup_images": "[0, inf)",
        "clip_norm": "[0, inf)",
    },
    "ema": {
        "rates": "1+ [0, 1)",
        "profiles": "0+ (0, 0.288]",
        "snapshot_every": "[1, inf)",
        "max_snapshots": "[1, inf)",
    },
    "train": {
        "total_images": "[1, inf)",
        "batch_size": "[1, inf)",
        "checkpoint_every": "[0, inf)",
        "keep_checkpoints": "[0, inf)",
        "keep_every": "[0, inf)",
        "microbatch": "[0, inf)",
        "max_skipped": "[0, inf)",
        "log_every": "[0, inf)",
        "sample_every": "[0, inf)",
        "evaluate_every": "[0, inf)",
        "label_dropout": "[0, 1]",
    },
    "sample": {
        "steps": "[0, 1e6]",
        "num_samples": "[1, inf)",
        "batch_size": "[0, inf)",
        "t_min": "(-inf, inf)",
    },
    "sample.sampler": {
        "snr": "(0, inf) usually 0.05 to 0.2",
        "corrector_steps": "[0, 1e6]",
        "eta": "[0, 1] of the ancestral noise",
        "tau": "[0, inf) usually 0 to 1",
        "v": "[0, 1] from posterior to forward",
        "order": "[0, 100] where 0 is the sampler's own",
        "epsilon": "[0, inf)",
        "langevin_steps": "[1, 1e6]",
        "rtol": "(0, 1] usually 1e-4",
        "atol": "(0, inf) usually 1e-4",
        "control_rtol": "(0, 1] usually 0.01 to 0.1",
        "control_atol": "(0, inf) usually 0.0078",
        "churn": "[0, inf) usually 30 to 80",
        "churn_min": "[0, inf)",
        "churn_max": "(0, inf]",
        "churn_noise": "(0, inf) usually 1 to 1.01",
    },
    "guidance": {
        "scale": "(-inf, inf)",
        "classifier_scale": "(-inf, inf)",
        "autoguidance_scale": "(-inf, inf)",
        "encoder_scale": "(-inf, inf)",
        "low": "[0, inf)",
        "high": "(0, inf]",
        "quantile": "(0, 1] usually 0.995",
        "scales": "1+ (-inf, inf)",
    },
    "edit": {
        "num_examples": "[0, inf)",
        "noise": "[0, inf) a standard deviation",
        "batch_size": "[1, inf)",
    },
    "edit.task": {
        "first": "(-inf, inf)",
        "second": "(-inf, inf)",
        "frames": "[2, 1e6]",
        "depths": "1+ (0, 1)",
        "factor": "[1, 65536]",
        "blur": "(0, inf) in pixels",
        "strength": "(0, 1)",
    },
    "edit.method": {
        "zeta": "[0, inf)",
        "jump": "[1, 1e6]",
        "repeats": "[1, 1e6]",
    },
    "bound": {
        "num_examples": "[0, inf)",
        "batch_size": "[1, inf)",
        "v": "[0, 1] from posterior to forward",
        "evaluations": "[1, 1e6]",
        "t_min": "(-inf, inf)",
    },
    "evaluate": {
        "num_samples": "[1, inf)",
        "num_examples": "[0, inf)",
        "batch_size": "[0, inf)",
        "subsets": "[1, 1e6]",
        "subset_size": "[2, inf)",
    },
    "likelihood": {
        "evaluations": "[0, 1e6] where 0 is as many as make the error small",
        "probes": "[1, 1e6]",
        "exact_trace_below": "[0, inf)",
        "samples": "[1, 1e6]",
        "repeats": "[1, 1e6]",
        "num_examples": "[0, inf)",
        "check_examples": "[0, inf)",
        "batch_size": "[0, inf)",
        "t_min": "(-inf, inf)",
    },
    "likelihood.solver": {
        "traces": "[0, 1e6] where 0 is all",
        "rtol": "(0, 1] usually 1e-5",
        "atol": "(0, inf) usually 1e-5",
    },
}
"""Range of each numeric key, by section."""

LARGEST = 2**53
"""The largest whole number where a range has no end: beyond, a float does not hold every one."""

RANGE = re.compile(r"((?P<fewest>\d+)\+ )?(?P<left>[\[(])(?P<low>\S+), (?P<high>\S+?)(?P<right>[\])])( (?P<usual>.+))?")


@dataclass(frozen=True)
class Range:
    """An interval of numbers, or of the entries of a tuple.

    Args:
        low, high: the ends as written; an infinite end that is not included leaves out infinity.
        left, right: brackets, square where the end is included.
        fewest: entries of a tuple, at least; None for a number.
        usual: a hint for messages.
    """

    low: str
    high: str
    left: str
    right: str
    fewest: str | None
    usual: str | None

    def holds(self, value: Any) -> bool:
        """Whether a number, or a tuple of numbers, is in the range; nan never is."""
        if self.fewest is not None:
            return len(value) >= int(self.fewest) and all(map(self._includes, value))
        return self._includes(value)

    def _includes(self, number: float) -> bool:
        low, high = float(self.low), float(self.high)
        if isinstance(number, int) and math.isinf(high):
            low, high = max(low, -LARGEST), LARGEST
        return low < number < high or (number == low and self.left == "[") or (number == high and self.right == "]")

    def __str__(self) -> str:
        """The range in words, such as "0 to below 1, usually 0.5"."""
        kind = {None: "", "0": "numbers, each ", "1": "one or more numbers, each "}[self.fewest]
        bounds = [f"{'above' if self.left == '(' else 'at least'} {self.low}"] * math.isfinite(float(self.low))
        bounds += [f"{'below' if self.right == ')' else 'at most'} {self.high}"] * math.isfinite(float(self.high))
        if len(bounds) == 2:
            words = f"{'above ' * (self.left == '(')}{self.low} to {'below ' * (self.right == ')')}{self.high}"
        elif bounds:
            words = "a number " * (not kind and self.left == "(") + bounds[0]
        else:
            words = "finite" if kind else "a finite number"
        return f"{kind}{words}{f', {self.usual}' if self.usual else ''}"


def range_of(key: str) -> Range | None:
    """The range of a dotted key; None for a key that takes no number."""
    section, _, name = key.rpartition(".")
    text = RANGES.get(section, {}).get(name)
    if not text:
        return None
    found = RANGE.fullmatch(text)
    assert found, text
    return Range(**found.groupdict())


def check_range(key: str, value: object, name: str | None = None) -> None:
    """Refuse a number that no run can have.

    Args:
        key: dotted, such as optim.beta1.
        name: of the SDE or network that an option belongs to.
    Raises: ValueError naming the key, the value and the range.
    """
    section = key.rpartition(".")[0]
    if section in choices.TABLES and not choices.is_own(section, name or ""):
        return  # an entry that a config file of the user's own registers
    allowed = range_of(key)
    if allowed and not allowed.holds(value):
        numbers = value if isinstance(value, tuple) else (value,)
        large = any(isinstance(number, int) and abs(number) > LARGEST for number in numbers)
        limit = f", {LARGEST} at most" if large and math.isinf(float(allowed.high)) else ""
        raise ValueError(f"{key} {value}: need {allowed}{limit}")
