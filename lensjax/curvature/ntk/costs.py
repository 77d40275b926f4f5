"""What it takes to contract the gradients of one matrix, by each way that there is."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lensjax.curvature.ntk.panels import computed_share

Output = Literal["full", "trace", "diagonal"]
Way = Literal["form", "gram"]
TAIL = {"trace": "", "diagonal": "k", "full": "kl"}  # axes of a kernel after those of the examples

_BALANCE = 8  # operations in the time that a byte of an intermediate result takes
ALONE = 2  # times as long as beside others a gradient of one example takes
WRITTEN = 2 * 4 * _BALANCE  # operations in the time that it takes to write a number, and to read it again
PANEL, PANELS = 32, 8  # examples at least, of a panel of a symmetric product, and such panels at most
ROWS = 128  # at least, of a panel of products of rows


@dataclass(frozen=True)
class Sides:
    """A factor of one example's gradients: sums over rows r of left[r] ⊗ right[r].

    Attributes:
      rows: Number of rows.
      looks_up: Whether the left side is one-hot.
      outputs_left: Whether the left side is different for each output, and not the right one.
    """

    rows: int
    looks_up: bool
    outputs_left: bool


@dataclass(frozen=True)
class Work:
    """What one way takes.

    Attributes:
      flops: Of its products of matrices, 2 for each multiply–add; of a symmetric kernel what is computed.
      moved: Bytes of intermediate results that are written, and read again.
    """

    flops: int
    moved: int

    @property
    def cost(self) -> int:
        """Operations that take as long as all of it: what the ways are compared by."""
        return self.flops + _BALANCE * self.moved


@dataclass(frozen=True)
class Ways:
    """Both ways to the kernel of one matrix, of all its layers.

    "form" forms the examples' gradients, a tile of the matrix at a time, and multiplies them with each other; "gram"
    forms none and takes (left_r · left_s)(right_r · right_s) for every pair of rows of two examples.
    """

    form: Work
    gram: Work

    @property
    def chosen(self) -> Way:
        """The way that should take less time."""
        return "gram" if self.gram.cost < self.form.cost else "form"


def ways(
    uses: Sequence[Sides],
    examples: tuple[int, int],
    matrix: tuple[int, int],
    outputs: int,
    output: Output,
    *,
    itemsize: int = 4,
    layers: int = 1,
) -> Ways:
    """What both ways take.

    Args:
      uses: Every use of the matrix.
      examples: N and M; M is 0 for a kernel of N examples with themselves.
      matrix: Length of its two axes.
      outputs: Of the function.
      output: Which of their products are wanted.
      itemsize: Bytes of a number in sums.
      layers: Matrices, where they are stacked.
    """
    form, gram = _form(uses, examples, matrix, outputs, output), _gram(uses, examples, matrix, outputs, output)
    made = [Work(int(layers * 2 * products), layers * 2 * itemsize * numbers) for products, numbers in (form, gram)]
    return Ways(*made)


def _form(
    uses: Sequence[Sides], examples: tuple[int, int], matrix: tuple[int, int], outputs: int, output: Output
) -> tuple[float, int]:
    """Multiply–adds, and numbers of gradients."""
    n, m = examples
    first, second = matrix
    if all(use.looks_up for use in uses):  # other rows of the table are 0 for all examples
        first = min(first, (n + m) * sum(use.rows for use in uses))
    formed = first * second * (n + m) * outputs
    rows = sum(use.rows for use in uses if not use.looks_up)
    pairs = outputs**2 if output == "full" else outputs
    products = n * m if m else computed_share(n, PANEL, PANELS) * n * n
    return formed * rows + products * pairs * first * second, formed


def _gram(
    uses: Sequence[Sides], examples: tuple[int, int], matrix: tuple[int, int], outputs: int, output: Output
) -> tuple[float, int]:
    """Multiply–adds, and numbers of products of rows."""
    (n, m), (first, second) = examples, matrix

    def side(has: tuple[bool, bool]) -> tuple[int, int]:
        """Products of outputs, and how many are kept apart."""
        products = outputs ** (sum(has) if output == "full" else min(sum(has), 1))
        return products, 1 if output == "trace" and all(has) else products

    total, numbers = 0.0, 0.0
    for one, other in itertools.product(uses, uses) if m else itertools.combinations_with_replacement(uses, 2):
        half = computed_share(n, -(-ROWS // max(one.rows, 1))) if not m and one is other else 1
        pairs = n * (m or n) * one.rows * other.rows * half
        left, apart = side((one.outputs_left, other.outputs_left))
        right, besides = side((not one.outputs_left, not other.outputs_left))
        total += pairs * (left * (1 if one.looks_up or other.looks_up else first) + right * second)
        numbers += pairs * (apart + besides)
    return total, int(numbers)
