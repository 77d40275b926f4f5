"""Facts about devices, also about those that are not attached: speed, power and memory."""

import importlib.util
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from numpy.typing import DTypeLike
from packaging.requirements import Requirement

from lensjax.core.errors import InputError, one_line, shorten

CPU_WATTS = 85.0  # CodeCarbon's assumption for processors that it does not know


def usable_devices() -> list[Any]:
    """The devices that work is spread over where no mesh is given: all that JAX has."""
    return jax.devices()


class _Kind(NamedTuple):
    """One of JAX's devices, which of TPU v2, v3 and 7x are the two halves of a chip.

    Attributes:
      pattern: Of its `device_kind`.
      tera: Dense TFLOP/s of its matrix units by type.
      watts: At full load.
      topology: Its chip in the names of TPU topologies.
      gigabytes: Its memory, in units of 10^9 bytes; of TPUs alone, as a GPU says itself how much it has.
    """

    pattern: str
    tera: Mapping[str, float]
    watts: float | None = None
    topology: str = ""
    gigabytes: int = 0


def _tpu(tera: float) -> Mapping[str, float]:
    return {"bfloat16": tera, "float32": tera}


def _gpu(half: float, single: float) -> Mapping[str, float]:
    return {"float16": half, "bfloat16": half, "float32": single}


# Peaks: the pages "TPU v2" to "TPU7x (Ironwood)" of Google Cloud's TPU documentation; NVIDIA's data sheets of V100,
# T4, A100, A10, L4, L40S, H100, H100 NVL, H200, GH200, DGX B200 and GB200 NVL72, for dense matrices at boost clock.
# V100 and T4 have no TF32, so float32 is that of their other units. Watts: the same data sheets; Jouppi et al., "A
# domain-specific supercomputer for training deep neural networks" (CACM 2020) for TPU v2 and v3, and "TPU v4" (ISCA
# 2023) for v4, the largest that was measured; none is published for later TPUs. The first row that matches counts.
_KINDS: Sequence[_Kind] = (
    _Kind(r"cpu", {}, CPU_WATTS),
    _Kind(r"TPU v2", _tpu(45 / 2), 280 / 2),
    _Kind(r"TPU v3", _tpu(123 / 2), 450 / 2),
    _Kind(r"TPU v4", _tpu(275), 192, "v4", 32),
    _Kind(r"TPU v5 lite|TPU v5e", _tpu(197), None, "v5e", 16),
    _Kind(r"TPU v5p?", _tpu(459), None, "v5p", 95),
    _Kind(r"TPU v6 lite|TPU v6e", _tpu(918), None, "v6e", 32),
    _Kind(r"TPU ?v?7x?", _tpu(2307 / 2), None, "tpu7x", 96),
    _Kind(r"Tesla V100-SXM2.*", {"float16": 125, "float32": 15.7}, 300),
    _Kind(r"Tesla V100-PCIE.*", {"float16": 112, "float32": 14}, 250),
    _Kind(r"Tesla T4", {"float16": 65, "float32": 8.1}, 70),
    _Kind(r"NVIDIA A100-SXM.*", _gpu(312, 156), 400),
    _Kind(r"NVIDIA A100-PCIE.*", _gpu(312, 156), 250),
    _Kind(r"NVIDIA A100 80GB PCIe", _gpu(312, 156), 300),
    _Kind(r"NVIDIA A100.*", _gpu(312, 156)),
    _Kind(r"NVIDIA A10", _gpu(125, 62.5), 150),
    _Kind(r"NVIDIA L4", _gpu(121, 60), 72),
    _Kind(r"NVIDIA L40S", _gpu(362, 183), 350),
    _Kind(r"NVIDIA H100 PCIe", _gpu(756, 378), 350),
    _Kind(r"NVIDIA H100 NVL", _gpu(835, 417), 400),
    _Kind(r"NVIDIA H200 NVL", _gpu(835, 417), 600),
    _Kind(r"NVIDIA (H100.* HBM3|H200)", _gpu(989, 494), 700),
    _Kind(r"NVIDIA GH200.*", _gpu(989, 494)),
    _Kind(r"NVIDIA B200", _gpu(2250, 1125), 1000),
    _Kind(r"NVIDIA GB200", _gpu(2500, 1250), 1200),
)
CHIP_GB = {kind.topology: kind.gigabytes for kind in _KINDS if kind.topology}


def peak_flops(device: jax.Device, dtype: DTypeLike) -> float | None:
    """The published dense peak of a device's matrix units.

    For float32 it is the peak at JAX's default precision: one bfloat16 pass on TPUs, TF32 on NVIDIA GPUs from Ampere
    on, and on older ones float32 on the other units. GPUs are assumed to run at full power.

    Args:
      device: Such as `jax.devices()[0]`; its `device_kind` decides.
      dtype: Of the factors, whose products are summed in float32.

    Returns:
      FLOP/s; None for kinds and types that the table does not have, and for slices of a GPU (MIG).
    """
    kind = _kind(str(device.device_kind))
    tera = None if kind is None else kind.tera.get(jax.numpy.dtype(dtype).name)
    return None if tera is None else tera * 1e12


def watts(device: str) -> float | None:
    """Power of one JAX device under full load, without its host.

    Args:
      device: Its `device_kind`.

    Returns:
      Watts, of boards at their rated limit; None where none is published, and for slices of a GPU (MIG).
    """
    kind = _kind(device)
    return None if kind is None else kind.watts


def device_memory(mesh: Mesh) -> int | None:
    """Bytes of memory that each device of a mesh has.

    Args:
      mesh: The devices, of which this process's own are asked; CPU devices share the memory of their host.

    Returns:
      Bytes; None for devices that do not say.
    """
    device = next(iter(mesh.local_devices), mesh.devices.flat[0])  # only a process's own devices say what they have
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    if device.platform != "cpu":
        return None
    return machine_memory() // len(mesh.local_devices)


def machine_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that processes may take here: the machine's, or fewer in a control group such as a container's.

    Args:
      root: Of the file system that says so.
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    groups = root / "sys/fs/cgroup"
    with suppress(OSError):  # other systems have no such file
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds in ("", "memory"):  # of version 2 and 1 of control groups
                top, name = (groups / "memory", "memory.limit_in_bytes") if kinds else (groups, "memory.max")
                place = top / path.lstrip("/")
                limits += [_limit(folder / name) for folder in (place, *place.parents) if folder.is_relative_to(top)]
    return min(limits)


def _limit(file: Path) -> int:
    """The bytes that a control group is limited to; a number beyond all memory where it is not."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # ValueError: "max"
        return sys.maxsize


def slices_of(devices: Sequence[Any]) -> int:
    """Number of the slices of TPU pods that devices are of; 1 for other devices."""
    return len({getattr(device, "slice_index", None) or 0 for device in devices})


def topology_devices(name: str) -> list[Any]:
    """Devices of a TPU topology, for which programs can be compiled without such a TPU attached.

    Args:
      name: Chip and shape of a slice, such as "v5e:16x16", and the number of slices where there are several, as in
        "v5e:16x16:2".

    Returns:
      The devices, of which `lensjax.models.make_mesh` makes a mesh.

    Raises:
      InputError: there is no such topology, or the TPU compiler is not installed, or is not the one for this JAX.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})(?::([1-9]\d{0,2}))?", name)
    if found is None or found[1] not in CHIP_GB:
        raise InputError(
            f"'{shorten(name)}' is no TPU topology; write chip and shape as in v5e:16x16, the chip one of "
            f"{', '.join(CHIP_GB)}, and for two such slices v5e:16x16:2."
        )
    several = {"num_slices": int(found[3])} if found[3] is not None and found[3] != "1" else {}
    shape = f"{found[1]}:{found[2]}"
    _check_compiler()
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # do not look for a TPU's metadata server
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # several processes may compile at once
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=shape, **several).devices)
    except Exception as error:  # the compiler raises errors of any kind for shapes that are not made
        raise InputError(
            f"The TPU compiler does not know the topology {shorten(name)} ({one_line(error, 200)}); take one that is "
            "offered, such as v5e:16x16."
        ) from error


def _check_compiler() -> None:
    """Raise InputError where the TPU compiler is missing, or is another than JAX was made with."""
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("Compiling for a TPU that is not attached needs its compiler; pip install 'jax[tpu]'.")
    try:
        found = version("libtpu")
    except PackageNotFoundError:  # of a build without a version
        return
    for one in map(Requirement, requires("jax") or ()):
        if one.name == "libtpu" and not one.specifier.contains(found, prereleases=True):
            raise InputError(
                f"libtpu {found} is not the TPU compiler that JAX {jax.__version__} was made with, libtpu "
                f"{one.specifier}; pip install 'jax[tpu]=={jax.__version__}'."
            )


def _kind(name: str) -> _Kind | None:
    return None if "MIG" in name else next((kind for kind in _KINDS if re.fullmatch(kind.pattern, name)), None)
