"""Rows of an interrupted measurement: recovered bit for bit, each once, and shared out in whole batches."""

import json
import math

import numpy as np
import pytest

from score_sde.engine import ranks
from score_sde.engine.partial_results import PartialResults

ASKED = {"settings": {"probes": 1, "rtol": 1e-5}, "sizes": (1, 2), "seed": 0, "split": "test"}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Barriers return at once, as this is the only process."""
    monkeypatch.setattr(ranks, "wait_for_all", lambda: None)


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Finds the rows of these settings as a process does: (name, settings, rank and number of processes)."""

    def find(name="test", asked=ASKED, rank=0, size=1):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(size))
        return PartialResults(tmp_path / "below" / "likelihood", name, asked)

    return find


def columns(examples):
    """Numbers that need all their bits, including non-finite ones."""
    rng = np.random.default_rng(np.asarray(examples).sum())
    odd = np.array([math.nan, math.inf, -math.inf, -0.0, 5e-324, 1 / 3])
    return {"nats": rng.standard_normal(len(examples)) * 1e-300, "odd": odd[np.arange(len(examples)) % 6]}


def test_stored_rows_are_recovered_bit_for_bit_in_the_order_of_the_examples(rows):
    first, second = [7, 2, 5], [0, 1, 3, 4, 6]
    kept = rows()
    for examples in (first, second):
        kept.append(examples, columns(examples))
    expected = {key: np.empty(8) for key in ("nats", "odd")}
    for examples in (first, second):
        for key, column in columns(examples).items():
            expected[key][examples] = column
    again = rows()
    assert sorted(again.found) == list(range(8))
    for found in (kept.collect(8), again.collect(8)):
        assert list(found) == ["nats", "odd"]
        for key, column in expected.items():
            assert found[key].tobytes() == column.tobytes()
    assert {len(column) for column in again.collect(3).values()} == {3}


def test_nothing_is_written_before_the_first_batch(rows, tmp_path):
    kept = rows()
    assert kept.missing(5, 2) == [[0, 1], [2, 3], [4]]
    assert not list(tmp_path.iterdir())
    kept.append([0, 1], columns([0, 1]))
    (path,) = (tmp_path / "below" / "likelihood").iterdir()
    assert path == kept.path
    assert path.name.startswith("test.rows-")
    assert path.name.endswith("-0.jsonl")


def test_a_truncated_line_is_ignored(rows):
    """The previous batch stays whole, its own batch is dropped as a whole, and the next line starts on a new line."""
    whole = rows()
    for examples in ([0, 1], [2, 3]):
        whole.append(examples, columns(examples))
    content = whole.path.read_bytes()
    last = content.rindex(b"\n") + 1
    for end in range(last, len(content)):
        whole.path.write_bytes(content[:end])
        kept = rows()
        assert kept.missing(6, 2) == [[2, 3], [4, 5]]
        kept.append([4, 5], columns([4, 5]))
        assert rows().missing(6, 2) == [[2, 3]]
        kept.path.unlink()
    whole.path.write_bytes(content)
    assert rows().missing(6, 2) == [[4, 5]]


ODD = [b"[]", b"7", b'{"example": 3}', b'{"example": [2], "nats": []}', b'{"example": ["2"]}', b'{"nats": [1.0]}']
ODD += [b"\0\0\0\0", b"\xff\xfe{", b'{"example": [2', b"{}", b"\n\n"]


@pytest.mark.parametrize("garbage", ODD)
def test_garbage_at_the_end_is_ignored(garbage, rows):
    kept = rows()
    kept.append([0], columns([0]))
    kept.path.write_bytes(kept.path.read_bytes() + b"\n" + garbage)
    kept = rows()
    assert list(kept.found) == [0]
    kept.append([1], columns([1]))
    assert sorted(rows().found) == [0, 1]


@pytest.mark.parametrize(
    "changed",
    [{"seed": 1}, {"settings": {"probes": 1, "rtol": 1e-6}}, {"sizes": (2, 1)}, {"split": "train"}, {"new": 0}],
)
def test_rows_of_other_settings_are_left_alone(changed, rows):
    kept = rows()
    kept.append([0], columns([0]))
    other = rows(asked=ASKED | changed)
    assert other.found == {}
    assert other.others() == [kept.path]
    other.append([0], columns([0]))
    assert rows().found.keys() == {0}
    assert other.path != kept.path


def test_equal_settings_in_another_form_find_the_rows(rows):
    rows().append([0], columns([0]))
    same = json.loads(json.dumps(dict(reversed(ASKED.items()))))
    found = rows(asked=same)
    assert found.found.keys() == {0}
    assert found.others() == []


def test_deletion_leaves_other_names_and_running_commands(rows):
    """It deletes everything that dead commands left under the same name, for all settings and processes."""
    for asked, rank in ((ASKED, 0), (ASKED, 1), ({}, 0), ({"seed": 5}, 1)):
        rows("test", asked, rank, 2).append([rank], columns([0]))
    living, other = rows("test", {"seed": 7}), rows("train")
    for kept in (living, other):
        kept.append([0], columns([0]))
    rows("test").forget()
    assert set(living.folder.iterdir()) == {living.path, other.path}


def test_two_commands_with_equal_settings_lose_no_rows(rows):
    """The first one to end deletes the rows it has read, including the other's."""
    earlier = rows()
    earlier.append([0, 1], columns([0, 1]))
    one, other = rows(), rows()
    assert len({earlier.path, one.path, other.path}) == 3
    other.append([2, 3], columns([2, 3]))
    one.append([2, 3, 4], columns([2, 3, 4]))
    assert len(one.collect(5)["nats"]) == 5
    one.forget()
    other.append([4], columns([4]))
    expected = np.concatenate([columns(examples)["nats"] for examples in ([0, 1], [2, 3], [4])])
    assert np.array_equal(other.collect(5)["nats"], expected)
    other.forget()
    assert list(one.folder.iterdir()) == []


def test_lost_rows_are_an_error(rows):
    kept = rows()
    kept.append([0, 2], columns([0, 2]))
    with pytest.raises(OSError, match=r"2 of 4 rows, the first of example 1, are not in .*likelihood: all processes"):
        kept.collect(4)


# --- shared work ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "num", "batch_size"), [(1, 10, 3), (2, 12, 4), (3, 10, 3), (7, 1, 5), (2, 9, 100)])
@pytest.mark.parametrize("before", [[], [[0, 1, 2]], [[3, 4, 5], [9]]])
def test_processes_share_the_missing_rows_in_whole_batches(size, num, batch_size, before, rows):
    """Each missing example once and no stored one; the batches are a single process's, in turns."""
    for examples in before:
        rows().append(examples, columns(examples))
    there = {i for examples in before for i in examples}
    shares = [rows(rank=rank, size=size).missing(num, batch_size) for rank in range(size)]
    assert sorted(i for share in shares for batch in share for i in batch) == [i for i in range(num) if i not in there]
    alone = rows().missing(num, batch_size)
    assert [shares[k % size][k // size] for k in range(len(alone))] == alone
    for batch in alone:
        assert len({i // batch_size for i in batch}) == 1
        assert batch == sorted(batch)


def test_the_rows_of_all_processes_are_collected(rows):
    each = [rows(rank=rank, size=3) for rank in range(3)]
    for kept in each:
        for examples in kept.missing(11, 2):
            kept.append(examples, columns(examples))
    alone = rows()
    assert alone.missing(11, 2) == []
    expected = np.concatenate([columns([i for i in (k, k + 1) if i < 11])["nats"] for k in range(0, 11, 2)])
    for kept in (each[0], alone):
        assert np.array_equal(kept.collect(11)["nats"], expected)
    assert len({kept.path for kept in each}) == 3


def test_a_smaller_batch_size_skips_stored_rows(rows):
    rows().append([0, 1, 2, 3], columns(range(4)))
    assert rows().missing(9, 3) == [[4, 5], [6, 7, 8]]
