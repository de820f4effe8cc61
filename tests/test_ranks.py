"""Several processes of one command: ranks, accelerators, and output of the first one only."""

from datetime import timedelta

import pytest
import torch

from score_sde.engine import log, ranks
from score_sde.engine.devices import make_device


@pytest.fixture
def among(monkeypatch):
    """Makes this process one of several: its rank, their number, and its local rank."""

    def be(rank, size, local=None):
        values = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank if local is None else local}
        for key, value in values.items():
            monkeypatch.setenv(key, str(value))

    return be


@pytest.fixture
def alone(monkeypatch):
    for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(key, raising=False)


def test_a_single_process_is_the_first_and_never_waits(alone):
    ranks.wait_for_all()
    assert (ranks.rank(), ranks.local_rank(), ranks.size()) == (0, 0, 1)
    assert not torch.distributed.is_initialized()


def test_ranks_come_from_torchrun(among):
    among(5, 8, 1)
    assert (ranks.rank(), ranks.local_rank(), ranks.size()) == (5, 1, 8)


def test_processes_wait_for_each_other_without_a_timeout(among, monkeypatch):
    """One process may take hours longer than another, but torch times out after half an hour by default."""
    calls = []
    for name in ("init_process_group", "new_group", "barrier"):
        monkeypatch.setattr(ranks.distributed, name, lambda *a, name=name, **k: calls.append((name, a, k)) or name)
    monkeypatch.setattr(ranks, "_everyone", ranks._everyone.__wrapped__)
    among(1, 2)
    ranks.wait_for_all()
    (first, where, _), (second, _, options), (third, group, _) = calls
    assert (first, where, second, third, group) == (
        "init_process_group",
        ("gloo",),
        "new_group",
        "barrier",
        ("new_group",),
    )
    assert options["timeout"] > timedelta(days=30)


# --- accelerators -----------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch):
    """A machine with ``count`` accelerators of a kind."""

    def have(count, kind="cuda"):
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind) if count else None)
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
        monkeypatch.setattr(torch, "empty", lambda *size, device: torch.zeros(size))

    return have


@pytest.mark.parametrize("name", ["auto", "cuda"])
@pytest.mark.parametrize(("local", "count", "expected"), [(0, 4, 0), (3, 4, 3), (5, 4, 1), (1, 1, 0)])
def test_processes_share_out_the_accelerators_of_their_machine(name, local, count, expected, among, machine):
    machine(count)
    among(11, 16, local)
    assert make_device(name) == torch.device("cuda", expected)


@pytest.mark.parametrize("name", ["cuda:2", "cpu", "meta"])
def test_a_device_with_an_index_is_used(name, among, machine):
    machine(4)
    among(1, 2)
    assert make_device(name) == torch.device(name)


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_without_accelerators_all_take_the_cpu(name, among, machine):
    machine(0)
    among(1, 2)
    assert make_device(name) == torch.device("cpu")


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_one_process_leaves_the_choice_to_torch(name, alone, machine):
    machine(4)
    assert make_device(name) == torch.device("cuda")


# --- output -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_process_shows_progress(rank, terminal, among, monkeypatch, capsys):
    among(rank, 2)
    monkeypatch.setattr(log.sys.stderr, "isatty", lambda: terminal)
    progress = log.Progress(4, "examples", every=0)
    progress.advance(2)
    progress.close()
    captured = capsys.readouterr()
    assert bool(captured.out + captured.err) == (rank == 0)
