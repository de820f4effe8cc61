"""The fused Adam step against torch's own optimisers."""

import subprocess
import sys

import pytest
import torch

from score_sde.engine.training.adam import Adam, AdamW

KINDS = {"adam": (Adam, torch.optim.Adam), "adamw": (AdamW, torch.optim.AdamW)}
SETTINGS = {"lr": 3e-3, "betas": (0.8, 0.99), "weight_decay": 0.1}


def parameters():
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(*shape)) for shape in ((3, 2), (5,), (2, 2, 3), (1,))]


def with_gradients(parameters, n, left_out=()):
    generator = torch.Generator().manual_seed(n)
    for i, p in enumerate(parameters):
        p.grad = None if i in left_out else torch.randn(p.shape, generator=generator)


def equal(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", KINDS)
def test_steps_match_torch_bit_for_bit(name):
    """Covers a changing learning rate, a parameter without a gradient at first, and a non-finite step."""
    ours, theirs = parameters(), parameters()
    own, torchs = (kind(p, **SETTINGS) for kind, p in zip(KINDS[name], (ours, theirs)))
    torchs.param_groups[0]["fused"] = True
    for n in range(6):
        for p in (ours, theirs):
            with_gradients(p, n, left_out=(1,) if n < 2 else ())
        own.lr = torchs.param_groups[0]["lr"] = 1e-3 * (n + 1)
        torchs.found_inf = torch.tensor(float(n == 3))
        before = [p.clone() for p in ours]
        own.step(found_inf=torch.tensor(float(n == 3)))
        torchs.step()
        assert equal(ours, theirs)
        assert equal(ours, before) == (n == 3)
    own.zero_grad()
    assert all(p.grad is None for p in ours)
    state = torchs.state_dict()["state"]
    stored, reference = own.state_dict()["param_groups"][0], torchs.state_dict()["param_groups"][0]
    assert stored == {key: reference[key] for key in stored}
    assert own.state.keys() == state.keys()
    assert all(equal(own.state[i].values(), (state[i][key] for key in own.state[i])) for i in state)


@pytest.mark.parametrize("name", KINDS)
def test_each_optimiser_continues_from_the_state_of_the_other(name):
    ours, theirs = KINDS[name]
    found = []
    for first, then in ((theirs, theirs), (theirs, ours), (ours, theirs), (ours, ours)):
        p = parameters()
        options = [{"fused": True} if kind is theirs else {} for kind in (first, then)]
        early = first(p, **SETTINGS, **options[0])
        with_gradients(p, 0)
        early.step()
        late = then(p, **SETTINGS, **options[1])
        if then is theirs and first is ours:  # torch requires all of its own settings
            groups = late.state_dict()["param_groups"]
            late.load_state_dict({"state": early.state_dict()["state"], "param_groups": groups})
        else:
            late.load_state_dict(early.state_dict())
        with_gradients(p, 1)
        late.step()
        found.append(p)
    assert all(equal(p, found[0]) for p in found[1:])


def test_training_does_not_import_the_compiler(tmp_path):
    """Importing the compiler takes half of the start-up time when nothing is compiled."""
    program = (
        "import sys\nfrom score_sde import run\n"
        f"status = run.main(['run.py', '--config=points', '--mode=train', '--workdir={tmp_path}',\n"
        "    '--config.device=cpu', '--config.train.total_images=64', '--config.train.batch_size=32',\n"
        "    '--config.network.width=8', '--config.train.sample_every=0'])\n"
        "assert status == 0\n"
        "slow = {'torch._dynamo', 'sympy', 'scipy.interpolate', 'scipy.optimize'} & set(sys.modules)\n"
        "assert not slow, slow\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
