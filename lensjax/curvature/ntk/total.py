"""A kernel as it is being summed up over parameters."""

import jax
import numpy as np

from lensjax.core.pytrees import PyTree, path_name
from lensjax.curvature.ntk.costs import TAIL, Output
from lensjax.curvature.ntk.factors import ContractionPlan, Leaf
from lensjax.curvature.ntk.proof import Kernel, Sample, Verification


class Total:
    """The kernel as it is being summed over parameters."""

    def __init__(
        self, params: PyTree, plan: ContractionPlan, output: Output, sample: Sample | None, *, by_parameter: bool
    ) -> None:
        self.names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        self.plan, self.output, self.by_parameter = plan, output, by_parameter
        self.sample = sample  # entries to be verified
        self.parts: dict[str, np.ndarray] = {}

    def add(self, leaf: Leaf, layer: int, part: np.ndarray) -> None:
        """Add the kernel of a parameter, [layers, N, M, …], from its layer `layer` on."""
        name, layers = self.names[leaf.number], leaf.layers or 1
        if self.sample is not None:
            self.sample.note(leaf.number, layers, layer, part)
        if not self.by_parameter:
            name, layers, layer, part = "", 1, 0, part.sum(axis=0, keepdims=True)
        whole = self.parts.setdefault(name, np.zeros((layers, *part.shape[1:]), part.dtype))
        whole[layer : layer + len(part)] += part

    def result(self, verified: Verification | None, *, symmetric: bool) -> PyTree:
        """The kernel, or the part of each parameter; exactly symmetric if it is of one set of examples."""
        tails = len(TAIL[self.output])

        def shaped(part: np.ndarray, *, stacked: bool) -> Kernel:
            if symmetric:
                turned = np.swapaxes(part, 1, 2)
                part = (part + (np.swapaxes(turned, 3, 4) if tails == 2 else turned)) / 2
            part = part.reshape(*part.shape[:3], *self.plan.outputs * tails)
            kernel = (part if stacked else part[0]).view(Kernel)
            kernel.verified = verified
            return kernel

        if not self.by_parameter:
            return shaped(self.parts[""], stacked=False)
        stacked = {self.names[leaf.number] for leaf in self.plan.leaves if leaf.layers is not None}
        return {name: shaped(part, stacked=name in stacked) for name, part in self.parts.items()}
