import numpy as np
import pytest

from lensjax.core.errors import InputError
from lensjax.curves.table import curve_table

NAN = float("nan")


@pytest.fixture
def table():
    losses, counts = [[4.86, 4.39, 4.29], [8.5, NAN, 3.99]], [124439808, 96103680]
    return curve_table(["gpt2", "bart"], [0, 200, 400], losses, parameters=counts, families=["GPT2", "BART"])


class TestSlices:
    def test_column(self, table):
        np.testing.assert_array_equal(table.column(200), [4.39, NAN])
        np.testing.assert_array_equal(table.column(300), [NAN, NAN])

    def test_up_to(self, table):
        early = table.up_to(399)
        assert early.sizes.tolist() == [0, 200]
        np.testing.assert_array_equal(early.loss, [[4.86, 4.39], [8.5, NAN]])
        assert (early.models, early.families, early.task) == (table.models, table.families, table.task)
        np.testing.assert_array_equal(table.up_to(400).loss, table.loss)
        assert curve_table(["a"], [200], [[3]]).up_to(100).loss.shape == (1, 0)

    @pytest.mark.parametrize("keep", [[1], np.array([1]), [-1], [False, True], np.array([False, True])], ids=repr)
    def test_select(self, table, keep):
        chosen = table.select(keep)
        assert (chosen.models, chosen.families) == (("bart",), ("BART",))
        np.testing.assert_array_equal(chosen.loss, table.loss[1:])
        np.testing.assert_array_equal(chosen.parameters, table.parameters[1:])

    def test_select_orders_and_empties(self, table):
        assert table.select([1, 0]).models == ("bart", "gpt2")
        assert table.select([]).loss.shape == (0, 3)
        assert table.select(np.array([], dtype=int)).loss.shape == (0, 3)

    def test_models_that_may_not_be_chosen_say_why_in_every_slice(self, table):
        assert table.ineligible == ("", "")
        barred = table.barring({"bart": "it is too large"}).barring({"bart": "it is slow", "other": "unknown"})
        assert barred.ineligible == ("", "it is too large; it is slow")
        np.testing.assert_array_equal(barred.eligible, [True, False])
        assert barred.up_to(200).select([1, 0]).ineligible == (barred.ineligible[1], "")

    def test_points_leave_out_the_pretrained_model(self, table):
        np.testing.assert_array_equal(table.points(), [2, 1])
        np.testing.assert_array_equal(table.up_to(0).points(), [0, 0])


class TestCurveTable:
    def test_columns_are_sorted(self):
        table = curve_table(["a", "b"], [400, 0], [[1, 2], [3, NAN]], parameters=[5, NAN], families=["f", ""])
        assert table.sizes.tolist() == [0, 400]
        np.testing.assert_array_equal(table.loss, [[2, 1], [NAN, 3]])
        np.testing.assert_array_equal(table.seeds, [[1, 1], [0, 1]])
        assert (table.task, table.families) == ("task", ("f", ""))

    def test_no_models(self):
        assert curve_table([], [0, 200], []).loss.shape == (0, 2)

    def test_arrays_are_copied(self):
        loss, parameters = np.ones((1, 2)), np.ones(1)
        table = curve_table(["a"], [0, 200], loss, parameters=parameters)
        loss[:], parameters[:] = 2, 2
        np.testing.assert_array_equal(table.loss, [[1, 1]])
        np.testing.assert_array_equal(table.parameters, [1])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"loss": [[1, 2], [3, 4], [5, 6]]}, r"shape \(3, 2\)"),
            ({"loss": [[1, 2, 3], [4, 5, 6]], "models": ["a", "b", "c"]}, r"shape \(2, 3\)"),
            ({"loss": [[1, 2], [3]]}, "arrays of numbers"),
            ({"loss": [["x", 2], [3, 4]]}, "arrays of numbers"),
            ({"loss": [[-1, 2], [3, 4]]}, "loss of a at 0 examples is -1.0"),
            ({"loss": [[1, 2], [3, 0]]}, "loss of b at 200 examples is 0.0"),
            ({"loss": [[1, float("inf")], [3, 4]]}, "loss of a at 200 examples is inf"),
            ({"loss": [[1, 2], [1e31, 4]]}, "loss of b at 0 examples is 1e"),
            ({"loss": [[1, 2], [1e-31, 4]]}, "loss of b at 0 examples is 1e-31; losses are positive numbers from"),
            ({"models": ["a", " a"]}, "model a is given more than once"),
            ({"models": ["a", " "]}, "model 1 has no name"),
            ({"sizes": [200, 2e2]}, "size 200 is given more than once"),
            ({"sizes": [0, 0.5]}, "whole numbers"),
            ({"sizes": [0, -1]}, "whole numbers"),
            ({"sizes": [0, NAN]}, "whole numbers"),
            ({"sizes": [0, float("inf")]}, "whole numbers"),
            ({"sizes": [0, 10**16]}, "whole numbers"),
            ({"sizes": [0, 10**30]}, "whole numbers"),
            ({"sizes": ["0", "200"]}, "whole numbers"),
            ({"sizes": [[0, 200]]}, "whole numbers"),
            ({"sizes": [[0], [200, 3]]}, "arrays of numbers"),
            ({"parameters": [1]}, "one entry for each of the 2 models"),
            ({"parameters": [1, -1]}, "b has -1.0 parameters"),
            ({"parameters": [float("inf"), 1]}, "a has inf parameters"),
            ({"parameters": ["many", 1]}, "arrays of numbers"),
            ({"families": ["f"]}, "one entry for each of the 2 models"),
        ],
        ids=str,
    )
    def test_refuses(self, change, message):
        arguments = {"models": ["a", "b"], "sizes": [0, 200], "loss": [[1, 2], [3, 4]]} | change
        with pytest.raises(InputError, match=message):
            curve_table(**arguments)
