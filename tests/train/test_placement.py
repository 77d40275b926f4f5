"""Batches on eight devices."""

import numpy as np
import pytest

from lensjax.core.errors import InputError
from lensjax.models import make_mesh
from lensjax.train.placement import BatchPlacement

pytestmark = pytest.mark.eight_devices


@pytest.mark.parametrize("axes", ["data=8", "fsdp=4,tensor=2", "data=2,fsdp=2,tensor=2"])
@pytest.mark.parametrize("parts", [1, 2])
def test_every_device_holds_its_rows(axes, parts):
    placement = BatchPlacement(make_mesh(axes), 16, parts)
    rows = placement.local_rows()
    assert rows == list(range(16))  # one process holds all
    ids = np.arange(16 * 3, dtype=np.int32).reshape(16, 3)
    placed = placement.to_devices({"input_ids": ids[rows]})["input_ids"]
    np.testing.assert_array_equal(np.asarray(placed).reshape(16, 3), ids)
    split = placement.mesh.shape["data"] * placement.mesh.shape["fsdp"]
    assert {shard.data.size for shard in placed.addressable_shards} == {16 * 3 // split}
    assert placement.shapes((3,))["labels"].shape == placed.shape


@pytest.mark.parametrize(("examples", "batches"), [(0, 0), (1, 1), (16, 1), (17, 2)])
def test_the_last_batch_may_have_empty_rows(examples, batches):
    assert BatchPlacement(make_mesh("fsdp=8"), 16).batches(examples) == batches


def test_a_mesh_that_does_not_divide_the_batch_is_named():
    BatchPlacement(make_mesh("fsdp=8"), 16).check("batch_size")
    with pytest.raises(InputError, match=r"training.batch_size puts 6 examples .* 8 devices .* multiple of 16"):
        BatchPlacement(make_mesh("fsdp=8"), 12, 2).check("batch_size")
