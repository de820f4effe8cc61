"""Configs: every file loads, keys and types are those in default.py, JSON is lossless, overrides are checked."""

import inspect
import json

import pytest

from score_sde.configs import default
from score_sde.data import CODECS, DATASETS
from score_sde.engine.config import conform, flat, from_json, load, names, override, to_json
from score_sde.engine.density import check_dequantization, start
from score_sde.engine.errors import CheckpointError
from score_sde.engine.recipe import MODEL, RECIPE, differences
from score_sde.engine.resolve import resolve
from score_sde.models import NETWORKS
from score_sde.samplers import GRIDS, STEPS
from score_sde.sde_lib import (
    ADAPTIVE,
    LEARNING_TIMESTEP_SAMPLERS,
    PARAMETERIZATIONS,
    PRIORS,
    PROBES,
    SDES,
    SOLVERS,
    TIMESTEP_SAMPLERS,
    WEIGHTS,
)

CLASSES = {"sde": SDES, "network": NETWORKS}


@pytest.fixture
def config():
    return load("vpsde")


@pytest.fixture
def trained(tmp_path):
    """Folder of a run trained with the config vpsde."""
    (tmp_path / "config.json").write_text(to_json(load("vpsde"), versions={"torch": "2.0"}))
    return tmp_path


# --- every file -------------------------------------------------------------------------------------------------------


CONFIGS = {name: load(name) for name in names()}


def types(config):
    """Types of the keys that all configs share."""
    values = flat(config.to_dict())
    return {key: type(value) for key, value in values.items() if key.split(".")[0] not in default.CHOICES}


def test_keys_and_types_match_default():
    assert [name for name, config in CONFIGS.items() if not config.is_locked] == []
    assert [name for name, config in CONFIGS.items() if types(config) != types(default.get_config())] == []
    for section, choices in default.CHOICES.items():
        found = {name: set(config[section]) for name, config in CONFIGS.items()}
        assert found == {name: {"name", *choices[config[section].name]} for name, config in CONFIGS.items()}


def test_an_older_run_keeps_its_timestep_sampler():
    """The older config has no key for the tail, and the sampler has none."""
    config = load("vpsde")
    assert config.loss.time_tail > 0
    values = json.loads(to_json(config))
    del values["loss"]["time_tail"]
    assert from_json(json.dumps(values)).loss.time_tail == 0


def test_an_older_run_keeps_its_noise_conditioning():
    values = load("cifar10_ddpmpp_vp").to_dict()
    values["denoiser"]["label"] = values["denoiser"].pop("c_noise")
    assert from_json(json.dumps(values)) == load("cifar10_ddpmpp_vp")


def test_json_loses_nothing():
    def typed(config):
        return [(key, type(value), value) for key, value in flat(config.to_dict()).items()]

    again = {name: from_json(to_json(config, versions={"torch": "2.0"})) for name, config in CONFIGS.items()}
    assert [name for name, config in CONFIGS.items() if typed(again[name]) != typed(config)] == []


TABLES = {
    **{"sde.name": SDES, "network.name": NETWORKS, "codec.name": CODECS, "data.name": DATASETS},
    **{"loss.weight": WEIGHTS, "loss.timestep_sampler": TIMESTEP_SAMPLERS | LEARNING_TIMESTEP_SAMPLERS},
    **{"denoiser.parameterization": PARAMETERIZATIONS, "sample.sampler": STEPS, "sample.grid": {"", *GRIDS}},
    **{"sample.solver": ADAPTIVE, "likelihood.solver": SOLVERS, "likelihood.probe": PROBES, "likelihood.prior": PRIORS},
}


def test_names_are_in_their_tables():
    values = {name: flat(config.to_dict()) for name, config in CONFIGS.items()}
    others = [(name, key) for name, of in values.items() for key, table in TABLES.items() if of[key] not in table]
    assert others == []
    for config in CONFIGS.values():
        check_dequantization(config.likelihood.dequantization, levels=1 if config.codec.name == "pixels" else 0)


def test_options_match_the_class():
    options = {(section, name): set(of) for section in CLASSES for name, of in default.CHOICES[section].items()}
    taken = {(section, name): inspect.signature(CLASSES[section][name]).parameters.keys() for section, name in options}
    assert {place: of - taken[place] for place, of in options.items() if of - taken[place]} == {}
    assert CLASSES.keys() == default.CHOICES.keys()


@pytest.mark.parametrize(("section", "table"), [("sample", ADAPTIVE), ("likelihood", SOLVERS)])
def test_solvers_have_their_defaults_in_the_section(section, table):
    """Every solver of the table takes some of the keys, with their defaults; 0 evaluations means automatic."""
    settings = default.get_config()[section].to_dict()
    if section == "likelihood":
        settings["evaluations"] = settings["evaluations"] or start(64, exact=False)
    for solver in table.values():
        taken = [name for name in inspect.signature(solver).parameters if name in settings]
        solver(**{name: settings[name] for name in taken})
        assert taken in (["rtol", "atol"], ["evaluations", "traces"])


# --- user files -------------------------------------------------------------------------------------------------------


def write_config(path, *lines):
    body = "".join(f"    {line}\n" for line in lines)
    head = "from score_sde.configs import default\n\ndef get_config():\n    config = default.get_config()\n"
    path.write_text(head + body)
    return str(path)


def test_a_path_and_an_sde_of_ones_own(tmp_path):
    path = write_config(tmp_path / "mine.py", "config.sde = {'name': 'mine', 'rate': 2.0}", "return config")
    config = load(path)
    override(config, [("sde.rate", "3")])
    assert config.sde.to_dict() == {"name": "mine", "rate": 3.0}
    assert from_json(to_json(config)).sde == config.sde


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("config.train.bach_size = 3", "return config"), "batch_size"),
        (("config.train.batch_size = 'many'", "return config"), "batch_size"),
        (("return {", "}}"), "SyntaxError"),
        (("import nothing_of_that_name",), "nothing_of_that_name"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, lines, message):
    with pytest.raises(ValueError, match=message):
        load(write_config(tmp_path / "wrong.py", *lines))


def test_a_file_without_get_config_is_refused(tmp_path):
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match="get_config"):
        load(str(tmp_path / "empty.py"))


@pytest.mark.parametrize(
    ("name", "message"),
    [("vpsd", "did you mean 'vpsde'"), ("zzz", "known: cifar10"), ("nowhere/x.py", "no config file nowhere/x.py")],
)
def test_unknown_names_and_paths(name, message):
    with pytest.raises(ValueError, match=message):
        load(name)


def test_missing_keys_of_a_json_take_the_defaults(config):
    values = config.to_dict()
    del values["train"]["keep_checkpoints"], values["sde"]["t_min"]
    assert conform(values) == config


# --- overrides --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("train.batch_size", "128", 128),
        ("train.total_images", "1_000", 1000),
        ("optim.learning_rate", "1e-3", 1e-3),
        ("optim.learning_rate", "1", 1.0),
        ("loss.time_mean", "-0.4", -0.4),
        ("train.deterministic", "true", True),
        ("train.deterministic", "False", False),
        ("data.path", "1234", "1234"),
        ("network.channel_mult", "1,2,4", (1, 2, 4)),
        ("network.channel_mult", "[1, 2]", (1, 2)),
        ("network.attention", "()", ()),
        ("ema.rates", "(0.99, 0)", (0.99, 0.0)),
        ("seed", "7", 7),
    ],
)
def test_override(config, key, text, value):
    override(config, [(key, text)])
    found = flat(config.to_dict())[key]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("train.bach_size", "3", "did you mean 'train.batch_size'"),
        ("batch_size", "3", "did you mean .*'train.batch_size'"),
        ("train", "3", "train.batch_size"),
        ("seed.x", "3", "unknown config key 'seed.x'"),
        ("train.batch_size", "many", "takes int, such as 64, not 'many'"),
        ("train.batch_size", "1.5", "takes int"),
        ("train.batch_size", "true", "takes int"),
        ("optim.learning_rate", "fast", "takes float"),
        ("optim.learning_rate", "nan", "takes float"),
        ("train.deterministic", "1", "takes true or false"),
        ("network.channel_mult", "2", "takes tuple, such as"),
        ("network.channel_mult", "1.5,2", "takes tuple, such as"),
        ("sde.sigma_max", "20", "unknown config key 'sde.sigma_max'"),
        ("sde.name", "vpsd", "unknown sde.name 'vpsd'; did you mean 'vpsde'"),
    ],
)
def test_override_is_checked(config, key, text, message):
    with pytest.raises(ValueError, match=message):
        override(config, [(key, text)])


def test_another_name_brings_its_own_options_in_any_order(config):
    override(config, [("sde.sigma_max", "20"), ("sde.name", "vesde"), ("network.name", "mlp")])
    assert config.sde.to_dict() == {"name": "vesde", **default.CHOICES["sde"]["vesde"], "sigma_max": 20.0}
    assert config.network.to_dict() == {"name": "mlp", **default.CHOICES["network"]["mlp"]}


def test_the_same_name_keeps_the_options_of_the_file():
    config = load("cifar10")
    override(config, [("network.name", "unet")])
    assert config == load("cifar10")


# --- runs -------------------------------------------------------------------------------------------------------------


def test_differences(config):
    other = load("vesde")
    override(other, [("train.batch_size", "8")])
    assert differences(config, config, RECIPE) == {}
    assert differences(config, other, ("train",)) == {"train.batch_size": (64, 8)}
    found = differences(config, other, MODEL)
    assert found["sde.name"] == ("vpsde", "vesde")
    assert found["sde.beta_max"] == (20.0, None)
    found = differences(load("edm"), load("consistency_training"), MODEL)
    assert found == {"loss.name": ("denoising", "consistency_training")}


def test_the_folder_is_named_after_the_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(resolve("vpsde", None, [], "train")[1]) == "runs/vpsde"
    assert str(resolve("vpsde", "elsewhere", [], "train")[1]) == "elsewhere"
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text(to_json(load("edm")))
    config, workdir = resolve("old/config.json", None, [], "train")
    assert config == load("edm")
    assert str(workdir) == "runs/old"


def test_the_folder_alone_is_enough(trained):
    config, workdir = resolve(None, str(trained), [("sample.steps", "7")], "sample")
    assert workdir == trained
    assert config.sample.steps == 7
    assert config.sde == load("vpsde").sde


@pytest.mark.parametrize("mode", ["train", "sample"])
def test_what_may_change(trained, mode):
    changes = [("train.total_images", "9"), ("train.log_every", "3"), ("sample.steps", "7")]
    config, _ = resolve("vpsde", str(trained), changes, mode)
    assert (config.train.total_images, config.train.log_every, config.sample.steps) == (9, 3, 7)


@pytest.mark.parametrize(
    ("mode", "name", "changes", "message"),
    [
        ("sample", "vpsde", [("network.channels", "8")], "network.channels is 16 there and 8 here"),
        ("sample", "vesde", [], "sde.name is 'vpsde' there and 'vesde' here"),
        ("likelihood", "vpsde", [("data.name", "moons")], "choose another --workdir"),
        ("train", "vpsde", [("optim.learning_rate", "1")], "optim.learning_rate is"),
        ("train", "vpsde", [("train.batch_size", "8")], "train.batch_size is 64 there and 8 here"),
        ("train", "vpsde", [("seed", "1")], "seed is 0 there and 1 here"),
        ("train", "mnist", [], "and [0-9]+ more"),
    ],
)
def test_what_may_not_change(trained, mode, name, changes, message):
    with pytest.raises(ValueError, match=message):
        resolve(name, str(trained), changes, mode)


def test_sampling_ignores_training_keys(trained):
    config, _ = resolve("vpsde", str(trained), [("optim.learning_rate", "1"), ("train.batch_size", "8")], "sample")
    assert config.train.batch_size == 8


def test_missing_and_damaged_runs(tmp_path):
    with pytest.raises(CheckpointError, match="no run in"):
        resolve(None, str(tmp_path), [], "sample")
    for text in ("{", "[]", '{"sde": 3}', '{"nonsense": 3}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
            resolve(None, str(tmp_path), [], "sample")


def test_neither_config_nor_workdir():
    with pytest.raises(ValueError, match="give --config"):
        resolve(None, None, [], "train")
