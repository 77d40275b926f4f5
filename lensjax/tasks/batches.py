"""Batches of examples of few shapes, in an order that is a pure function of seed and step.

An epoch is a permutation of the examples. Short examples, which fit the short shape, fill batches of their own; those
left over join the long examples, and the batches are shuffled. There is no state to lose: a run that resumes at step s,
on any number of devices, asks for batch s.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Int

from lensjax.models.losses import IGNORED
from lensjax.tasks.packing import PackedShape, collate_packed, fill_rows
from lensjax.tasks.task import permutation
from lensjax.tasks.tokens import Tokens

Packing = tuple[PackedShape | None, PackedShape | None]  # in place of the short and the long shape
Lengths = tuple[int, ...]  # (tokens of a row,) of decoders, (tokens of a prompt, of a target) of encoder–decoders

_EPOCHS = 1000  # number of the first stream of random bits for epochs
_TRIED = 64  # steps by which the rows of packed batches are chosen
PREFETCH = 8  # batches made ahead of the step that takes them


@dataclass(frozen=True)
class BatchPlan:
    """The examples in the batch of every step.

    Attributes:
      short: Whether each example fits the short shape.
      batch_size: Rows of a batch.
      seed: Of the permutations.
    """

    short: Bool[np.ndarray, " examples"]
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Batches that hold every example once."""
        short, rest = divmod(int(self.short.sum()), self.batch_size)
        return short + -(-(rest + int((~self.short).sum())) // self.batch_size)

    def __getitem__(self, step: int) -> tuple[bool, Int[np.ndarray, " rows"]]:
        """Whether a step's batch has the short shape, and its examples: `batch_size`, or fewer once an epoch."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return _epoch(self, epoch)[place]

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


@lru_cache(maxsize=4)
def _epoch(plan: BatchPlan, epoch: int) -> list[tuple[bool, Int[np.ndarray, " rows"]]]:
    order = permutation(plan.short.size, plan.seed, _EPOCHS + 2 * epoch)
    short, long = order[plan.short[order]], order[~plan.short[order]]
    whole = short.size - short.size % plan.batch_size
    batches = [(True, rows) for rows in np.split(short[:whole], max(whole // plan.batch_size, 1)) if rows.size]
    # Sorted by their place in the permutation, so that the short examples left over do not form a batch of their own.
    place = np.empty(order.size, np.int64)
    place[order] = np.arange(order.size)
    others = np.concatenate([short[whole:], long])
    others = others[np.argsort(place[others], kind="stable")]
    batches += [(False, others[at : at + plan.batch_size]) for at in range(0, others.size, plan.batch_size)]
    return [batches[i] for i in permutation(len(batches), plan.seed, _EPOCHS + 2 * epoch + 1)]


Shape = Lengths | PackedShape


def fields(shape: Shape) -> dict[str, int]:
    """Names and lengths of the arrays in a batch.

    Padding is at the end of rows, where no token of a decoder looks, so a decoder needs no attention mask.
    """
    if isinstance(shape, PackedShape):
        return dict.fromkeys(("input_ids", "labels", "segment_ids"), shape.length)
    lengths = shape
    if len(lengths) == 1:
        return {"input_ids": lengths[0], "labels": lengths[0]}
    return {"input_ids": lengths[0], "attention_mask": lengths[0], "labels": lengths[1]}


def example_lengths(tokens: Tokens, encoder_decoder: bool) -> Int[np.ndarray, "examples parts"]:
    """The lengths that each example needs, in the order of `Lengths`."""
    prompts, targets = tokens.prompt_lengths, tokens.target_lengths
    return np.stack([prompts, targets], axis=1) if encoder_decoder else (prompts + targets)[:, None]


def fits(needed: Int[np.ndarray, "examples parts"], lengths: Lengths) -> Bool[np.ndarray, " examples"]:
    """Whether a shape is long enough, for each example."""
    return np.all(needed <= np.asarray(lengths), axis=1)


def choose_lengths(needed: Sequence[Int[np.ndarray, "examples parts"]]) -> tuple[Lengths, Lengths]:
    """The short and the long shape with the least padding for all examples; both may be the same."""
    rows = np.concatenate(list(needed))
    long = _rounded(rows.max(axis=0))
    shares = (0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
    candidates = {_rounded(np.quantile(rows, share, axis=0, method="higher")) for share in shares}

    def padded(short: Lengths) -> float:
        share = float(fits(rows, short).mean())
        return share * sum(short) + (1 - share) * sum(long)

    return min((long, *sorted(candidates)), key=padded), long


def _rounded(lengths: Int[np.ndarray, " parts"]) -> Lengths:
    """Up to a multiple of 8 below 128, of 16 below 256, of 32 below 512, and so on."""
    steps = [max(8, 1 << (max(int(length), 1) - 1).bit_length() >> 4) for length in lengths]
    return tuple(-(-int(length) // step) * step for length, step in zip(lengths, steps, strict=True))


def choose_packing(
    needed: Int[np.ndarray, "examples 1"],
    lengths: tuple[Lengths, Lengths],
    batch_size: int,
    multiple: int,
    cost: Callable[[Shape], float],
) -> Packing:
    """The shapes that take the place of the short and the long shape of training batches.

    Of rows as long as the plain shape, twice as long, and so on up to the longest example, those that cost least are
    chosen: longer rows leave less padding, and attention to compute over more positions. There are rows for the batches
    of 64 steps with the given examples; a batch that does not fit is not packed.

    Args:
      needed: Lengths of examples, see `lensjax.tasks.batches.example_lengths`.
      lengths: The short and the long shape.
      batch_size: Examples of a step.
      multiple: What the number of rows is a multiple of: devices that they are split over, times parts of a step.
      cost: Of a step whose batch has a shape, such as its floating-point operations.

    Returns:
      Shapes; None where packing would not save tokens, or would cost more.
    """
    needed = np.resize(needed, (max(len(needed), 4 * batch_size), 1))
    plan, (short, long) = BatchPlan(fits(needed, lengths[0]), batch_size, seed=0), lengths
    batches: tuple[list[Int[np.ndarray, " examples"]], ...] = ([], [])
    for step in range(_TRIED):
        is_short, examples = plan[step]
        if len(examples) == batch_size:  # a few examples left over do not make a shape
            batches[0 if is_short or short == long else 1].append(needed[examples, 0])

    def cheapest(used: Sequence[Int[np.ndarray, " examples"]], plain: Lengths) -> PackedShape | None:
        doubled = [plain[0] << power for power in range((long[0] // plain[0]).bit_length())]
        shapes = []
        for length in sorted({*doubled, long[0]}):
            filled = [fill_rows(one, batch_size, length) for one in used]
            most = max((sum(map(bool, held)) for held in filled if held is not None), default=0)
            shape = PackedShape(-(-most // multiple) * multiple, length)
            if 0 < shape.rows * length < batch_size * plain[0]:
                shapes.append(shape)
        best = min(shapes, key=cost, default=None)
        return best if best is not None and cost(best) < cost(plain) else None

    packed = cheapest(batches[0], short)
    return packed, packed if short == long else cheapest(batches[1], long)


def collate(
    tokens: Tokens, examples: Sequence[int] | np.ndarray, rows: Sequence[int], lengths: Lengths, padding: int
) -> dict[str, Int[np.ndarray, "rows time"]]:
    """Some rows of a batch: row r is example `examples[r]`, and empty from len(examples) on.

    Prompts and padding have the label −100. An empty row of an encoder–decoder attends to one token of padding.

    Args:
      tokens: The examples.
      examples: Numbers of the examples in the batch.
      rows: The rows to make.
      lengths: Shape of the batch.
      padding: Token that fills rows up.
    """
    made = {name: np.zeros((len(rows), length), np.int32) for name, length in fields(lengths).items()}
    made["input_ids"] += np.int32(padding)
    made["labels"] += np.int32(IGNORED)
    mask = made.get("attention_mask")
    if mask is not None:
        mask[:, 0] = 1
    for at, row in enumerate(rows):
        if row >= len(examples):
            continue
        prompt, target = tokens.prompt(int(examples[row])), tokens.target(int(examples[row]))
        ids = prompt if len(lengths) == 2 else np.concatenate([prompt, target])
        start = 0 if len(lengths) == 2 else prompt.size
        made["input_ids"][at, : ids.size] = ids
        if mask is not None:
            mask[at, : ids.size] = 1
        made["labels"][at, start : start + target.size] = np.where(
            tokens.learned_of(int(examples[row])), target, IGNORED
        )
    return made


Rows = Mapping[str, Int[np.ndarray, "rows time"]]


def training_batches(
    tokens: Tokens,
    plan: BatchPlan,
    lengths: tuple[Lengths, Lengths],
    rows: Sequence[int],
    padding: int,
    steps: range,
    packing: tuple[tuple[PackedShape, Sequence[int]] | None, ...] = (None, None),
) -> Iterator[tuple[Shape, Rows]]:
    """Shape, and some rows, of the batch of every step, which a thread makes up to `PREFETCH` steps ahead.

    Args:
      tokens: The examples.
      plan: Which examples are in which batch.
      lengths: The short and the long shape.
      rows: The rows that this process's devices hold.
      padding: Token that fills rows up.
      steps: The steps.
      packing: Shapes that take the place of the short and the long one, each with the rows that this process's devices
        hold; None for those that are not packed.
    """
    used = example_lengths(tokens, encoder_decoder=False)[:, 0]

    def make(step: int) -> tuple[Shape, Rows]:
        short, examples = plan[step]
        kind = 0 if short else 1
        packed = packing[kind]
        if packed is not None:
            shape, local = packed
            held = fill_rows(used[examples], shape.rows, shape.length)
            if held is not None:
                return shape, collate_packed(tokens, examples, held, local, shape.length, padding)
        return lengths[kind], collate(tokens, examples, rows, lengths[kind], padding)

    pool = ThreadPoolExecutor(1)  # its thread ends once nobody holds this generator
    coming: deque[Future[tuple[Shape, Rows]]] = deque()
    for step in steps:
        coming.append(pool.submit(make, step))
        if len(coming) > PREFETCH:
            yield coming.popleft().result()
    while coming:
        yield coming.popleft().result()


def evaluation_batches(
    tokens: Tokens, lengths: Lengths, batch_size: int, rows: Sequence[int], padding: int
) -> Iterator[dict[str, Int[np.ndarray, "rows time"]]]:
    """Some rows of the batches that hold every example once, in order."""
    for at in range(0, len(tokens), batch_size):
        examples = np.arange(at, min(at + batch_size, len(tokens)))
        yield collate(tokens, examples, rows, lengths, padding)
