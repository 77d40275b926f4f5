"""Published facts about devices, by their kind."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from lensjax.core import devices
from lensjax.core.devices import machine_memory, peak_flops, topology_devices
from lensjax.core.errors import InputError


@pytest.mark.parametrize(
    ("kind", "dtype", "tera"),
    [
        ("TPU v2", "bfloat16", 22.5),
        ("TPU v3", "bfloat16", 61.5),
        ("TPU v4", "bfloat16", 275),
        ("TPU v5 lite", jnp.bfloat16, 197),
        ("TPU v5", "bfloat16", 459),
        ("TPU v5p", "float32", 459),
        ("TPU v6 lite", "bfloat16", 918),
        ("TPU7x", "bfloat16", 1153.5),
        ("TPU v5 lite", "float16", None),
        ("TPU v99", "bfloat16", None),
        ("Tesla V100-SXM2-16GB", "float16", 125),
        ("Tesla V100-SXM2-16GB", "bfloat16", None),
        ("NVIDIA A100-SXM4-40GB", "bfloat16", 312),
        ("NVIDIA A100-SXM4-40GB", "float32", 156),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", "bfloat16", None),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bfloat16", None),
        ("NVIDIA H100 PCIe", "float16", 756),
        ("NVIDIA H100 NVL", "float16", 835),
        ("NVIDIA H200", "bfloat16", 989),
        ("NVIDIA H200 NVL", "bfloat16", 835),
        ("NVIDIA B200", "bfloat16", 2250),
        ("NVIDIA H200", "float64", None),
        ("cpu", "float32", None),
    ],
)
def test_peaks(kind: str, dtype: Any, tera: float | None) -> None:
    found = peak_flops(SimpleNamespace(device_kind=kind), dtype)
    assert found == (None if tera is None else pytest.approx(tera * 1e12))


def test_a_cpu_has_no_published_peak() -> None:
    assert peak_flops(jax.devices("cpu")[0], jnp.float32) is None


@pytest.mark.parametrize(
    ("group", "file"),
    [
        ("0::/jobs/one", "jobs/memory.max"),
        ("9:cpu:/\n4:memory:/jobs/one", "memory/jobs/one/memory.limit_in_bytes"),
        ("4:memory:/of/the/host", "memory/memory.limit_in_bytes"),
    ],
)
def test_a_control_group_limits_memory(tmp_path: Path, group: str, file: str) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"{group}\n")
    whole = machine_memory(tmp_path)
    limit = tmp_path / "sys/fs/cgroup" / file
    limit.parent.mkdir(parents=True)
    limit.write_text("max\n")
    assert machine_memory(tmp_path) == whole
    limit.write_text("1000000\n")
    assert machine_memory(tmp_path) == 10**6


def test_a_tpu_compiler_that_is_not_for_this_jax_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is newer compiles programs that JAX then cannot read."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace(name=name))
    monkeypatch.setattr(devices, "requires", lambda name: ["numpy>=2", 'libtpu==0.0.42.*; extra == "tpu"'])
    monkeypatch.setattr(devices, "version", lambda name: "0.0.52")
    mend = f"pip install 'jax[tpu]=={jax.__version__}'"
    with pytest.raises(InputError, match=r"libtpu 0\.0\.52 is not the TPU compiler .* libtpu ==0\.0\.42") as found:
        topology_devices("v5e:2x2")
    assert mend in str(found.value)
    monkeypatch.setattr(devices, "version", lambda name: "0.0.42.1")
    devices._check_compiler()
