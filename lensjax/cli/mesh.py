"""`lensjax models mesh`: the mesh of a TPU pod, or of nodes of GPUs, on which a model is trained fastest."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lensjax.cli.arguments import ModelName, Revision, XlaPreset
from lensjax.cli.console import make_console, make_table, progress_bar
from lensjax.cli.outputs import output_writer
from lensjax.core.errors import InputError
from lensjax.core.text import escaped_json

if TYPE_CHECKING:
    from lensjax.train.pods import Advice


def mesh(
    model: ModelName,
    topology: str,
    batch_size: int | None = None,
    length: int = 2048,
    target_length: int = 512,
    method: Literal["full", "lora"] = "full",
    compiled: int = 3,
    chip: Path | None = None,
    revision: Revision = None,
    xla_preset: XlaPreset = None,
    json: Path | None = None,
) -> None:
    """Find the mesh of a TPU pod or of GPUs on which a step of fine-tuning is shortest; none need be attached.

    Considers all axis sizes, parts of a batch (accumulation) and what backward passes compute again (remat), compiles
    the few that are expected to be the best, and tells memory, time and what binds it. Times are bounds from below:
    those of the compiled programs at the published rates of chips and links. Reads config.json alone; needs libtpu.

    Worked examples

    $ lensjax models mesh meta-llama/Llama-2-7b-hf --topology v5e:16x16

    $ lensjax models mesh path/to/model --topology v5p:8x8x8 --batch-size 1024 --length 4096 --json mesh.json

    $ lensjax models mesh path/to/model --topology h100:8

    Args:
        topology: Chips that need not be attached: v5e:16x16, v5e:16x16:2 for two such slices, or h100:16 for two nodes
            of eight GPUs, for which TPU chips stand in.
        batch_size: Examples of a step, on all chips together; by default one for each chip.
        length: Tokens of an example, or of the input of an encoder–decoder.
        target_length: Tokens of the target of an encoder–decoder.
        method: Train every parameter, or low-rank adapters.
        compiled: Choices to compile, of those that fit.
        chip: YAML file of facts about the chips; see `lensjax plan --help`.
        json: Write the table to this file.
    """
    write = output_writer(json, reads=[chip] if chip else [])
    for name, value in (("batch-size", batch_size), ("length", length), ("target-length", target_length)):
        if value is not None and value < 1:
            raise InputError(f"--{name} is {value}; give a number from 1 up.")
    if compiled < 1:
        raise InputError(f"--compiled is {compiled}; give a number from 1 up.")
    from lensjax.core.presets import use_preset
    from lensjax.core.topologies import find_topology
    from lensjax.models.family import family_of
    from lensjax.models.hub import find_folder, read_config
    from lensjax.train.meshes import Workplace
    from lensjax.train.pods import advise
    from lensjax.train.spec import TrainingSpec

    config = read_config(find_folder(model, revision, what="config"))
    lengths = (length, target_length) if family_of(config.model_type).encoder_decoder else (length,)
    use_preset(xla_preset)
    pod = find_topology(topology, chip)
    training = TrainingSpec(batch_size=batch_size or len(pod.devices), method=method)
    with progress_bar("Compiling") as progress:
        advice = advise(Workplace(config, pod, training, lengths), compiled, progress)
    write(lambda: escaped_json(advice.model_dump_json(indent=2)) + "\n")
    _print(advice)


def _print(advice: "Advice") -> None:
    from lensjax.core.text import DASH, count

    rows = []
    for one in advice.placements:
        bounds = one.bounds
        memory = DASH if one.memory is None else f"{one.memory / 1e9:.1f} GB"
        start = (one.mesh, str(one.accumulation), one.remat, memory)
        if bounds is None:
            rows.append((*start, DASH, DASH, DASH, "no room"))
            continue
        rows.append(
            (
                *start,
                f"{bounds.seconds:.3g} s",
                f"{bounds.tokens_per_second:,.0f}",
                f"{100 * bounds.utilisation:.0f} %",
                bounds.binding,
            )
        )
    title = f"{advice.model_type}, {count(advice.parameters)} parameters, on {advice.topology}: {advice.chips} chips"
    headings = ("mesh", "parts", "remat", "memory", "step", "tokens/s\na chip", "MFU", "bound by")
    console = make_console(100)
    console.print(make_table(title, headings, rows, words=("mesh", "remat", "bound by")))
    examples = " and ".join(f"{length:,}" for length in advice.lengths)
    console.print(
        f"Steps of {advice.batch_size:,} examples of {examples} tokens. {advice.considered:,} choices divide chips, "
        f"heads and batch; {advice.fitting:,} meshes are expected to fit.",
        soft_wrap=True,
    )
    for text in filter(None, (advice.reason, advice.caution)):
        console.print(text, soft_wrap=True, markup=False)
