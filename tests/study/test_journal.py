"""The journal: what it keeps, what it refuses, and what becomes of damaged lines."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensjax.core.artefacts import sealed_line, unsealed_line
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
    line = unsealed_line(path.read_bytes().strip())
    before = sealed_line(json.dumps({**json.loads(line), "version": 4, "colour": "blue"}))
    path.write_bytes(before)
    with pytest.raises(InputError, match=r"line 1 was written by a newer version .* update LensJAX"):
        Journal(tmp_path, "a")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        (b'"seconds":1.5', b'"seconds":2.5'),
        (b'"version":3', b'"version":7'),
        (b'"seconds":1.5', b'"seconds":NaN'),
        (b"gpt2", b"gpt3"),
        (b'"study":"a"', b'"study":"b"'),
    ],
    ids=lambda change: change[1].decode(),
)
def test_a_line_that_was_changed_is_not_believed_and_the_others_are(tmp_path, change):
    journal = Journal(tmp_path, "a")
    for seed in range(3):
        journal.add(cell=CELL._replace(seed=seed), seconds=1.5)
    first, odd, last = journal.path.read_bytes().splitlines()
    journal.path.write_bytes(b"\n".join([first, odd.replace(*change), last]) + b"\n")
    (tmp_path / QUARANTINE).write_bytes(b"\xff\n")  # whatever lies there already
    again = Journal(tmp_path, "a")
    assert (again.entries, again.quarantined) == ([journal.entries[0], journal.entries[2]], 1)
    assert (tmp_path / QUARANTINE).read_bytes() == b"\xff\n" + odd.replace(*change) + b"\n"


def test_a_whole_line_of_another_study_among_many_is_set_aside(tmp_path):
    ours, theirs = Journal(tmp_path, "a"), Journal(tmp_path / "..", "b")
    theirs.path = ours.path
    ours.add(cell=CELL)
    theirs.add(cell=CELL._replace(seed=2))
    again = Journal(tmp_path, "a")
    assert (again.entries, again.quarantined) == (ours.entries, 1)


def test_lines_of_the_first_version_have_no_checksum(tmp_path):
    line = {"study": "a", "time": "2026-01-01T00:00:00+00:00", "cell": list(CELL), "seconds": 2.0}
    (tmp_path / "journal.jsonl").write_text(json.dumps(line) + "\n")
    assert Journal(tmp_path, "a").last(CELL).seconds == 2.0


def test_deaths_in_a_row_are_counted_and_do_not_end_a_cell(tmp_path):
    journal = Journal(tmp_path, "a")
    for _ in range(2):
        journal.add(cell=CELL, status="died")
        journal.add(cell=CELL._replace(seed=2))
    assert (journal.deaths(CELL), journal.last(CELL)) == (2, None)
    journal.add(cell=CELL, status="failed", error="it died")
    assert (journal.deaths(CELL), journal.last(CELL).status) == (0, "failed")


def test_lines_that_were_copied_or_moved_count_once_and_in_the_order_of_their_numbers(tmp_path):
    journal = Journal(tmp_path, "a")
    for status in ("failed", "ok", "died"):
        journal.add(cell=CELL, status=status, flops=7)
    first, second, third = journal.path.read_bytes().splitlines()
    journal.path.write_bytes(b"\n".join([third, first, first, second, third]) + b"\n")
    again = Journal(tmp_path, "a")
    assert (again.entries, again.quarantined, again.deaths(CELL)) == (journal.entries, 2, 1)
    assert journal.path.read_bytes().splitlines() == [first, second, third]
    assert again.add(cell=CELL).number == 4
    assert Journal(tmp_path, "a").quarantined == 0


def test_what_a_journal_gets_does_not_go_where_a_link_leads(tmp_path):
    Journal(tmp_path, "a").add(cell=CELL)
    path, outside = tmp_path / "journal.jsonl", tmp_path / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    before = outside.read_bytes()
    Journal(tmp_path, "a").add(cell=CELL, status="died")
    assert outside.read_bytes() == before
    assert [entry.status for entry in Journal(tmp_path, "a").entries] == ["ok", "died"]
