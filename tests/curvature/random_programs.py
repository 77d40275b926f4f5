"""Random programs of parameters and an example, made of everything that a walk through a program has to know.

A program is a list of steps. Each takes earlier activations, all of shape [TIME, WIDTH], and gives another one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

TIME, WIDTH, ROWS, DEPTH = 3, 4, 41, 2
SHAPES = {
    "w": (WIDTH, WIDTH),
    "u": (WIDTH, WIDTH),
    "b": (WIDTH,),
    "table": (ROWS, WIDTH),
    "deep": (DEPTH, WIDTH, WIDTH),
    "shift": (DEPTH, WIDTH),
    "window": (2, WIDTH, WIDTH),
    "scalar": (),
    "none": (0, WIDTH),
}
Params, Example = dict[str, Any], dict[str, Any]
Step = Callable[[Params, Example, Any, Any], Any]


@jax.custom_jvp
def tripled(x, w):
    """A product whose derivative is not that of a product."""
    return x @ w


tripled.defjvp(lambda at, along: (tripled(*at), 3 * (along[0] @ at[1] + at[0] @ along[1])))


@jax.custom_jvp
def looked_up(table, ids):
    return table[ids]


looked_up.defjvp(lambda at, along: (looked_up(*at), 2 * along[0][at[1]]))


@jax.custom_jvp
def stable(x):
    return jnp.log1p(jnp.exp(x))


stable.defjvp(lambda at, along: (stable(*at), along[0] * jax.nn.sigmoid(at[0])))


@jax.custom_jvp
def straight_through(x):
    return jnp.round(x)


straight_through.defjvp(lambda at, along: (jnp.round(at[0]), along[0]))


@jax.custom_vjp
def halved(x, w):
    """A product whose gradient is half of a product's."""
    return x @ w


halved.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, d: (0.5 * d @ kept[1].T, 0.5 * kept[0].T @ d))


# What stands for a weight [WIDTH, WIDTH].
WEIGHTS: dict[str, Callable[[Params], Any]] = {
    "w": lambda p: p["w"],
    "u": lambda p: p["u"],
    "w.T": lambda p: p["w"].T,
    "first of deep": lambda p: p["deep"][0],
    "stopped": lambda p: jax.lax.stop_gradient(p["w"]),
    "scaled": lambda p: p["scalar"] * p["u"],
    "in single precision": lambda p: p["w"].astype(jnp.float32),
    "whole numbers": lambda p: (3 * p["w"]).astype(jnp.int32).astype(p["w"].dtype),
    "reshaped": lambda p: p["u"].reshape(2, 2, WIDTH).reshape(WIDTH, WIDTH),
    "turned": lambda p: jnp.moveaxis(p["u"].reshape(2, 2, WIDTH), 1, 0).reshape(WIDTH, WIDTH),
    "reversed": lambda p: p["w"][::-1],
    "outer": lambda p: p["b"][:, None] * p["table"][0],
    "product of two": lambda p: p["w"] @ p["u"],
    "straight-through": lambda p: straight_through(2 * p["w"]),
    "part of table": lambda p: p["table"][1 : WIDTH + 1],
    "beside none": lambda p: jnp.concatenate([p["none"], p["w"]]),
}


def _complex(p: Params, x: Example, h: Any, w: Any) -> Any:
    return ((h + 1j * x["x"]) @ w).imag ** 2 / 4


def _spectrum(p: Params, x: Example, h: Any, w: Any) -> Any:
    return jnp.abs(jnp.fft.rfft(h, 2 * WIDTH - 2, axis=1) @ w + 0.5)


def _layers(p: Params, x: Example, h: Any, w: Any) -> Any:
    def layer(h: Any, own: Any) -> tuple[Any, Any]:
        return jnp.tanh(h @ own[0] + own[1]), h.sum()

    h, sums = jax.lax.scan(layer, h, (p["deep"], p["shift"]))
    return h + sums[-1] * 0.1


def _over_time(p: Params, x: Example, h: Any, w: Any) -> Any:
    """One weight, held by the loop."""

    def step(state: Any, row: Any) -> tuple[Any, Any]:
        state = jnp.tanh(state @ w + row)
        return state, state

    return jax.lax.scan(step, jnp.zeros(WIDTH, h.dtype), h)[1]


def _carried(p: Params, x: Example, h: Any, w: Any) -> Any:
    """A weight that a loop changes."""
    return jax.lax.scan(lambda c, _: ((c[0] @ c[1], 0.5 * c[1]), None), (h, w.astype(h.dtype)), None, length=2)[0][0]


def _loop(p: Params, x: Example, h: Any, w: Any) -> Any:
    def body(c: Any) -> Any:
        return c[0] + 1, jnp.sin(c[1] @ w).astype(h.dtype)

    return jax.lax.while_loop(lambda c: c[0] < 2, body, (0, h))[1]


def _branches(p: Params, x: Example, h: Any, w: Any) -> Any:
    branches = [lambda h: h @ w.astype(h.dtype), lambda h: h * h, lambda h: h + p["b"]]
    return jax.lax.switch(x["ids"][0] % 3, branches, h)


def _heads(p: Params, x: Example, h: Any, w: Any) -> Any:
    split = h.reshape(TIME, 2, WIDTH // 2)
    return jnp.einsum("thd,hde->the", split, w.reshape(2, 2, 4)[:, :, :2]).reshape(TIME, WIDTH)


def _attention(p: Params, x: Example, h: Any, w: Any) -> Any:
    return jax.nn.softmax(h @ w @ h.T) @ h


def _convolution(p: Params, x: Example, h: Any, w: Any) -> Any:
    return jax.lax.conv_general_dilated(h[None], p["window"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))[0]


def _norm(p: Params, x: Example, h: Any, w: Any) -> Any:
    moved = h - h.mean(-1, keepdims=True)
    return moved * jax.lax.rsqrt((moved**2).mean(-1, keepdims=True) + 0.1) * p["b"]


def _next_token(p: Params, x: Example, h: Any, w: Any) -> Any:
    """Tied embeddings of one token, the kernel of which is computed in many tiles."""
    z = h[-1:] + p["table"][x["ids"][-1:] % ROWS]
    return h + jax.nn.softmax(z @ p["table"].T) @ p["table"]


def _lookup(mode: str | None, **how: Any) -> Step:
    return lambda p, x, h, w: h + jnp.take(p["table"], x["ids"], axis=0, mode=mode, **how)


# Steps of (parameters, example, an activation, a weight).
STEPS: dict[str, Step] = {
    "product": lambda p, x, h, w: h @ w,
    "transposed product": lambda p, x, h, w: jnp.einsum("td,ed->te", h, w),
    "sine of product": lambda p, x, h, w: jnp.sin(h @ w),
    "product with examples": lambda p, x, h, w: h + x["x"] @ w,
    "whole numbers times a weight": lambda p, x, h, w: h + x["counts"] @ w,
    "bytes times a weight": lambda p, x, h, w: h + x["counts"].astype(jnp.uint8) @ w,
    "one-hot": lambda p, x, h, w: h + jax.nn.one_hot(x["ids"], WIDTH) @ w,
    "quadratic": lambda p, x, h, w: h @ w @ w.T,
    "weight times itself": lambda p, x, h, w: h + (w * w).sum(),
    "bias": lambda p, x, h, w: h + p["b"],
    "gain": lambda p, x, h, w: h * p["b"] + p["scalar"],
    "bias as a product": lambda p, x, h, w: h + jnp.ones((TIME, 1)) @ p["b"][None],
    "lookup": lambda p, x, h, w: h + p["table"][x["ids"]],
    "lookup, filled": _lookup("fill", fill_value=0),
    "lookup, filled with numbers": _lookup("fill", fill_value=2.5),
    "lookup, clipped": _lookup("clip"),
    "lookup, wrapped": _lookup("wrap"),
    "lookup by a rule": lambda p, x, h, w: h + looked_up(p["table"], jnp.minimum(x["ids"], ROWS - 1)),
    "lookup by the weight's rows": lambda p, x, h, w: h * w[x["ids"]],
    "lookup of columns": lambda p, x, h, w: h + p["table"][:TIME, x["counts"][0]],
    "tied": lambda p, x, h, w: jax.nn.softmax((h + p["table"][x["ids"] % ROWS]) @ p["table"].T) @ p["table"],
    "next token": _next_token,
    "one row": lambda p, x, h, w: h + jax.lax.dynamic_index_in_dim(p["table"], x["ids"][0], keepdims=False),
    "scatter": lambda p, x, h, w: h + p["table"].at[x["ids"]].add(h)[:TIME],
    "layers": _layers,
    "layers, kept": lambda p, x, h, w: jax.checkpoint(partial(_layers, p, x))(h, None),
    "over time": _over_time,
    "carried weight": _carried,
    "while": _loop,
    "branches": _branches,
    "branches of an activation": lambda p, x, h, w: jax.lax.cond(h[0, 0] > 0, lambda: jnp.sin(h), lambda: h @ p["w"]),
    "heads": _heads,
    "attention": _attention,
    "convolution": _convolution,
    "norm": _norm,
    "complex": _complex,
    "spectrum": _spectrum,
    "tripled product": lambda p, x, h, w: jnp.sin(tripled(h, w.astype(h.dtype))),
    "halved product": lambda p, x, h, w: jnp.sin(halved(h, w.astype(h.dtype))),
    "stable": lambda p, x, h, w: stable(h),
    "straight-through": lambda p, x, h, w: straight_through(3 * h) * h,
    "checkpoint": lambda p, x, h, w: jax.checkpoint(lambda h, w: jnp.tanh(h @ w))(h, w),
    "jit": lambda p, x, h, w: jax.jit(lambda h, w: jnp.cos(h) @ w)(h, w),
    "vmap": lambda p, x, h, w: jax.vmap(lambda row: jnp.tanh(w @ row))(h),
    "weights of examples": lambda p, x, h, w: jax.vmap(lambda row, s: row @ (s * w))(h, x["x"][:, 0]),
    "sort": lambda p, x, h, w: jnp.sort(h, axis=0),
    "cumulated": lambda p, x, h, w: jnp.cumsum(h, axis=0),
    "largest": lambda p, x, h, w: jax.lax.top_k(h, 2)[0].repeat(2, axis=1),
    "relu": lambda p, x, h, w: jax.nn.relu(h),
    "absolute": lambda p, x, h, w: jnp.abs(h) * h,
    "exponential": lambda p, x, h, w: jnp.exp(-(h**2)),
    "quotient": lambda p, x, h, w: h / (1 + h**2),
    "chosen": lambda p, x, h, w: jnp.where(x["x"] > 0, h, h * h),
    "rounded": lambda p, x, h, w: h * jnp.floor(h),
    "single precision": lambda p, x, h, w: h.astype(jnp.float32).astype(h.dtype),
    "padded": lambda p, x, h, w: jnp.pad(h, ((1, 0), (0, 0)))[:-1],
    "stopped": lambda p, x, h, w: h * jax.lax.stop_gradient(h),
    "triangular": lambda p, x, h, w: jax.scipy.linalg.solve_triangular(jnp.eye(3) + h @ h.T / 8, h, lower=True),
}  # fmt: skip
FORWARD_ONLY, BACKWARD_ONLY = {"while"}, {"halved product"}
# JAX promises nothing of lookups beyond a table without a mode. Their forward and backward derivatives differ.
UNDEFINED = {"lookup", "lookup by the weight's rows", "one row", "scatter"}
OFTEN = ("tied", "next token", "next token", "next token")  # what went wrong before
SINGLE = {"single precision", "in single precision"}

ENDS: dict[str, Callable[[list[Any]], Any]] = {
    "sum": lambda made: jnp.sin(made[-1]).sum(),
    "vector": lambda made: made[-1].sum(axis=0),
    "matrix": lambda made: made[-1][:2, :2] + made[0][:2, :2],
    "several": lambda made: {"a": made[-1].mean(), "b": (made[0] * made[-1]).sum(axis=1)[:2]},
}


class _Watched(dict):
    """Parameters that note which of them are used."""

    def __init__(self, all_: Params) -> None:
        super().__init__(all_)
        self.used: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.used.add(name)
        return super().__getitem__(name)


@dataclass(frozen=True)
class Program:
    """A function f(params, example), with some parameters and examples.

    Attributes:
      steps: Names of a step and of a weight, and which of the activations, counted from the last, it is applied to.
      end: The name of what is made of the activations.
      seed: Of all numbers.
    """

    steps: tuple[tuple[str, str, int], ...]
    end: str
    seed: int

    def __call__(self, params: Params, example: Example) -> Any:
        made = [example["x"]]
        for step, weight, back in self.steps:
            made.append(STEPS[step](params, example, made[-1 - back % len(made)], WEIGHTS[weight](params)))
        return ENDS[self.end](made)

    @property
    def names(self) -> set[str]:
        return {name for step, weight, _ in self.steps for name in (step, weight)}

    def params(self) -> Params:
        """Those that the program uses, and one that it does not."""
        rng = np.random.default_rng(self.seed)
        every = _Watched({name: jnp.asarray(0.6 * rng.normal(size=shape)) for name, shape in SHAPES.items()})
        jax.eval_shape(lambda x: self(every, x), self.example())
        return {name: dict.__getitem__(every, name) for name in sorted(every.used | {"b"})}

    def examples(self, count: int, more: int = 0) -> Example:
        """Some ids are beyond the table, and below 0."""
        rng = np.random.default_rng([self.seed, more])
        return {
            "x": jnp.asarray(rng.normal(size=(count, TIME, WIDTH))),
            "ids": jnp.asarray(rng.integers(-1, ROWS + 2, (count, TIME))),
            "counts": jnp.asarray(rng.integers(0, 4, (count, TIME, WIDTH))),
        }

    def example(self) -> Example:
        """One of them."""
        return {name: x[0] for name, x in self.examples(1).items()}


def programs(without: set[str], most: int) -> st.SearchStrategy[Program]:
    """Programs of up to `most` steps."""
    names = [name for name in (*STEPS, *OFTEN) if name not in without]
    step = st.tuples(st.sampled_from(names), st.sampled_from(list(WEIGHTS)))
    steps = st.lists(st.tuples(step, st.integers(0, 3)).map(lambda s: (*s[0], s[1])), min_size=1, max_size=most)
    return st.builds(Program, steps.map(tuple), st.sampled_from(list(ENDS)), st.integers(0, 2**16))
