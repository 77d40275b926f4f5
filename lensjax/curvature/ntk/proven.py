"""Factors of gradients that are checked: the kernel of two examples is made of them, and compared with plain gradients.

For what takes factors and gives no kernel, such as random features and Kronecker products.
"""

from weakref import WeakKeyDictionary

import jax

from lensjax.core.errors import InputError, NotFinite
from lensjax.core.pytrees import PyTree
from lensjax.curvature.form_checks import check_on_mismatch
from lensjax.curvature.jaxpr.program import Function, Program
from lensjax.curvature.ntk.ntk import ntk
from lensjax.curvature.ntk.plan import Besides, Job
from lensjax.curvature.ntk.proof import Verification, WrongKernelError

_EXAMPLES = 2

Proof = tuple[frozenset[int], Verification | None]
UNPROVEN: Proof = (frozenset(), None)
_known: WeakKeyDictionary[Program, Proof] = WeakKeyDictionary()


def prove_factors(f: Function, params: PyTree, job: Job, besides: Besides, on_mismatch: str) -> Proof:
    """Verify the kernel of the first two examples; of each program once, as a fault of a rule is one of the program.

    Args:
      f, params: See `lensjax.curvature.ntk.ntk.ntk`.
      job: The plan for all examples.
      besides: Memory that this takes besides factors; verification takes no more in all, where that is possible.
      on_mismatch: What to do where entries differ by more than rounding: "raise", or "dense".

    Returns:
      Numbers of the parameters whose gradients have wrong factors, and have to be formed instead; and what was
      verified: None where the memory does not suffice for it.

    Raises:
      WrongKernelError: there are such parameters, and nothing is to be done about it.
    """
    check_on_mismatch(on_mismatch)
    program = job.plan.program
    if program in _known:
        return _known[program]
    examples = jax.tree.map(lambda x: x[: min(_EXAMPLES, job.sizes[0])], job.examples)
    for limit in (job.batch_bytes(besides), job.limit):
        try:
            proof = _proof(f, params, examples, limit, on_mismatch)
        except (NotFinite, WrongKernelError):
            raise
        except InputError:  # of memory
            continue
        _known[program] = proof
        return proof
    return UNPROVEN


def _proof(f: Function, params: PyTree, examples: PyTree, limit: int, on_mismatch: str) -> Proof:
    try:
        return frozenset(), ntk(f, params, examples, memory_limit=limit, verify="always").verified
    except WrongKernelError as error:
        if on_mismatch == "raise":
            raise
        wrong = error.leaves
    return wrong, ntk(f, params, examples, memory_limit=limit, verify="always", on_mismatch="dense").verified
