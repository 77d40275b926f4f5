"""Flags of XLA that let collectives run beside products, by name: what `--xla-preset` and LENSJAX_XLA_PRESET mean.

The TPU's compiler takes its flags from LIBTPU_INIT_ARGS, which nothing else reads. A GPU's takes them from XLA_FLAGS,
which the TPU's compiler reads too, and ends the process at flags that it does not know; so they are set only where a
plug-in of JAX for GPUs is installed.
"""

import importlib.util
import os
from collections.abc import Mapping
from typing import NamedTuple

from lensjax.core.errors import InputError, shorten

VARIABLE = "LENSJAX_XLA_PRESET"


class Preset(NamedTuple):
    """Flags for the compilers of TPUs and of GPUs."""

    tpu: tuple[str, ...]
    gpu: tuple[str, ...]


_TPU = (
    "--xla_tpu_enable_latency_hiding_scheduler=true",
    "--xla_enable_async_all_gather=true",
    "--xla_enable_async_collective_permute=true",
    "--xla_tpu_enable_async_collective_fusion=true",
    "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
    "--xla_tpu_enable_async_collective_fusion_multiple_steps=true",
    "--xla_tpu_overlap_compute_collective_tc=true",
)
_GPU = (
    "--xla_gpu_enable_latency_hiding_scheduler=true",
    "--xla_gpu_enable_pipelined_all_gather=true",
    "--xla_gpu_enable_pipelined_reduce_scatter=true",
    "--xla_gpu_enable_pipelined_all_reduce=true",
    "--xla_gpu_enable_while_loop_double_buffering=true",
)
_SLICES = (  # gradients that are summed over the data-centre network
    "--xla_tpu_enable_data_parallel_all_reduce_opt=true",
    "--xla_tpu_data_parallel_opt_different_sized_ops=true",
)

PRESETS: Mapping[str, Preset] = {"overlap": Preset(_TPU, _GPU), "slices": Preset(_TPU + _SLICES, _GPU)}


def use_preset(name: str | None = None) -> None:
    """Set a preset's flags in the environment; call it before JAX meets its devices.

    Flags that the environment has already stay as they are.

    Args:
      name: As in `PRESETS`; that of the environment where not given, and none where that names none.

    Raises:
      InputError: there is no such preset.
    """
    name = name or os.environ.get(VARIABLE, "")
    if not name:
        return
    if name not in PRESETS:
        raise InputError(f"{VARIABLE} is '{shorten(name)}'; give one of {', '.join(PRESETS)}.")
    os.environ[VARIABLE] = name  # for the processes that this one starts, and for results
    _add("LIBTPU_INIT_ARGS", PRESETS[name].tpu)
    if _compiles_for_gpus():
        _add("XLA_FLAGS", PRESETS[name].gpu)


def preset_in_use() -> str:
    """The name of the preset that this process uses; "" for none."""
    return os.environ.get(VARIABLE, "")


def _compiles_for_gpus() -> bool:
    """Whether a plug-in of JAX for GPUs is installed."""
    return any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))


def _add(variable: str, flags: tuple[str, ...]) -> None:
    given = os.environ.get(variable, "").split()
    known = {flag.partition("=")[0] for flag in given}
    os.environ[variable] = " ".join([*(flag for flag in flags if flag.partition("=")[0] not in known), *given])
