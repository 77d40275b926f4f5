"""Batches on a mesh: the rows that each process makes, and the arrays over all devices that they become."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lensjax.core.errors import InputError
from lensjax.tasks.batches import Shape, fields
from lensjax.tasks.packing import PackedShape


@dataclass(frozen=True)
class BatchPlacement:
    """How batches lie on a mesh: their rows are split over `data` and `fsdp`.

    Attributes:
      mesh: The devices.
      rows: Rows of a batch, over all devices.
      parts: Number of parts that gradients are accumulated over; with several, arrays have a leading axis for them.
    """

    mesh: Mesh
    rows: int
    parts: int = 1

    @property
    def sharding(self) -> NamedSharding:
        """The sharding of every array of a batch."""
        leading = () if self.parts == 1 else (None,)
        return NamedSharding(self.mesh, PartitionSpec(*leading, ("data", "fsdp")))

    def check(self, field: str) -> None:
        """Raise InputError if the mesh does not divide the rows of a part, which `field` of the spec sets."""
        split = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        each = self.rows // self.parts
        if each % split:
            raise InputError(
                f"training.{field} puts {each} examples in a batch, which data × fsdp = {split} devices do not divide; "
                f"choose a multiple of {split * self.parts}, or another mesh."
            )

    def batches(self, examples: int) -> int:
        """Number of batches for a number of examples; the last may have empty rows."""
        return -(-examples // self.rows)

    def local_rows(self) -> list[int]:
        """The rows that this process's devices hold, in the order in which `to_devices` takes them."""
        each = self.rows // self.parts
        held = self.sharding.addressable_devices_indices_map(self._leading).values()
        mine = sorted({row for index in held for row in range(each)[(index or (slice(None),))[-1]]})
        return [part * each + row for part in range(self.parts) for row in mine]

    def to_devices(self, local: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """A batch over all devices, made of the rows of each process."""

        def place(rows: np.ndarray) -> jax.Array:
            length = rows.shape[-1]
            shaped = rows if self.parts == 1 else rows.reshape(self.parts, -1, length)
            return jax.make_array_from_process_local_data(self.sharding, shaped, (*self._leading, length))

        return {name: place(rows) for name, rows in local.items()}

    def of(self, shape: Shape) -> "BatchPlacement":
        """How batches of a shape lie: packed ones have rows of their own number."""
        return replace(self, rows=shape.rows) if isinstance(shape, PackedShape) else self

    def shapes(self, shape: Shape) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and shardings of the arrays of a batch."""
        leading = self.of(shape)._leading
        return {
            name: jax.ShapeDtypeStruct((*leading, length), jnp.int32, sharding=self.sharding)
            for name, length in fields(shape).items()
        }

    @property
    def _leading(self) -> tuple[int, ...]:
        return (self.rows,) if self.parts == 1 else (self.parts, self.rows // self.parts)
