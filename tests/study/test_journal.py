"""The journal: what it keeps, what it refuses, and what becomes of damaged lines."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensjax.core.errors import InputError
from lensjax.measure.measurement import Cell
from lensjax.study.journal import QUARANTINE, Journal

CELL = Cell("finetune", "gpt2", 400, 1)


def test_entries_are_read_as_they_were_added(tmp_path):
    journal = Journal(tmp_path, "a")
    journal.add(cell=CELL, seconds=1.5, flops=10**18)
    journal.add(decision="After 400 examples.", basis="b", eliminated=("opt",))
    assert Journal(tmp_path, "a").entries == journal.entries
    assert journal.last(CELL).flops == 10**18
    assert journal.last(CELL._replace(seed=0)) is None


def test_failures_may_be_forgiven(tmp_path):
    journal = Journal(tmp_path, "a")
    journal.add(cell=CELL, status="failed", error="no room")
    assert journal.last(CELL).error == "no room"
    assert journal.last(CELL, forgiven=1) is None
    journal.add(cell=CELL, status="failed", error="again")
    assert journal.last(CELL, forgiven=1).error == "again"


@given(garbage=st.binary(max_size=40).filter(lambda b: b.strip() and b"\n" not in b), where=st.integers(0, 2))
def test_damaged_lines_are_set_aside_and_the_rest_is_kept(tmp_path_factory, garbage, where):
    folder = tmp_path_factory.mktemp("journal")
    journal = Journal(folder, "a")
    for seed in range(2):
        journal.add(cell=CELL._replace(seed=seed))
    path = folder / "journal.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:where], garbage, *lines[where:]]))
    again = Journal(folder, "a")
    assert again.entries == journal.entries
    assert again.quarantined >= 1
    assert (folder / QUARANTINE).exists()
    assert Journal(folder, "a").quarantined == 0


def test_a_line_that_was_cut_off_does_not_spoil_the_next(tmp_path):
    journal = Journal(tmp_path, "a")
    journal.add(cell=CELL)
    with journal.path.open("ab") as file:
        file.write(b'{"study": "a", "ti')
    again = Journal(tmp_path, "a")
    again.add(cell=CELL._replace(seed=2))
    assert [entry.cell.seed for entry in Journal(tmp_path, "a").entries] == [1, 2]


def test_journals_of_other_studies_and_newer_versions_are_refused(tmp_path):
    Journal(tmp_path, "a").add(cell=CELL)
    with pytest.raises(InputError, match=r"journal.jsonl is the journal of another study"):
        Journal(tmp_path, "b")
    path = tmp_path / "journal.jsonl"
    before = json.dumps({**json.loads(path.read_text()), "version": 2, "colour": "blue"}) + "\n"
    path.write_text(before)
    with pytest.raises(InputError, match=r"line 1 was written by a newer version .* update LensJAX"):
        Journal(tmp_path, "a")
    assert path.read_text() == before
