"""Ranges of numeric keys: completeness, refused values, and the exit status of a training that learned nothing."""

import math

import pytest

from score_sde import run as command_line
from score_sde.configs import choices, default
from score_sde.engine.config import flat, from_json, load, override, to_json
from score_sde.engine.ranges import RANGES, check_range, range_of

INFINITE = {"sample.sampler.churn_max", "guidance.high"}
"""Keys that may be infinite: highest noise levels."""


def numeric():
    """Every numeric key and its default, including those of all SDEs and networks."""
    values = flat(default.get_config().to_dict())
    for section in choices.TABLES:
        options = [choices.defaults(section, name) for name in choices.table(section)]
        values |= {f"{section}.{key}": value for found in options for key, value in found.items()}
    entries = {key: value[:1] if isinstance(value, tuple) else (value,) for key, value in values.items()}
    return {key: values[key] for key, found in entries.items() if all(type(entry) in (int, float) for entry in found)}


def refuses(key, value):
    """Whether a value is refused for a built-in SDE or network."""
    section = key.rpartition(".")[0]
    name = next(iter(choices.table(section))) if section in choices.TABLES else None
    try:
        check_range(key, value, name)
    except ValueError:
        return True
    return False


def test_every_numeric_key_has_a_range_that_holds_its_default():
    known = {f"{section}.{key}".removeprefix(".") for section, keys in RANGES.items() for key in keys}
    assert known == set(numeric())
    assert [key for key, value in numeric().items() if refuses(key, value)] == []


def test_no_key_accepts_nan_and_only_highest_levels_accept_infinity():
    wrap = {key: tuple if range_of(key).fewest else (lambda entries: entries[0]) for key in numeric()}
    assert [key for key in numeric() if not refuses(key, wrap[key]([math.nan]))] == []
    assert {key for key in numeric() if not refuses(key, wrap[key]([math.inf]))} == INFINITE
    assert [key for key in numeric() if not refuses(key, wrap[key]([-math.inf]))] == []
    whole = [key for key, value in numeric().items() if type(value) is int]
    assert [key for key in whole if not refuses(key, 2**64)] == []


WRONG = {
    "seed": (-1, 2**62 + 1),
    "threads": (-1, 1025),
    "data.max_pixels": (0,),
    "codec.low": (1.0,),
    "sde.sigma_max": (-1.0,),
    "network.channels": (0,),
    "network.channel_mult": ((), (0,), (1, -1)),
    "network.attention": ((0,),),
    "network.dropout": (-0.1, 1.0),
    "network.num_blocks": (0, 1001),
    "denoiser.sigma_data": (-1.0,),
    "loss.timestep_sampler.std": (0.0, 101.0),
    "loss.objective.first_steps": (0,),
    "optim.beta2": (1.0,),
    "optim.warmup_images": (-1,),
    "ema.rates": ((), (1.0,)),
    "ema.profiles": ((0.0,), (0.3,)),
    "train.batch_size": (0, 2**64),
    "train.checkpoint_every": (-1,),
    "train.label_dropout": (1.1,),
    "sample.sampler.eta": (1.1,),
    "sample.sampler.tau": (-0.1,),
    "guidance.quantile": (0.0, 1.1),
    "guidance.scales": ((),),
    "edit.task.strength": (0.0, 1.0),
    "bound.evaluations": (0,),
    "evaluate.subset_size": (1,),
    "likelihood.probes": (0,),
}
RIGHT = {
    "seed": (0, 2**62),
    "threads": (0, 1024),
    "codec.low": (-1.0, 0.0),
    "network.channel_mult": ((1,), (0.5, 2.0)),
    "network.attention": ((), (16, 8)),
    "network.dropout": (0.0, 0.99),
    "loss.timestep_sampler.std": (100.0,),
    "optim.warmup_images": (0,),
    "optim.clip_norm": (0.0,),
    "ema.rates": ((0.0,),),
    "train.label_dropout": (0.0, 1.0),
    "sample.sampler.churn_max": (math.inf,),
    "guidance.scale": (-1.0, 0.0),
    "guidance.quantile": (1.0,),
    "edit.task.first": (-360,),
}


def test_values_just_outside_of_ranges_are_refused():
    assert [(key, value) for key, values in WRONG.items() for value in values if not refuses(key, value)] == []
    assert [(key, value) for key, values in RIGHT.items() for value in values if refuses(key, value)] == []


def test_ranges_apply_to_commands_and_stored_configs_but_not_to_user_options():
    config = load("vpsde")
    with pytest.raises(ValueError, match=r"network\.dropout 1\.0: need 0 to below 1"):
        override(config, [("network.dropout", "1")])
    with pytest.raises(ValueError, match=r"loss\.timestep_sampler\.std nan: need above 0 to 100"):
        from_json(to_json(config).replace('"std": 1.0', '"std": NaN'))
    own = to_json(config).replace('"name": "unet"', '"name": "mine"').replace('"dropout": 0.0', '"dropout": 1.0')
    assert from_json(own).network.dropout == 1.0


def test_a_message_names_the_exceeded_end():
    with pytest.raises(
        ValueError, match=r"^train\.batch_size 18446744073709551616: need at least 1, 9007199254740992 at most$"
    ):
        check_range("train.batch_size", 2**64)


def test_a_run_whose_steps_were_all_skipped_fails(tmp_path, capsys):
    """Two steps, fewer than train.max_skipped."""
    words = ("--config=points", "--config.train.total_images=8", "--config.train.batch_size=4", "--device=cpu")
    words += ("--config.denoiser.sigma_data=1e30", f"--workdir={tmp_path / 'run'}")
    assert command_line.main(["run.py", "--mode=train", *words]) == 4
    assert "not finite at step 2, the last of 2 in a row" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()
