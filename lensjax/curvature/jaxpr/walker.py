"""One walk through the equations of a jaxpr, for interpreters that say in a table what each primitive does."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.extend.core import Literal as JaxprLiteral

V = TypeVar("V")
Key = tuple[int, ...]  # of an equation: its number in the program, then in the body that the equation is in, and so on
Rule = Callable[[Any, JaxprEqn, list[V], Key], Sequence[V]]  # (interpreter, equation, inputs, key) → outputs


class Interpreter(Generic[V]):
    """Carries values of one kind through a jaxpr.

    Equations that matter go by their primitive's rule, calls into what they call, and all others the plain way.

    Attributes:
      rules: By the primitive's name; `jit` and other calls need none.
    """

    rules: ClassVar[Mapping[str, Rule[Any]]] = {}

    def constant(self, value: Any) -> V:
        """The value of a literal, or of an array that a function called inside has captured."""
        raise NotImplementedError

    def matters(self, equation: JaxprEqn, inputs: list[V], key: Key) -> bool:
        """Whether an equation needs a rule; it is computed plainly if not."""
        raise NotImplementedError

    def plain(self, equation: JaxprEqn, inputs: list[V], key: Key) -> Sequence[V]:
        """Outputs of an equation that does not matter."""
        raise NotImplementedError

    def unknown(self, equation: JaxprEqn, inputs: list[V], key: Key) -> Sequence[V]:
        """Outputs of an equation that matters, and whose primitive has no rule."""
        raise NotImplementedError

    def run(self, jaxpr: Jaxpr, constants: Sequence[V], inputs: Sequence[V], key: Key = ()) -> list[V]:
        """Values of a jaxpr's outputs."""
        values: dict[Any, V] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *inputs), strict=True))

        def read(atom: Any) -> V:
            return self.constant(atom.val) if isinstance(atom, JaxprLiteral) else values[atom]

        for number, equation in enumerate(jaxpr.eqns):
            outputs = self._step(equation, [read(atom) for atom in equation.invars], (*key, number))
            values |= zip(equation.outvars, outputs, strict=True)
        return [read(atom) for atom in jaxpr.outvars]

    def run_closed(self, closed: ClosedJaxpr, inputs: Sequence[V], key: Key = ()) -> list[V]:
        """Values of the outputs of a jaxpr that holds its constants."""
        return self.run(closed.jaxpr, [self.constant(x) for x in closed.consts], inputs, key)

    def call(self, equation: JaxprEqn, inputs: list[V], key: Key) -> Sequence[V]:
        """The rule of calls: go on inside."""
        return self.run_closed(called(equation), inputs, key)

    def _step(self, equation: JaxprEqn, inputs: list[V], key: Key) -> Sequence[V]:
        if not self.matters(equation, inputs, key):
            return self.plain(equation, inputs, key)
        name = equation.primitive.name
        if name in self.rules:
            return self.rules[name](self, equation, inputs, key)
        return (self.call if name in CALLS else self.unknown)(equation, inputs, key)


# Primitives that do nothing but call one jaxpr. A custom_jvp or custom_vjp does more: it has derivatives of its own.
CALLS = frozenset({"checkpoint", "closed_call", "core_call", "jit", "pjit", "remat2"})


def called(equation: JaxprEqn) -> ClosedJaxpr:
    """The jaxpr of a call."""
    inner = equation.params["jaxpr" if "jaxpr" in equation.params else "call_jaxpr"]
    return inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())


def equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """All equations of a program, those inside of others too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner, "eqns"):  # a jaxpr, or a closed one
                yield from equations(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner)


def bind(equation: JaxprEqn, inputs: Sequence[Any]) -> list[Any]:
    """Outputs of an equation for arrays, computed as it says."""
    with equation.ctx.manager:
        made = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(equation.params))
    return list(made) if equation.primitive.multiple_results else [made]


def aval(atom: Any) -> Any:
    """The shape and type of an input or output."""
    return atom.aval


def scan_parts(equation: JaxprEqn) -> tuple[int, int]:
    """Numbers of a scan's constants and of what it carries, the first of its inputs.

    JAX 0.12, which Python 3.12 and later get, gives the tree of all inputs in their place.
    """
    params = equation.params
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)
