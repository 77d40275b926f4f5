"""What each way to fine-tune a model takes, and which is named as the cheapest that fits."""

import pytest

import lensjax.models
from lensjax.cli.plan import print_plan
from lensjax.study.plan_schema import Amount, CandidatePlan, Plan
from lensjax.tasks.spec import read_spec
from lensjax.train.choices import WAYS, Choice, cheapest, choices, sentence
from lensjax.train.estimate import AbstractCandidate
from lensjax.train.prepare import read_examples
from lensjax.train.spec import FinetuneSpec

MB = 10**6


def choice(method="full", quantise=None, remat="none", memory=100 * MB, flops=10, fits=True):
    return Choice(method=method, quantise=quantise, remat=remat, memory=memory, flops=flops, fits=fits)


def test_memory_and_operations_are_those_of_the_spec(save_squares, pretrained, tmp_path):
    own = {"method": "lora", "quantise": "nf4", "remat": "full"}
    spec = read_spec(save_squares(tmp_path, lora_rank=2, **own), FinetuneSpec)
    candidate = AbstractCandidate(
        spec, str(pretrained("llama")), read_examples(spec, [64], [0]), lensjax.models.make_mesh()
    )
    ways = [
        own,
        own | {"remat": "none"},
        own | {"quantise": None},
        {"method": "full", "quantise": None, "remat": "full"},
    ]
    ours, kept, wide, full = choices(candidate, candidate.memory.peak, ways)
    assert (ours.memory, ours.fits) == (candidate.memory.peak, True)
    assert ours.memory < wide.memory < full.memory
    assert (wide.fits, full.fits) == (False, False)
    assert kept.flops < ours.flops == wide.flops < full.flops
    assert all(way in WAYS for way in ways)
    assert candidate.parameters == sum(leaf.size for leaf in _leaves(candidate))


def _leaves(candidate):
    import jax

    from lensjax.models.model import abstract_model

    return jax.tree.leaves(abstract_model(candidate.abstract.config, candidate.abstract.options.plain).params)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            [
                choice(fits=False),
                choice(remat="full", flops=13),
                choice("lora", flops=7),
                choice("lora", "nf4", flops=7),
            ],
            "The cheapest that fits is {method: lora, remat: none} (100.0 MB); with all parameters, {method: full, "
            "remat: full} (100.0 MB).",
        ),
        (
            [choice(fits=None), choice("lora", flops=20, fits=False)],
            "The cheapest that fits is {method: full, remat: none}",
        ),
        (
            [choice(fits=False), choice("lora", "nf4", "full", 7 * MB, fits=False)],
            "No choice fits; {method: lora, quantise: nf4, remat: full} (7.0 MB) takes the least.",
        ),
        ([choice(memory=None, fits=False)], "No choice fits these devices."),
    ],
)
def test_the_cheapest_that_fits_is_named(found, said):
    assert sentence(found).startswith(said)
    assert all(one.fits is not False for one in cheapest(found).values())


def test_plans_show_them(capsys):
    found = (choice(fits=False), choice("lora", "nf4", "full", 7 * MB, flops=2 * 10**9))
    one = CandidatePlan(model="mine", source="mine", dtype="bfloat16", choices=found)
    amount = {"flops": 0, "seconds": None}
    shown = Plan(
        study="s",
        task="t",
        target=3200,
        device="cpu",
        devices=1,
        basis=None,
        candidates=(one,),
        budgets=(),
        full_tuning=Amount(**amount),
        sentence="",
    )
    print_plan(shown)
    said = capsys.readouterr().out
    assert "Choices for mine" in said
    rows = [line.split() for line in said.splitlines() if " MB " in line]
    assert [row[:3] + row[-1:] for row in rows[:2]] == [
        ["full", "bfloat16", "none", "no"],
        ["lora", "nf4", "full", "yes"],
    ]
    assert "mine: The cheapest that fits is {method: lora, quantise: nf4, remat: full} (7.0 MB)." in said
