import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from lensjax.core.errors import InputError
from lensjax.curves.lcdb import LEAST, lcdb
from lensjax.curves.public import VARIABLE

HEADER = "dataset,learner,anchor,test,test_se\n"
PUBLIC = os.environ.get(VARIABLE, "")


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))

    def write(text):
        (tmp_path / "lcdb").mkdir(exist_ok=True)
        (tmp_path / "lcdb" / "curves.csv.gz").write_bytes(gzip.compress(text.encode()))

    return write


def test_one_table_per_data_set_and_zero_is_below_the_last_digit(write):
    write(HEADER + "12,KNN,16,0.3,0.1\n12,KNN,32,0.0,0.1\n12,MLP,16,0.4,0.1\n3,MLP,16,0.5,0.1\n")
    first, second = lcdb()
    assert (first.task, second.task, second.models) == ("lcdb-3", "lcdb-12", ("KNN", "MLP"))
    np.testing.assert_array_equal(second.sizes, [16, 32])
    np.testing.assert_array_equal(second.loss, [[0.3, LEAST], [0.4, np.nan]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("12,KNN,16,1.5,0.1\n", "line 2: the error rate 1.5"),
        ("12,KNN,16,nan,0.1\n", "line 2: the error rate nan"),
        ("12,KNN\n", "line 2: expected dataset"),
        ("12,KNN,many,0.5,0\n", "line 2: expected dataset"),
    ],
)
def test_bad_rows_are_named(write, text, message):
    write(HEADER + text)
    with pytest.raises(InputError, match=message):
        lcdb()


def test_a_missing_file_says_which_folder_to_name(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(InputError, match=rf"set {VARIABLE} to the folder that holds lcdb/curves.csv.gz"):
        lcdb()


@pytest.mark.skipif(not (Path(PUBLIC) / "lcdb").is_dir(), reason=f"needs {VARIABLE} with lcdb/curves.csv.gz")
def test_the_public_file():
    tables = lcdb()
    assert len(tables) == 145
    assert {len(table.models) for table in tables} <= set(range(25, 29))
    assert min(np.nanmin(table.loss) for table in tables) == LEAST
