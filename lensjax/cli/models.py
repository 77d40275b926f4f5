"""`lensjax models`: families of models, their parameters, a check against torch, and export."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.markup import escape
from tyro.conf import Positional, arg

from lensjax.cli.arguments import DType, ModelName, Revision
from lensjax.cli.console import make_console, make_table
from lensjax.cli.outputs import output_writer
from lensjax.core.errors import InputError, shorten
from lensjax.core.files import check_new_folder
from lensjax.core.terminal import say
from lensjax.core.text import json_text

if TYPE_CHECKING:
    from lensjax.models.parameter_table import ParameterTable


def list_families(json: bool = False) -> None:
    """List the families of models that LensJAX can load, and the models that are part of it.

    Worked examples

    $ lensjax models list

    $ lensjax models list --json

    Args:
        json: Print JSON instead of a table.
    """
    from lensjax.models.family import family_of, supported
    from lensjax.models.pocket import bundled

    families = [family_of(model_type) for model_type in supported()]
    kinds = ["encoder–decoder" if family.encoder_decoder else "decoder" for family in families]
    if json:
        content = [
            {"model_type": f.model_type, "kind": kind, "class": f.architecture, "examples": list(f.examples)}
            for f, kind in zip(families, kinds, strict=True)
        ]
        say(json_text(content), end="")
        return
    rows = [
        (f.model_type, kind, f.architecture, ", ".join(f.examples)) for f, kind in zip(families, kinds, strict=True)
    ]
    headings, console = ("model_type", "kind", "Hugging Face class", "examples"), make_console()
    console.print(make_table("", headings, rows, words=headings))
    console.print(f"Part of LensJAX, to try things with: {', '.join(bundled())}", soft_wrap=True)


def show(
    model: ModelName, mesh: str = "", dtype: DType = "float32", revision: Revision = None, json: Path | None = None
) -> None:
    """Show a model's parameters, and what each device of a mesh would hold of them.

    Reads config.json alone, or the header of a GGUF file: the weights need not be there, nor the devices.

    Worked examples

    $ lensjax models show openai-community/gpt2

    $ lensjax models show path/to/model --mesh fsdp=8 --dtype bfloat16

    $ lensjax models show path/to/model --mesh fsdp=4,tensor=2 --json parameters.json

    Args:
        mesh: Devices along each axis: data splits the batch, fsdp the batch and the parameters, tensor the heads and
            hidden units. Axes not named have one.
        dtype: Type of the parameters.
        json: Write the table to this file.
    """
    write = output_writer(json)
    from lensjax.models.hub import find_folder, read_config
    from lensjax.models.parameter_table import parameter_table
    from lensjax.models.sharding import parse_mesh

    sizes = parse_mesh(mesh)
    folder = find_folder(model, revision, what="config")
    table = parameter_table(read_config(folder), sizes, dtype)
    write(table.to_json)
    _print_parameters(table)
    _print_provenance(folder)


def check(model: ModelName, dtype: DType = "float32", revision: Revision = None) -> None:
    """Check that LensJAX and torch compute the same with a model.

    Compares logits and losses on a batch of random tokens with padding and, where the model has a tokenizer, on two
    sentences. Differences are relative to the largest logit, and to the loss. Torch computes in float32, or in float64
    where that is the type. Exits with status 1 where they differ by more than rounding explains: 1e-4 in float32, 1e-9
    in float64, and three times torch's own rounding in half precision. Says too where the tokenizer that transformers
    makes of the folder makes other tokens than its tokenizer.json.

    Worked examples

    $ lensjax models check openai-community/gpt2

    $ lensjax models check path/to/model --dtype bfloat16

    $ JAX_ENABLE_X64=1 lensjax models check path/to/model --dtype float64

    Args:
        dtype: Type of the parameters and of all computation in LensJAX.
    """
    from lensjax.models.hub import find_folder
    from lensjax.models.tokenizer_check import compare_tokenizer
    from lensjax.models.torch_check import compare_with_torch

    folder = find_folder(model, revision)
    comparisons = compare_with_torch(folder, dtype)
    rows = [
        (
            one.batch,
            str(one.tokens),
            f"{one.error:.1e}",
            f"{one.allowed:.1e}",
            f"{one.loss:.7f}",
            f"{one.torch_loss:.7f}",
            "PASS" if one.passed else "FAIL",
        )
        for one in comparisons
    ]
    headings = ("batch", "tokens", "relative difference of logits", "allowed", "loss (nats)", "torch's", "")
    console = make_console()
    console.print(make_table("", headings, rows, words=("batch",)))
    differing = compare_tokenizer(folder)
    if differing:
        console.print(
            "[bold]Caution:[/bold] transformers rebuilds this tokenizer by its class, and LensJAX uses what it makes: ",
            end="",
        )
        console.print(f"{'; '.join(map(str, differing))}.", markup=False, soft_wrap=True)
    elif differing is not None:
        console.print("The tokenizer makes the tokens that its tokenizer.json does.")
    if not all(one.passed for one in comparisons):
        console.print(f"FAIL: logits or loss differ by more than rounding in {dtype} explains.")
        sys.exit(1)
    console.print(f"PASS: logits and loss differ by no more than rounding in {dtype} explains.")


def export(
    source: ModelName,
    folder: Annotated[Path, Positional, arg(metavar="FOLDER")],
    dtype: DType | None = None,
    revision: Revision = None,
) -> None:
    """Write a model to a new folder that `transformers` opens.

    Checks every weight as loading does, and writes them as safetensors beside configuration and tokenizer. Weights of a
    GGUF file are dequantised, which its model card says.

    Worked examples

    $ lensjax models export openai-community/gpt2 gpt2

    $ lensjax models export path/to/model path/to/half --dtype bfloat16

    $ lensjax models export path/to/SmolLM2-135M-Instruct.Q4_1.gguf smollm2

    Args:
        folder: Folder to write, which must not exist yet or be empty.
        dtype: Type of the weights written; by default the one that config.json says they are stored in.
    """
    check_new_folder(folder)
    import jax
    from rich import filesize

    from lensjax.core.text import count
    from lensjax.models.hub import find_folder, has_tokenizer, read_config
    from lensjax.models.loading import load

    original = find_folder(source, revision)
    written = dtype or str(read_config(original).dtype or "float32").removeprefix("torch.")
    model = load(original, dtype=written)
    leaves = jax.tree.leaves(model.params)
    if not all(bool(jax.numpy.isfinite(leaf).all()) for leaf in leaves):
        raise InputError(f"{shorten(original, 400)} has weights that {written} cannot hold; choose --dtype float32.")
    if has_tokenizer(original):
        _ = model.tokenizer  # fails where it is another model's
    model.save(folder)
    console = make_console()
    for path in sorted(folder.iterdir()):
        console.print(f"{path.name} ({filesize.decimal(path.stat().st_size)})", markup=False)
    parameters = count(sum(leaf.size for leaf in leaves))
    console.print(f"Wrote {folder}: {parameters} parameters in {written}.", markup=False, soft_wrap=True)
    _print_provenance(original)


def _print_provenance(folder: Path) -> None:
    from lensjax.models.gguf.header import provenance

    if said := provenance(folder):
        make_console().print(f"[bold]Caution:[/bold] {escape(said)}.", soft_wrap=True)


def _print_parameters(table: "ParameterTable") -> None:
    from rich import filesize

    from lensjax.core.text import DASH, count
    from lensjax.models.parameter_table import LARGE

    console = make_console()
    facts = ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in table.facts.items())
    console.print(f"[bold]{table.model_type}[/bold]: {facts}", soft_wrap=True)
    mesh = " × ".join(f"{axis}={size}" for axis, size in table.mesh.items())
    rows = []
    for row in table.rows:
        axes = [DASH if axis is None else axis if isinstance(axis, str) else "·".join(axis) for axis in row.spec]
        split = "whole, and large" if row.whole else ", ".join(axes)
        rows.append((row.path, _shape(row.shape), split, _shape(row.shard), f"{row.shard_bytes:,}"))
    words = ("parameter", "shape", "split over", "on each device")
    console.print(make_table(f"{table.dtype.name} on {mesh}", (*words, "bytes"), rows, words=words))
    total = filesize.decimal(table.parameters * table.dtype.itemsize)
    each = filesize.decimal(table.device_bytes)
    console.print(f"{count(table.parameters)} parameters ({table.parameters:,}), {total}; {each} on each device.")
    for warning in table.warnings:
        console.print(f"[bold]Caution:[/bold] {warning}", soft_wrap=True)
    if table.warnings:
        console.print(f"Large is {LARGE:,} values and more; other axis sizes, or a padded vocabulary, would split it.")


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
