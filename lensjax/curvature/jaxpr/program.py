"""Functions of parameters and a batch as traced programs, kept so that nothing is traced or compiled twice."""

from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun
from jaxtyping import Array

from lensjax.core.errors import InputError
from lensjax.core.pytrees import PyTree
from lensjax.curvature.jaxpr.linear_uses import LinearUses, find_uses
from lensjax.curvature.jaxpr.mapped_rules import check_mapped_rules
from lensjax.curvature.jaxpr.walker import aval

Function = Callable[[PyTree, PyTree], PyTree]  # of parameters and of a batch or an example
_ARRAY = jax.tree.structure(0)


@dataclass(frozen=True, eq=False)
class Program:
    """A traced function, called with the arrays that it captured and then its arguments.

    Captured arrays are arguments, so that compiled code does not hold them: frozen parameters, say, beside adapters.

    Attributes:
      jaxpr: Of the leaves of the arguments: parameters, and then a batch.
      structure: Of the function's value.
      parameters: Number of leaves of the parameters.
    """

    jaxpr: Jaxpr
    structure: jax.tree_util.PyTreeDef
    parameters: int = 0

    def __call__(self, captured: PyTree, *args: PyTree) -> PyTree:
        flat = jaxpr_as_fun(ClosedJaxpr(self.jaxpr, captured))(*jax.tree.leaves(args))
        return jax.tree.unflatten(self.structure, flat)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the leaves of the function's value."""
        return tuple(aval(atom).shape for atom in self.jaxpr.outvars)

    @cached_property
    def alone(self) -> "Program":
        """The program whose value is the one array that this one gives, out of its list or dict."""
        return self if self.structure == _ARRAY else Program(self.jaxpr, _ARRAY, self.parameters)

    @cached_property
    def joined(self) -> "Program":
        """The program whose value is one vector: all that this one gives, flattened in the order of its leaves."""

        def call(captured: list[Array], *flat: Array) -> Array:
            values = jaxpr_as_fun(ClosedJaxpr(self.jaxpr, captured))(*flat)
            return jnp.concatenate([jnp.ravel(value) for value in values])

        shapes = [[var.aval for var in some] for some in (self.jaxpr.constvars, self.jaxpr.invars)]
        made = jax.make_jaxpr(call)(shapes[0], *shapes[1])
        if made.consts:
            raise InputError("The function gives several arrays beside constants of its own; join them in one array.")
        count = len(shapes[0])
        jaxpr = made.jaxpr.replace(constvars=made.jaxpr.invars[:count], invars=made.jaxpr.invars[count:])
        return Program(jaxpr, _ARRAY, self.parameters)

    @cached_property
    def uses(self) -> LinearUses:
        """Where the program multiplies by its parameters."""
        return find_uses(self.jaxpr, self.parameters)


_programs: WeakKeyDictionary[Function, dict[Hashable, tuple[Program, PyTree]]] = WeakKeyDictionary()


def traced_program(
    f: Function, params: PyTree, batch: PyTree, ranks: Collection[int] | None = None
) -> tuple[Program, PyTree]:
    """The program of f(params, batch), and the arrays that f captured.

    A function traced before is not traced again while the abstract values of its arguments (shapes, types and whether
    types are weak) and all settings that JAX's own tracing depends on are the same; so other parameters and batches
    compile nothing.

    Args:
      f: (params, batch) → pytree of floating-point arrays. It is known by its identity, so keep hold of it: a bound
        method is a new object wherever it is named.
      params, batch: Arrays, or `jax.ShapeDtypeStruct`s.
      ranks: Numbers of axes that the value, one array, may have; any pytree of arrays where not given.

    Raises:
      InputError: the value is not floating-point, or has another number of axes; or f has a custom_jvp that JAX
        differentiates wrongly, see `lensjax.curvature.jaxpr.mapped_rules`.
    """
    leaves, structure = jax.tree.flatten((params, batch))
    key = (structure, tuple(map(jax.typeof, leaves)), _tracing_context())
    try:
        known = _programs.setdefault(f, {})
    except TypeError:  # neither hashable nor weakly referable
        known = {}
    if key not in known:
        made = _trace(f, params, batch)
        if any(isinstance(x, jax.core.Tracer) for x in made[1]):  # which do not outlive the trace that they belong to
            known = {}
        known[key] = made
    program, captured = known[key]
    given = [len(shape) for shape in program.shapes]
    if ranks is not None and (len(given) != 1 or given[0] not in ranks):
        wanted = " or ".join(_RANKS[rank] for rank in sorted(ranks))
        raise InputError(f"The function gives shapes {', '.join(map(str, program.shapes))}; {wanted} is needed.")
    return program if ranks is None else program.alone, captured


_RANKS = ("a scalar", "one loss for each example")


def _trace(f: Function, params: PyTree, batch: PyTree) -> tuple[Program, PyTree]:
    # A new function each time, of which JAX has kept no jaxpr that may have captured another trace's arrays.
    try:
        closed, out = jax.make_jaxpr(lambda *args: f(*args), return_shape=True)(params, batch)
    except OverflowError as error:
        if "out of bounds for" not in str(error):
            raise
        raise InputError(
            f"{error}: JAX counts ids from the end of a table, which has more rows than their type counts; cast them "
            "to int32."
        ) from error
    values, structure = jax.tree.flatten(out)
    if not all(jnp.issubdtype(value.dtype, jnp.floating) for value in values):
        raise InputError("The function gives whole numbers; curvature is that of a floating-point function.")
    check_mapped_rules(closed.jaxpr)
    return Program(closed.jaxpr, structure, len(jax.tree.leaves(params))), closed.consts


@jax.jit
def _nothing() -> None:
    pass


def _tracing_context() -> Hashable:
    """Equal where a function would be traced alike: JAX keeps one jaxpr for each context, and gives that one.

    Its own context leaves out which random numbers `jax.random.key` stands for.
    """
    return _nothing.trace().jaxpr, jax.config.jax_default_prng_impl  # type: ignore[attr-defined]
