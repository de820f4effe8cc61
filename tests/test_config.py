"""Configs: every file loads, keys and types are those in default.py, JSON is lossless, overrides are checked."""

import inspect
import re

import pytest

from score_sde.configs import default
from score_sde.configs.choices import SUPPLIED, TABLES, defaults, options_of, table
from score_sde.data import DATASETS
from score_sde.engine.config import conform, flat, from_json, load, names, override, to_json
from score_sde.engine.density import check_dequantization
from score_sde.engine.errors import CheckpointError
from score_sde.engine.recipe import MODEL, RECIPE, differences
from score_sde.engine.resolve import resolve
from score_sde.samplers import GRIDS
from score_sde.sde_lib import (
    PARAMETERIZATIONS,
    PRIORS,
    PROBES,
)


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


def options(section, config):
    prefix = f"{section}."
    return {key.removeprefix(prefix) for key in flat(config.to_dict()) if key.startswith(prefix)}


def types(config):
    """Types of the keys that all configs share."""
    values = flat(config.to_dict())
    return {key: type(value) for key, value in values.items() if key.rpartition(".")[0] not in TABLES}


def test_keys_and_types_match_default():
    assert [name for name, config in CONFIGS.items() if not config.is_locked] == []
    assert [name for name, config in CONFIGS.items() if types(config) != types(default.get_config())] == []
    for section in TABLES:
        chosen = {name: flat(config.to_dict())[f"{section}.name"] for name, config in CONFIGS.items()}
        found = {name: options(section, config) for name, config in CONFIGS.items()}
        assert found == {name: {"name", *defaults(section, entry)} for name, entry in chosen.items()}


def test_json_loses_nothing():
    def typed(config):
        return [(key, type(value), value) for key, value in flat(config.to_dict()).items()]

    again = {name: from_json(to_json(config, versions={"torch": "2.0"})) for name, config in CONFIGS.items()}
    assert [name for name, config in CONFIGS.items() if typed(again[name]) != typed(config)] == []


NAMES = {
    **{"data.name": DATASETS, "denoiser.parameterization": PARAMETERIZATIONS, "sample.grid": {"", *GRIDS}},
    **{"likelihood.probe": PROBES, "likelihood.prior": PRIORS},
    **{f"{section}.name": table(section) for section in TABLES},
}


def test_names_are_in_their_tables():
    values = {name: flat(config.to_dict()) for name, config in CONFIGS.items()}
    others = [(name, key) for name, of in values.items() for key, known in NAMES.items() if of[key] not in known]
    assert others == []
    for config in CONFIGS.values():
        check_dequantization(config.likelihood.dequantization, levels=1 if config.codec.name == "pixels" else 0)


@pytest.mark.parametrize("section", TABLES)
def test_options_are_plain_parameters_of_the_entry(section):
    """Each option takes the default of the signature, and the run supplies none of them."""
    for name, entry in table(section).items():
        parameters, found = inspect.signature(entry).parameters, defaults(section, name)
        assert all(parameters[key].default == value for key, value in found.items())
        assert not found.keys() & SUPPLIED.get(section, set())


def test_another_entry_brings_its_defaults(config):
    override(config, [("sample.sampler.eta", "0.5")])
    override(config, [("sample.sampler.eta", "0.25"), ("sample.sampler", "ddim")])
    assert config.sample.sampler.to_dict() == {"name": "ddim", "eta": 0.25}
    override(config, [("sample.sampler.name", "pc")])
    assert config.sample.sampler.to_dict() == {"name": "pc", **defaults("sample.sampler", "pc")}
    assert options_of("sample.sampler", "ddim", config.sample.sampler) == {"eta": 0.0}
    override(config, [("sample.sampler.snr", "0.2")])
    assert options_of("sample.sampler", "pc", config.sample.sampler)["snr"] == 0.2


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("sample.sampler.churn", "sample.sampler 'adams' has no option 'churn', its options: eta, order; edm has it"),
        ("codec.high", "codec 'pixels' has no option 'high', its options: low"),
        ("loss.objective.v", "loss.objective 'denoising' has no option 'v', its options: none; bound has it"),
        ("train.eta", "unknown config key 'train.eta'; did you mean 'sample.sampler.eta'?"),
    ],
)
def test_an_option_of_another_entry_is_refused(config, key, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        override(config, [(key, "1")])


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
        ("loss.timestep_sampler.mean", "-0.4", -0.4),
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
        ("sde.sigma_max", "20", "sde 'vpsde' has no option 'sigma_max'"),
        ("sde.name", "vpsd", "unknown sde 'vpsd'; did you mean 'vpsde'"),
    ],
)
def test_override_is_checked(config, key, text, message):
    with pytest.raises(ValueError, match=message):
        override(config, [(key, text)])


def test_another_name_brings_its_own_options_in_any_order(config):
    override(config, [("sde.sigma_max", "20"), ("sde.name", "vesde"), ("network.name", "mlp")])
    assert config.sde.to_dict() == {"name": "vesde", **defaults("sde", "vesde"), "sigma_max": 20.0}
    assert config.network.to_dict() == {"name": "mlp", **defaults("network", "mlp")}


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
    assert found == {"loss.objective.name": ("denoising", "consistency_training")}


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
