import os
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensjax.core.errors import InputError
from lensjax.curves.csv_files import read_curves
from lensjax.curves.table import MAX_EXAMPLES, MAX_LOSS, MIN_LOSS, CurveTable, curve_table
from lensjax.curves.units import BITS_PER_BYTE, NATS_PER_EXAMPLE, NATS_PER_TOKEN, UNITS
from lensjax.selection.ranking import rank

NAN = float("nan")
WIDE = """\
config name,0,200,400,size,family
gpt2,4.86,4.39,4.29,124439808,GPT2
bart,8.5,,3.99,96103680,BART
"""
TIDY = """\
model,examples,loss,seed,size,family
gpt2,400,4.29,0,124439808,GPT2
gpt2,0,4.86,0,124439808,GPT2
gpt2,200,4.39,0,124439808,GPT2
bart,0,8.5,0,96103680,BART
bart,400,3.99,0,96103680,BART
"""


@pytest.fixture(scope="session")
def file(tmp_path_factory):
    """Writes a file of the given content and returns its path."""
    path = tmp_path_factory.mktemp("curves") / "task.csv"

    def write(content):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def table(file):
    return read_curves(file(WIDE))


def refusal(path, **asked):
    """The message with which `path` is refused: one short line."""
    with pytest.raises(InputError) as caught:
        read_curves(path, **asked)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 400
    return message


def assert_same(got, wanted):
    assert (got.models, got.families, got.unit) == (wanted.models, wanted.families, wanted.unit)
    for field in ("sizes", "loss", "loss_sd", "seeds", "parameters"):
        np.testing.assert_array_equal(getattr(got, field), getattr(wanted, field), err_msg=field, strict=True)


# Names that tempt a CSV, and any other that is not blank.
TEXTS = st.one_of(
    st.sampled_from(["a,b", 'say "hi"', '"', "two\nlines", "a\rb", "a\r\nb", "名前 👩‍🔬", "\ufeff", "size", "0", "'"]),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8),
).map(str.strip)


@st.composite
def tables(draw, gaps=True):
    """Any valid table with at least one loss."""
    names = draw(st.lists(TEXTS.filter(bool), min_size=1, max_size=4, unique=True))
    sizes = draw(st.lists(st.integers(0, MAX_EXAMPLES), min_size=1, max_size=5, unique=True))
    losses = st.floats(MIN_LOSS, MAX_LOSS) | st.floats(1, 6)
    rows = st.lists(losses | st.just(NAN) if gaps else losses, min_size=len(sizes), max_size=len(sizes))
    loss = draw(st.lists(rows, min_size=len(names), max_size=len(names)).filter(lambda x: not np.isnan(x).all()))
    counts = st.lists(
        st.floats(0, exclude_min=True, allow_infinity=False) | st.integers(1, 10**12).map(float) | st.just(NAN),
        min_size=len(names),
        max_size=len(names),
    )
    families = st.lists(TEXTS, min_size=len(names), max_size=len(names))
    return curve_table(
        names,
        sizes,
        loss,
        parameters=draw(st.none() | counts),
        families=draw(st.none() | families),
        task="task",
        unit=draw(st.sampled_from(list(UNITS.values()))),
    )


class TestLayouts:
    @pytest.mark.parametrize("content", [WIDE, TIDY], ids=["wide", "tidy"])
    def test_both_layouts_give_the_same_table(self, file, content):
        table = read_curves(file(content))
        assert table.task == "task"
        assert table.models == ("gpt2", "bart")
        assert table.families == ("GPT2", "BART")
        assert table.sizes.tolist() == [0, 200, 400]
        np.testing.assert_array_equal(table.parameters, [124439808, 96103680])
        np.testing.assert_array_equal(table.loss, [[4.86, 4.39, 4.29], [8.5, NAN, 3.99]])
        np.testing.assert_array_equal(table.seeds, [[1, 1, 1], [1, 0, 1]])
        np.testing.assert_array_equal(table.measured, [[True, True, True], [True, False, True]])
        assert np.isnan(table.loss_sd).all()

    @pytest.mark.parametrize("content", [WIDE, TIDY], ids=["wide", "tidy"])
    @pytest.mark.parametrize(
        "change",
        [
            lambda text: "\ufeff" + text,
            lambda text: text.replace("\n", "\r\n"),
            lambda text: text.replace("\n", "\r"),
            lambda text: "\n \n" + text.replace("\n", "\n,,,,,\n\n"),
            lambda text: text.replace(",", " , "),
            lambda text: text.rstrip("\n"),
            lambda text: text.replace("config name", "Model").replace("examples", "Examples"),
            lambda text: text.replace("400", "4e2"),
            lambda text: "\n".join(",".join(f'"{cell}"' for cell in row.split(",")) for row in text.splitlines()),
        ],
        ids=["BOM", "CRLF", "CR", "blank-lines", "spaces", "no-last-newline", "case", "exponent", "quoted"],
    )
    def test_spelling_does_not_matter(self, file, content, change):
        wanted = read_curves(file(content))
        assert_same(read_curves(file(change(content))), wanted)

    def test_columns_come_in_any_order(self, file):
        table = read_curves(file("400,family,model,0\n3.5,GPT2,gpt2,4.5\n"))
        assert (table.models, table.families, table.sizes.tolist()) == (("gpt2",), ("GPT2",), [0, 400])
        np.testing.assert_array_equal(table.loss, [[4.5, 3.5]])

    def test_other_columns_of_a_tidy_file_are_passed_over(self, file):
        table = read_curves(file("lr,model,examples,loss,,\n1e-4,gpt2,200,3.5,,\n"), task="given")
        assert table.task == "given"
        np.testing.assert_array_equal(table.loss, [[3.5]])

    def test_blank_losses_leave_the_model_and_the_size(self, file):
        table = read_curves(file("model,examples,loss\na,200,\nb,400,3.5\n"))
        np.testing.assert_array_equal(table.loss, [[NAN, NAN], [NAN, 3.5]])


class TestSeeds:
    def test_seeds_are_averaged(self, file):
        table = read_curves(file("model,examples,loss,seed\na,200,3,0\na,200,4,1\na,200,8,2\na,400,2,0\nb,200,5,\n"))
        np.testing.assert_array_equal(table.loss, [[5, 2], [5, NAN]])
        np.testing.assert_array_equal(table.seeds, [[3, 1], [1, 0]])
        np.testing.assert_allclose(table.loss_sd, [[7**0.5, NAN], [NAN, NAN]], rtol=1e-15)

    @settings(deadline=None)
    @given(st.lists(st.floats(MIN_LOSS, MAX_LOSS), min_size=2, max_size=5))
    def test_mean_and_spread_of_any_losses_are_finite(self, file, losses):
        rows = "".join(f"a,200,{loss!r},{seed}\n" for seed, loss in enumerate(losses))
        table = read_curves(file("model,examples,loss,seed\n" + rows))
        np.testing.assert_allclose(table.loss[0, 0], np.mean(losses), rtol=1e-12)
        assert np.isfinite(table.loss_sd[0, 0])


class TestUnits:
    SEVERAL = """\
model,examples,loss,bits_per_byte,nats_per_example
a,200,3,1.5,30
a,400,2,1.0,20
b,200,4,1.2,40
b,400,,,
"""

    @pytest.mark.parametrize(
        ("content", "unit", "losses"),
        [
            (SEVERAL, BITS_PER_BYTE, [[1.5, 1.0], [1.2, NAN]]),
            (SEVERAL.replace("bits_per_byte", "other"), NATS_PER_TOKEN, [[3, 2], [4, NAN]]),
            (SEVERAL.replace("bits_per_byte", "x").replace("loss", "y"), NATS_PER_EXAMPLE, [[30, 20], [40, NAN]]),
            (
                "model,200,400,unit\na,1.5,1,bits per byte\nb,1.2,,bits_per_byte\n",
                BITS_PER_BYTE,
                [[1.5, 1], [1.2, NAN]],
            ),
            ("model,examples,loss,unit\na,200,3,Nats per example\n", NATS_PER_EXAMPLE, [[3]]),
            ("model,200,unit\na,3,\n", NATS_PER_TOKEN, [[3]]),
        ],
    )
    def test_bits_per_byte_are_read_where_they_are_known(self, file, content, unit, losses):
        table = read_curves(file(content))
        assert (table.unit, table.caution) == (unit, "")
        np.testing.assert_array_equal(table.loss, losses)
        assert table.up_to(200).unit == table.select([0]).unit == unit

    def test_a_model_without_them_is_not_chosen_where_two_others_have_them(self, file):
        path = file(self.SEVERAL.replace("4,1.2", "4,") + "c,200,5,1.4,50\nc,400,4,1.3,40\n")
        table = read_curves(path)
        assert (table.unit, table.caution) == (BITS_PER_BYTE, "")
        np.testing.assert_array_equal(table.loss, [[1.5, 1.0], [NAN, NAN], [1.4, 1.3]])
        why = "its losses are not all known in bits per byte, which the others are compared by"
        assert table.ineligible == ("", why, "")
        found = rank(table, 400, 800, "rectified_law")
        assert found.left_out == (("b", why),)
        assert set(found.table.models) == {"a", "c"}
        assert read_curves(path, unit=NATS_PER_TOKEN).ineligible == ("", "", "")

    def test_where_a_model_lacks_them_all_are_compared_in_nats_per_token_and_that_is_said(self, file):
        path = file(self.SEVERAL.replace("4,1.2", "4,"))
        table = read_curves(path)
        np.testing.assert_array_equal(table.loss, [[3, 2], [4, NAN]])
        assert table.unit == NATS_PER_TOKEN
        assert table.caution.startswith(
            "Losses of b are not known in bits per byte, so all are compared in nats per token"
        )
        assert table.up_to(200).caution == table.caution
        asked = read_curves(path, unit=BITS_PER_BYTE)
        assert (asked.unit, asked.caution) == (BITS_PER_BYTE, "")
        np.testing.assert_array_equal(asked.loss, [[1.5, 1.0], [NAN, NAN]])

    @pytest.mark.parametrize(("size", "amiss"), [("1000", False), ("995", False), ("900", True), ("", False)])
    def test_losses_of_different_texts_are_told_of(self, file, size, amiss):
        rows = f"a,200,1.5,1000\na,400,1.2,1000\nb,200,1.4,{size}\n"
        caution = read_curves(file("model,examples,bits_per_byte,test_bytes\n" + rows)).caution
        assert ("those of a are of 1,000 bytes of the test targets, those of b of 900" in caution) == amiss
        assert amiss or not caution

    def test_the_unit_of_a_wide_file_may_be_given(self, file):
        assert read_curves(file(WIDE), unit=BITS_PER_BYTE).unit == BITS_PER_BYTE

    @pytest.mark.parametrize(
        ("content", "unit", "says"),
        [
            (
                "model,200,unit\na,3,bits per byte\nb,2,\n",
                None,
                "line 3 is in nats per token, and the rows above are in",
            ),
            (
                "model,200,unit\na,3,shannons\n",
                None,
                "line 2 column 'unit': There is no unit 'shannons'; choose one of",
            ),
            (
                "model,200,unit\na,3,bits per byte\n",
                NATS_PER_TOKEN,
                "says that its losses are in bits per byte, not in",
            ),
            (
                "model,examples,perplexity\na,200,3\n",
                None,
                "no column of losses; name it 'loss' where they are in nats",
            ),
            (TIDY, BITS_PER_BYTE, "names no column of losses in bits per byte; name it 'bits_per_byte'"),
        ],
    )
    def test_units_are_not_mixed_or_guessed(self, file, content, unit, says):
        assert says in refusal(file(content), unit=unit)


class TestRoundTrips:
    @settings(max_examples=100, deadline=None)
    @given(table=tables())
    def test_wide(self, file, table):
        assert_same(read_curves(file(table.to_csv("wide"))), table)

    @settings(max_examples=100, deadline=None)
    @given(table=tables(gaps=False))
    def test_tidy(self, file, table):
        assert_same(read_curves(file(table.to_csv("tidy"))), table)

    def test_tidy_has_measured_losses_only(self):
        table = curve_table(["a", "b"], [200, 400], [[NAN, 3.5], [NAN, NAN]])
        assert table.to_csv("tidy") == "model,examples,loss\na,400,3.5\n"

    @pytest.mark.parametrize("content", [WIDE, TIDY], ids=["wide", "tidy"])
    def test_wide_text_is_the_documented_layout(self, file, content):
        assert read_curves(file(content)).to_csv() == WIDE

    @pytest.mark.parametrize("layout", ["wide", "tidy"])
    def test_why_a_model_may_not_be_chosen_is_read_back(self, file, table, layout):
        barred = table.barring({"bart": 'it cannot write "día",\n"ñ"'})
        text = barred.to_csv(layout)
        assert read_curves(file(text)).ineligible == barred.ineligible
        assert "ineligible" not in table.to_csv(layout)

    def test_one_row_that_says_why_is_enough(self, file):
        text = "model,examples,loss,ineligible\na,0,3,\na,200,2,it is too large\nb,0,3,\n"
        assert read_curves(file(text)).ineligible == ("it is too large", "")

    @pytest.mark.parametrize("layout", ["wide", "tidy"])
    def test_write(self, table, tmp_path, layout):
        table.write(tmp_path / "out.csv", layout)
        assert_same(read_curves(tmp_path / "out.csv"), table)

    def test_write_into_a_missing_folder(self, table, tmp_path):
        with pytest.raises(InputError, match="Cannot write"):
            table.write(tmp_path / "missing" / "out.csv")


class TestUnreadableFiles:
    def test_missing(self, tmp_path):
        assert "No such file" in refusal(tmp_path / "missing.csv")

    def test_folder(self, tmp_path):
        assert "Cannot read" in refusal(tmp_path)

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser reads every file")
    def test_forbidden(self, tmp_path):
        path = tmp_path / "task.csv"
        path.write_text(WIDE)
        path.chmod(0)
        assert "Permission denied" in refusal(path)

    @pytest.mark.parametrize("name", ["nul\0.csv", "\ud800.csv", "new\nline.csv", "long" * 100 + ".csv"])
    def test_impossible_name(self, tmp_path, name):
        assert "Cannot read" in refusal(tmp_path / name)

    @pytest.mark.parametrize(
        "content",
        [WIDE.encode("utf-16"), WIDE.replace("gpt2", "é").encode("latin-1"), b"\x89PNG\r\n\x1a\n\0\0", bytes(1000)],
        ids=["UTF-16", "latin-1", "PNG", "zeros"],
    )
    def test_not_text(self, file, content):
        assert "not UTF-8 text" in (message := refusal(file(content))) or "NUL" in message

    @pytest.mark.parametrize("content", ["", "\n\n", "\ufeff", " , ,\n"], ids=repr)
    def test_empty(self, file, content):
        assert "is empty" in refusal(file(content))

    @pytest.mark.parametrize("start", ["", "config name,200\n", "model,examples,loss\n", '"'], ids=repr)
    @pytest.mark.parametrize("junk", ["binary", "text", "header"])
    def test_ten_megabytes_of_junk(self, file, start, junk):
        rng, count = np.random.default_rng(0), 10_000_000
        content = {
            "binary": lambda: rng.bytes(count),
            "text": lambda: rng.integers(32, 127, count, dtype=np.uint8).tobytes(),
            "header": lambda: b"model,examples,loss," + b"another column junk," * (count // 20),
        }[junk]()
        path = file(start.encode() + content)
        began = time.process_time()
        refusal(path)
        assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("config name,200,400\n", ["has a header but no models"]),
        ("model,examples,loss\n", ["has a header but no models"]),
        ("config name,200\na,\n", ["holds no losses"]),
        ("model,examples,loss\na,200, \n", ["holds no losses"]),
        ("config name,size\na,3\n", ["line 1", "no loss columns"]),
        ("200,400\n3,2\n", ["line 1", "no model column (found 200, 400)"]),
        ("\n\n200,400\n3,2\n", ["line 3", "no model column"]),
        ("config name,200,loss\na,3,2\n", ["line 1 column 3", "'loss'", "not a number of examples"]),
        ("config name,200,-1\na,3,2\n", ["line 1 column 3", "'-1'"]),
        ("config name,200,0.5\na,3,2\n", ["line 1 column 3", "'0.5'"]),
        ("config name,200,nan\na,3,2\n", ["line 1 column 3", "'nan'"]),
        ("config name,200,inf\na,3,2\n", ["line 1 column 3", "'inf'"]),
        ("config name,200,1e16\na,3,2\n", ["line 1 column 3", "'1e16'"]),
        ("config name,200,1_000\na,3,2\n", ["line 1 column 3", "'1_000'"]),
        ("config name,200,\na,3,\n", ["line 1 column 3", "''"]),
        ("config name,200,200\na,3,2\n", ["line 1", "the size 200 twice"]),
        ("config name,200,200.0\na,3,2\n", ["line 1", "the size 200 twice"]),
        ("config name,200,2e2\na,3,2\n", ["line 1", "the size 200 twice"]),
        ("config name,200,size,size\na,3,2,2\n", ["line 1 column 4", "'size'"]),
        ("config name,200,400\na,3,2\nb,3\n", ["line 3", "2 cells", "header has 3"]),
        ("config name,200\na,3\n\nb,3,2\n", ["line 4", "3 cells", "header has 2"]),
        ("config name,200\na,3\na ,2\n", ["line 3", "repeats the model 'a' of line 2"]),
        ('config name,200\n"a\nb",3\nc,0\n', ["line 4", "'200'", "'0'"]),
        ('config name,200\nc,3\n"a\nb",0\n', ["line 3", "'200'", "'0'"]),
        ("config name,200\na,3\n ,2\n", ["line 3", "no model name"]),
        ("config name,200\na,-3\n", ["line 2 column '200'", "'-3'"]),
        ("config name,200\na,0\n", ["line 2 column '200'", "'0'"]),
        ("config name,200\na,nan\n", ["line 2 column '200'", "'nan'"]),
        ("config name,200\na,inf\n", ["line 2 column '200'", "'inf'"]),
        ("config name,200\na,1e31\n", ["line 2 column '200'", "'1e31'"]),
        ("config name,200\na,1e-31\n", ["line 2 column '200'", "'1e-31'", "from 1e-30 to 1e+30"]),
        ("config name,200\na,3_0\n", ["line 2 column '200'", "'3_0'"]),
        ("config name,200\na,three\n", ["line 2 column '200'", "'three'"]),
        ("config name,200\na," + "x" * 5000 + "\n", ["line 2 column '200'", "xxx…"]),
        ("config name,200,size\na,3,big\n", ["line 2 column 'size'", "'big'"]),
        ("config name,200,size\na,3,-1\n", ["line 2 column 'size'", "'-1'"]),
        ("config name,200,size\na,3,inf\n", ["line 2 column 'size'", "'inf'"]),
        ('config name,200\n"a,3\n', ["line 2", "not CSV"]),
        ('config name,200\nb,2\n"a"x,3\n', ["line 3", "not CSV"]),
        ('config name,200\n"' + "x" * 200_000 + '",3\n', ["line 2", "not CSV"]),
        ("model,examples,loss,loss\na,200,3,3\n", ["line 1", "'loss' twice"]),
        ("model,examples,loss\na,many,3\n", ["line 2 column 'examples'", "'many'"]),
        ("model,examples,loss\na,,3\n", ["line 2 column 'examples'", "''"]),
        ("model,examples,loss\na,1.5,3\n", ["line 2 column 'examples'", "'1.5'"]),
        ("model,examples,loss\na,200,3\nb,200,-3\n", ["line 3 column 'loss'", "'-3'"]),
        ("model,examples,loss\na,200,3\n,200,3\n", ["line 3", "no model name"]),
        ("model,examples,loss\na,200\n", ["line 2", "2 cells", "header has 3"]),
        ("model,examples,loss\na,200,3\na,2e2,4\n", ["line 3", "repeats 200 examples of 'a'", "add a 'seed'"]),
        ("model,examples,loss,seed\na,2,3,7\na,2,4,7 \n", ["line 3", "repeats 2 examples of 'a' with seed 7"]),
        ("model,examples,loss,size\na,2,3,7\na,4,3,8\n", ["line 3", "another size or family than line 2"]),
        ("model,examples,loss,size\na,2,3,7\na,4,3,\n", ["line 3", "another size or family than line 2"]),
        ("model,examples,loss,family\na,2,3,f\na,4,3,g\n", ["line 3", "another size or family than line 2"]),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_message_names_the_place(file, content, words):
    path = file(content)
    message = refusal(path)
    for word in (str(path), *words):
        assert word in message


CELLS = st.sampled_from(
    [
        *("config name", "model", "examples", "loss", "seed", "size", "family", "0", "200", "2e2", "3.5", "1e300"),
        *("-1", "nan", "", " ", "a", "b", '"', '"a"', '"a\nb"', "\ufeff", "x" * 300, "1_0", "٣"),
    ]
)
LINES = st.lists(CELLS, max_size=6).map(",".join)
SHEETS = st.lists(LINES, max_size=6).map("\n".join)
HEADED = st.builds("{}\n{}".format, st.sampled_from(["config name,200,size", "model,examples,loss"]), SHEETS)


@settings(max_examples=300, deadline=None)
@given(content=st.one_of(SHEETS, HEADED, st.text(), st.binary()))
def test_anything_is_a_table_or_refused(file, content):
    path = file(content)
    try:
        table = read_curves(path)
    except InputError:
        refusal(path)
    else:
        assert isinstance(table, CurveTable)
        assert len(set(table.models)) == len(table.models) == len(table.families) == len(table.parameters)
        assert np.all(np.diff(table.sizes) > 0)
        assert table.loss.shape == table.loss_sd.shape == table.seeds.shape == (len(table.models), len(table.sizes))
        assert np.all((table.loss > 0) == (table.seeds > 0))
