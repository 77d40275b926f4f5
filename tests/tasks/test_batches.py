"""Batches: every example once an epoch, few shapes, an order that is a pure function of seed and step."""

import itertools
import threading
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensjax.tasks.batches import (
    BatchPlan,
    choose_lengths,
    choose_packing,
    collate,
    evaluation_batches,
    example_lengths,
    fits,
    training_batches,
)
from lensjax.tasks.packing import PackedShape, collate_packed, fill_rows
from lensjax.tasks.tokens import Tokens


def make_tokens(prompts, targets):
    """Examples of the given lengths whose ids count up from 1."""
    lengths = np.array(prompts) + np.array(targets)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    none = np.zeros(len(prompts), bool)
    learned = np.concatenate([np.arange(p + t) >= p for p, t in zip(prompts, targets, strict=True)])
    ids = np.arange(1, starts[-1] + 1, dtype=np.int32)
    return Tokens(ids, starts, np.array(prompts, np.int32), none, none, learned, ~none)


lengths_of_examples = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=80)


@given(lengths_of_examples, st.integers(1, 16), st.integers(0, 5), st.booleans())
def test_every_epoch_holds_every_example_once_in_batches_that_fit(sizes, batch_size, seed, encoder_decoder):
    tokens = make_tokens(*zip(*sizes, strict=True))
    needed = example_lengths(tokens, encoder_decoder)
    short, long = choose_lengths([needed])
    assert fits(needed, long).all()
    plan = BatchPlan(fits(needed, short), batch_size, seed)
    for epoch in range(2):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        batches = [plan[step] for step in steps]
        seen = np.concatenate([examples for _, examples in batches])
        assert sorted(seen) == list(range(len(sizes)))
        assert sum(len(examples) < batch_size for _, examples in batches) <= 1
        assert all(fits(needed[examples], short if is_short else long).all() for is_short, examples in batches)


def test_order_depends_on_seed_and_epoch_and_on_nothing_else():
    short = np.arange(100) % 3 > 0
    plan, same, other = BatchPlan(short, 8, 1), BatchPlan(short, 8, 1), BatchPlan(short, 8, 2)
    steps = plan.steps_per_epoch
    late = same[steps + 2]  # asked for before anything else
    assert [list(plan[step][1]) for step in range(steps)] == [list(same[step][1]) for step in range(steps)]
    assert list(plan[steps + 2][1]) == list(late[1])
    assert list(plan[0][1]) != list(other[0][1])
    assert list(plan[0][1]) != list(plan[steps][1])


def test_order_is_the_same_on_every_machine():
    plan = BatchPlan(np.ones(10, bool), 4, 0)
    assert [list(plan[step][1]) for step in range(3)] == [[0, 4, 8, 1], [7, 9], [5, 3, 6, 2]]


def test_two_shapes_take_fewer_tokens_than_one():
    needed = np.array([[10]] * 90 + [[100]] * 10)
    assert choose_lengths([needed]) == ((16,), (104,))
    assert choose_lengths([np.full((50, 1), 33)]) == ((40,), (40,))
    assert choose_lengths([np.array([[10, 3]] * 90 + [[300, 90]] * 10)]) == ((16, 8), (320, 96))


def test_rows_of_a_decoder_have_labels_on_the_target_alone():
    made = collate(make_tokens([2, 1], [3, 1]), np.array([1, 0]), [0, 1, 2], (8,), padding=0)
    np.testing.assert_array_equal(
        made["input_ids"], [[6, 7, 0, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(made["labels"][:2, :5], [[-100, 7, -100, -100, -100], [-100, -100, 3, 4, 5]])
    assert (made["labels"][2] == -100).all()


def test_rows_of_an_encoder_decoder_have_prompt_and_target_apart():
    made = collate(make_tokens([2, 1], [3, 1]), np.array([0, 1]), [1, 0], (4, 3), padding=9)
    np.testing.assert_array_equal(made["input_ids"], [[6, 9, 9, 9], [1, 2, 9, 9]])
    np.testing.assert_array_equal(made["attention_mask"], [[1, 0, 0, 0], [1, 1, 0, 0]])
    np.testing.assert_array_equal(made["labels"], [[7, -100, -100], [3, 4, 5]])


@pytest.mark.parametrize("start", [0, 5])
def test_training_batches_are_those_of_the_plan_from_any_step_on(start):
    tokens = make_tokens(range(1, 21), [2] * 20)
    needed = example_lengths(tokens, False)
    lengths = choose_lengths([needed])
    plan = BatchPlan(fits(needed, lengths[0]), 4, 3)
    made = list(training_batches(tokens, plan, lengths, [1, 3], 0, range(start, 12)))
    assert len(made) == 12 - start
    for step, (shape, batch) in enumerate(made, start):
        short, examples = plan[step]
        assert shape == lengths[0 if short else 1]
        expected = collate(tokens, examples, [1, 3], lengths[0 if short else 1], 0)
        assert all(np.array_equal(batch[key], expected[key]) for key in expected)


def test_the_thread_that_makes_batches_ends_with_them():
    tokens = make_tokens(range(1, 21), [2] * 20)
    needed = example_lengths(tokens, False)
    lengths = choose_lengths([needed])
    before = set(threading.enumerate())
    made = training_batches(tokens, BatchPlan(fits(needed, lengths[0]), 4, 3), lengths, [1, 3], 0, range(100))
    next(made)
    (thread,) = set(threading.enumerate()) - before
    del made
    thread.join(10)
    assert not thread.is_alive()


def test_evaluation_batches_keep_the_order():
    tokens = make_tokens([1] * 5, [1] * 5)
    first, second = evaluation_batches(tokens, (8,), 4, range(4), 0)
    assert list(first["input_ids"][:, 0]) == [1, 3, 5, 7]
    assert list(second["input_ids"][:, 0]) == [9, 0, 0, 0]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=40), st.integers(1, 40), st.integers(20, 30))
def test_rows_hold_every_example_once_or_do_not_fit(lengths, rows, length):
    lengths = np.array(lengths)
    held = fill_rows(lengths, rows, length)
    if held is None:
        assert lengths.sum() > rows * length / 2 or len(lengths) > rows  # first fit leaves no two rows half empty
    else:
        assert len(held) == rows
        assert sorted(itertools.chain(*held)) == list(range(len(lengths)))
        assert all(lengths[row].sum() <= length for row in held if row)
    assert fill_rows(lengths, len(lengths), length) is not None


def test_examples_of_a_packed_batch_are_those_of_rows_of_their_own():
    tokens = make_tokens([2, 1, 3, 4], [3, 1, 2, 5])
    tokens.learned[3] = False  # in the target of the first example, as a turn of a user
    examples, held = np.array([3, 0, 2]), [[0], [], [1, 2]]
    packed = collate_packed(tokens, examples, held, [2, 0, 1], 12, padding=9)
    alone = collate(tokens, examples, range(3), (12,), padding=9)
    for row, at, start, number in ((1, 0, 0, 1), (0, 1, 0, 1), (0, 2, 5, 2)):
        size = int(example_lengths(tokens, False)[examples[at], 0])
        for name in ("input_ids", "labels"):
            np.testing.assert_array_equal(packed[name][row, start : start + size], alone[name][at, :size])
        assert (packed["segment_ids"][row, start : start + size] == number).all()
    assert (packed["segment_ids"] > 0).sum() == 9 + 5 + 5
    assert (packed["input_ids"][packed["segment_ids"] == 0] == 9).all()
    assert (packed["labels"] != -100).sum() == (alone["labels"] != -100).sum() == 3 + 2 + 5 - 1


def step_tokens(shape):
    return shape.rows * shape.length if isinstance(shape, PackedShape) else 32 * shape[0]


def test_a_shape_is_chosen_where_it_saves_tokens():
    rng = np.random.default_rng(0)
    long_tailed = np.minimum(rng.geometric(0.05, (500, 1)) + 5, 120)
    lengths = choose_lengths([long_tailed])
    for multiple in (1, 8):
        chosen = choose_packing(long_tailed, lengths, 32, multiple, step_tokens)
        for packed, (plain,) in zip(chosen, lengths, strict=True):
            assert plain <= packed.length <= lengths[1][0]
            assert packed.rows % multiple == 0
            assert packed.rows * packed.length < 0.8 * 32 * plain
    assert choose_packing(np.full((50, 1), 30), ((32,), (32,)), 8, 1, step_tokens) == (None, None)
    assert choose_packing(long_tailed, lengths, 8, 8, step_tokens) == (None, None)  # every device has a row in any case


def test_rows_are_as_long_as_costs_least():
    def attentive(shape, positions):  # to `positions` as dear as all else
        return step_tokens(shape) * (1 + (shape.length if isinstance(shape, PackedShape) else shape[0]) / positions)

    needed, lengths = np.concatenate([np.full((480, 1), 20), np.full((32, 1), 250)]), ((32,), (256,))
    assert choose_packing(needed, lengths, 32, 1, step_tokens)[0] == PackedShape(11, 64)  # three in a row
    dear = choose_packing(needed, lengths, 32, 1, partial(attentive, positions=1))
    assert dear[0] is None  # whose rows, twice as long as one example needs, cost more than 32 of 32
    rng = np.random.default_rng(1)
    long_tailed = np.exp(rng.normal(3, 1, (500, 1))).clip(3, 1000).astype(int)
    lengths = choose_lengths([long_tailed])
    short, long = choose_packing(long_tailed, lengths, 32, 1, partial(attentive, positions=100))
    assert (short.length, long.length) == (lengths[0][0], lengths[1][0])
    assert choose_packing(long_tailed, lengths, 32, 1, lambda shape: 1 if shape in lengths else 2) == (None, None)


def test_batches_that_do_not_fit_are_not_packed():
    tokens = make_tokens(range(1, 21), [2] * 20)
    lengths = choose_lengths([example_lengths(tokens, False)])
    plan = BatchPlan(fits(example_lengths(tokens, False), lengths[0]), 4, 3)
    packing = (PackedShape(2, lengths[1][0]), [1]), (PackedShape(2, lengths[1][0]), [1])
    seen = set()
    for step, (shape, batch) in enumerate(training_batches(tokens, plan, lengths, [0, 1, 2, 3], 0, range(20), packing)):
        kind, examples = 0 if plan[step][0] else 1, plan[step][1]
        held = fill_rows(example_lengths(tokens, False)[examples, 0], 2, lengths[1][0])
        assert shape == (lengths[kind] if held is None else packing[kind][0])
        assert ("segment_ids" in batch, len(batch["labels"])) == ((False, 4) if held is None else (True, 1))
        seen.add(held is None)
    assert seen == {True, False}
