"""Derivatives of any function of any pytree: kernels, Hessian products, spectra, traces, the bound's terms."""

from lensjax.core.lazy import lazy

__getattr__, __dir__ = lazy(
    __name__,
    {
        "ntk": "",
        "hvp_fn": "hvp",
        "ggn_vp_fn": "hvp",
        "empirical_fisher_vp_fn": "hvp",
        "quadratic_form": "hvp",
        "layer_forms": "hvp",
        "top_eigenpairs": "spectrum",
        "spectral_density": "spectrum",
        "trace": "spectrum",
        "layer_traces": "spectrum",
        "layer_terms": "bound",
        "bound_terms": "bound",
        "fit_decay": "phases",
        "find_phases": "phases",
        "residual_loss": "dynamics",
        "spectrum": "",
        "effective_rank": "dynamics",
        "alignment": "dynamics",
        "kernel_drift": "dynamics",
        "kernel_growth": "dynamics",
        "nystrom": "low_rank",
        "kfac": "",
        "kfac_plan": "kfac",
    },
)
