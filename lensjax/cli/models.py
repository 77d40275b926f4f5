"""`lensjax models`: which models there are, what they take, and whether they compute what torch does."""

import json as json_format
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from lensjax.core.errors import InputError, shorten
from lensjax.core.files import check_new_folder, check_writable, write_files

if TYPE_CHECKING:
    from rich.console import Console

    from lensjax.models.parameter_table import ParameterTable

DTypeName = Literal["float32", "bfloat16", "float16", "float64"]
Name = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]


def list_families(json: bool = False) -> None:
    """List the families of models that can be loaded, and the models that are part of LensJAX.

    Worked examples

    $ lensjax models list

    $ lensjax models list --json

    Args:
        json: Print JSON instead of a table.
    """
    from rich.table import Table

    from lensjax.models.family import family_of, supported
    from lensjax.models.pocket import bundled

    families = [family_of(model_type) for model_type in supported()]
    kinds = ["encoder–decoder" if family.encoder_decoder else "decoder" for family in families]
    if json:
        content = [
            {"model_type": f.model_type, "kind": kind, "class": f.architecture, "examples": list(f.examples)}
            for f, kind in zip(families, kinds, strict=True)
        ]
        print(json_format.dumps(content, indent=2, ensure_ascii=False))
        return
    table = Table("model_type", "kind", "Hugging Face class", "examples")
    for family, kind in zip(families, kinds, strict=True):
        table.add_row(family.model_type, kind, family.architecture, "\n".join(family.examples))
    console = make_console()
    console.print(table)
    console.print(f"Part of LensJAX, to try things with: {', '.join(bundled())}", soft_wrap=True)


def show(
    model: Name, mesh: str = "", dtype: DTypeName = "float32", revision: str | None = None, json: Path | None = None
) -> None:
    """Show a model's parameters, and what each device of a mesh would hold of them.

    Reads config.json alone: the weights need not be there, nor the devices.

    Worked examples

    $ lensjax models show openai-community/gpt2

    $ lensjax models show path/to/model --mesh fsdp=8 --dtype bfloat16

    $ lensjax models show path/to/model --mesh fsdp=4,tensor=2 --json parameters.json

    Args:
        model: Folder with a config.json, name on the Hugging Face hub, or pocket:NAME, which is part of LensJAX.
        mesh: Devices along each axis: data splits the batch, fsdp the batch and the parameters, tensor the heads and
            hidden units. Axes not named have one.
        dtype: Type that the parameters are held in.
        revision: Branch, tag or commit on the hub.
        json: Write the table to this file.
    """
    outputs = [] if json is None else [json]
    check_writable(outputs)
    from lensjax.models.hub import find_folder, read_config
    from lensjax.models.parameter_table import parameter_table
    from lensjax.models.sharding import parse_mesh

    sizes = parse_mesh(mesh)
    table = parameter_table(read_config(find_folder(model, revision, what="config")), sizes, dtype)
    _print_parameters(table)
    write_files({path: table.to_json() for path in outputs})
    for path in outputs:
        print(f"Wrote {path}")


def check(model: Name, dtype: DTypeName = "float32", revision: str | None = None) -> None:
    """Check that a model computes here what it computes in torch.

    Compares logits and losses on a batch of random tokens with padding and, where the model has a tokenizer, on two
    sentences. Differences are relative to the largest logit, and to the loss. Torch computes in float32, or in float64
    where that is the type. Exits with status 1 where they differ by more than rounding explains: 1e-4 in float32, 1e-9
    in float64, and three times torch's own rounding in half precision.

    Worked examples

    $ lensjax models check openai-community/gpt2

    $ lensjax models check path/to/model --dtype bfloat16

    $ JAX_ENABLE_X64=1 lensjax models check path/to/model --dtype float64

    Args:
        model: Folder of a model, its name on the Hugging Face hub, or pocket:NAME, which is part of LensJAX.
        dtype: Type that we hold the parameters and compute in.
        revision: Branch, tag or commit on the hub.
    """
    from rich.table import Table

    from lensjax.models.hub import find_folder
    from lensjax.models.torch_check import compare_with_torch

    comparisons = compare_with_torch(find_folder(model, revision), dtype)
    table = Table("batch")
    for heading in ("tokens", "relative difference of logits", "allowed", "loss (nats)", "torch's", ""):
        table.add_column(heading, justify="right")
    for found in comparisons:
        table.add_row(
            found.batch,
            str(found.tokens),
            f"{found.error:.1e}",
            f"{found.allowed:.1e}",
            f"{found.loss:.7f}",
            f"{found.torch_loss:.7f}",
            "PASS" if found.passed else "FAIL",
        )
    console = make_console()
    console.print(table)
    if not all(found.passed for found in comparisons):
        console.print(f"FAIL: logits or loss differ by more than rounding in {dtype} explains.")
        sys.exit(1)
    console.print(f"PASS: logits and loss differ by no more than rounding in {dtype} explains.")


def export(
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    dtype: DTypeName | None = None,
    revision: str | None = None,
) -> None:
    """Write a model to a new folder that `transformers` opens.

    Every weight is checked and read as for computing, and written as safetensors beside configuration and tokenizer.

    Worked examples

    $ lensjax models export openai-community/gpt2 gpt2

    $ lensjax models export path/to/model path/to/half --dtype bfloat16

    Args:
        source: Folder of a model, its name on the Hugging Face hub, or pocket:NAME, which is part of LensJAX.
        folder: Folder to write, which must not exist yet or be empty.
        dtype: Type of the weights written; by default the one that config.json says they are stored in.
        revision: Branch, tag or commit on the hub.
    """
    check_new_folder(folder)
    import jax
    from rich import filesize

    from lensjax.core.text import count
    from lensjax.models import load
    from lensjax.models.hub import find_folder, has_tokenizer, read_config

    found = find_folder(source, revision)
    written = dtype or str(read_config(found).dtype or "float32").removeprefix("torch.")
    model = load(found, dtype=written)
    leaves = jax.tree.leaves(model.params)
    if not all(bool(jax.numpy.isfinite(leaf).all()) for leaf in leaves):
        raise InputError(f"{shorten(found, 400)} has weights that {written} cannot hold; choose --dtype float32.")
    if has_tokenizer(found):
        _ = model.tokenizer  # fails where it is another model's
    model.save(folder)
    console = make_console()
    for path in sorted(folder.iterdir()):
        console.print(f"{path.name} ({filesize.decimal(path.stat().st_size)})", markup=False)
    parameters = count(sum(leaf.size for leaf in leaves))
    console.print(f"Wrote {folder}: {parameters} parameters in {written}.", markup=False, soft_wrap=True)


def make_console() -> "Console":
    """Standard output, of a fixed width where that is no terminal."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=140)


def _print_parameters(table: "ParameterTable") -> None:
    from rich import filesize
    from rich.table import Table

    from lensjax.core.text import count
    from lensjax.models.parameter_table import LARGE

    console = make_console()
    facts = ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in table.facts.items())
    console.print(f"[bold]{table.model_type}[/bold]: {facts}", soft_wrap=True)
    mesh = " × ".join(f"{axis}={size}" for axis, size in table.mesh.items())
    grid = Table("parameter", "shape", "split over", "on each device", title=f"{table.dtype.name} on {mesh}")
    grid.add_column("bytes", justify="right")
    for row in table.rows:
        axes = ["–" if axis is None else axis if isinstance(axis, str) else "·".join(axis) for axis in row.spec]
        split = "[bold]whole, and large[/bold]" if row.whole else ", ".join(axes)
        grid.add_row(row.path, _shape(row.shape), split, _shape(row.shard), f"{row.shard_bytes:,}")
    console.print(grid)
    total = filesize.decimal(table.parameters * table.dtype.itemsize)
    each = filesize.decimal(table.device_bytes)
    console.print(f"{count(table.parameters)} parameters ({table.parameters:,}), {total}; {each} on each device.")
    for warning in table.warnings:
        console.print(f"[bold]Caution:[/bold] {warning}", soft_wrap=True)
    if table.warnings:
        console.print(f"Large is {LARGE:,} values and more; other axis sizes, or a padded vocabulary, would split it.")


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
