"""Does a forward and backward pass fit the chips of a TPU pod? Compiles for the pod's topology; no TPU is needed.

    pip install libtpu
    python benchmarks/tpu_compile.py --out benchmarks/results/tpu_compile.json

Parameters are float32, matrix products bfloat16, every layer is rematerialised. Memory is the compiler's own account.
"""

import argparse
import json
import math
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # do not look for a TPU's metadata server

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from machine import describe
from transformers import LlamaConfig, T5Config

from lensjax.models import base, sharding
from lensjax.models.options import make_options

CHIP_GB = {"v5e": 16, "v5p": 95, "v6e": 32}  # published memory per chip, in GB of 10^9 bytes
LLAMA_7B = LlamaConfig(vocab_size=32000, max_position_embeddings=4096, intermediate_size=11008)  # as Llama 2 7B
T5_11B = T5Config(d_model=1024, d_kv=128, d_ff=65536, num_layers=24, num_heads=128)  # as T5 v1.0 11B

CASES: list[dict[str, Any]] = [
    {"model": "Llama 7B", "config": LLAMA_7B, "topology": "v5e:16x16", "mesh": "fsdp=256", "time": 2048},
    {"model": "Llama 7B", "config": LLAMA_7B, "topology": "v5e:16x16", "mesh": "fsdp=64,tensor=4", "time": 2048},
    {"model": "T5 11B", "config": T5_11B, "topology": "v5e:16x16", "mesh": "fsdp=256", "time": 512},
    {"model": "T5 11B", "config": T5_11B, "topology": "v5e:16x16", "mesh": "fsdp=64,tensor=4", "time": 512},
]
BYTES = {"f32": 4, "bf16": 2, "s32": 4, "pred": 1, "u32": 4, "f16": 2}


def compile_case(config: Any, topology: str, mesh: str, time_steps: int) -> dict[str, Any]:
    """Compile value and gradient of the loss, one example per shard of the batch; sizes are per chip, in GB."""
    from jax.experimental import topologies

    chips = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    options = make_options("bfloat16", "float32", remat="full", mesh=sharding.make_mesh(mesh, chips))
    family, graphdef, shapes = base.abstract(config, options)
    model = base.Model(family, config, options, shapes, graphdef)
    placed = base.placement(shapes, family, config, options)
    params = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, placed)
    sizes = dict(options.mesh.shape)
    rows = NamedSharding(options.mesh, PartitionSpec(("data", "fsdp")))
    examples = sizes["data"] * sizes["fsdp"]
    batch = {"input_ids": jax.ShapeDtypeStruct((examples, time_steps), jnp.int32, sharding=rows)}
    if family.encoder_decoder:
        batch["labels"] = jax.ShapeDtypeStruct((examples, time_steps // 4), jnp.int32, sharding=rows)
    start = time.perf_counter()
    step = jax.jit(jax.value_and_grad(model.loss), out_shardings=(None, placed))
    compiled = step.lower(params, batch).compile()
    memory = compiled.memory_analysis()
    leaves = list(zip(jax.tree.leaves(shapes), jax.tree.leaves(placed), strict=True))
    whole = [math.prod(leaf.shape) for leaf, place in leaves if place.is_fully_replicated]
    name, largest = largest_buffer(compiled.as_text())
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return {
        "parameters": sum(math.prod(leaf.shape) for leaf, _ in leaves),
        "examples": examples,
        "compile_seconds": round(time.perf_counter() - start, 1),
        "parameters_gb": memory.argument_size_in_bytes / 1e9,
        "gradients_gb": memory.output_size_in_bytes / 1e9,
        "temporaries_gb": memory.temp_size_in_bytes / 1e9,
        "total_gb": total / 1e9,
        "chip_gb": CHIP_GB[topology.partition(":")[0]],
        "largest_replicated_parameter": max(whole, default=0),
        "largest_buffer": name,
        "largest_buffer_gb": largest / 1e9,
    }


def largest_buffer(program: str) -> tuple[str, int]:
    """The largest array that one chip computes, as its type and shape, and its bytes."""
    found = {
        f"{kind}[{shape}]": BYTES[kind] * math.prod(map(int, shape.split(",")))
        for kind, shape in re.findall(r"\b(f32|bf16|f16|s32|u32|pred)\[([\d,]+)\]", program)
    }
    name = max(found, key=lambda key: found[key])
    return name, found[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the results to this JSON file")
    parser.add_argument("--case", type=int, nargs="*", help="only these, counted from 0; other results in --out stay")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    try:
        import libtpu  # noqa: F401
    except ImportError:
        sys.exit("This needs the TPU compiler: pip install libtpu")
    results = {}
    if arguments.out is not None and arguments.out.exists() and arguments.case is not None:
        results = json.loads(arguments.out.read_text(encoding="utf-8"))
    for number in range(len(CASES)) if arguments.case is None else arguments.case:
        case = CASES[number]
        name = f"{case['model']}, {case['topology']}, {case['mesh']}, {case['time']} tokens"
        measured = compile_case(case["config"], case["topology"], case["mesh"], case["time"])
        results[name] = measured | describe("jax", "flax", "libtpu")
        print(name, json.dumps(measured, indent=2), flush=True)
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
