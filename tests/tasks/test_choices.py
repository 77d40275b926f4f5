"""Choices of a task: lists of answers, and fields that hold them."""

import re

import numpy as np
import pytest

from lensjax.core.errors import InputError
from lensjax.tasks.choices import choice_facts, wrong_choices
from lensjax.tasks.spec import TaskSpec, read_spec
from lensjax.tasks.task import fingerprint, load_task
from lensjax.tasks.tokens import tokenise

ROWS = [
    {"word": f"w{n}", "kind": ("plant", "animal", "7")[n % 3], "options": ["plant", "animal", 7]} for n in range(40)
]
KINDS = {"prompt": "{word}:", "target": " {kind}.", "validation": 4, "test": 10}


@pytest.mark.parametrize("choices", [["plant", "animal", 7], "options"])
def test_test_examples_have_the_targets_that_choices_make(save_jsonl, make_spec, choices):
    save_jsonl("train.jsonl", ROWS)
    task = load_task(make_spec(**KINDS, choices=choices))
    assert {example.choices for example in task.test} == {(" plant.", " animal.", " 7.")}
    assert {example.choices for example in (*task.validation, *task.train(0, 20))} == {()}
    plain = load_task(make_spec(**KINDS))
    assert [(example.prompt, example.target) for example in plain.test] == [(e.prompt, e.target) for e in task.test]
    assert fingerprint(plain.test) != fingerprint(task.test)
    assert fingerprint(plain.validation) == fingerprint(task.validation)


@pytest.mark.parametrize(
    ("choices", "why"),
    [
        ("[plant]", "there is nothing to choose from with 1 choices; give two or more"),
        ("[]", "there is nothing to choose from with no choices"),
        ("[plant, animal, ' plant ']", "'plant' is among the choices twice; keep one"),
        ("[yes, no]", "YAML takes yes, no, on and off for it; quote it"),
        ("[plant, ' ']", "one of the choices is blank"),
        ("[plant, null]", "one of them is empty; write each as a text"),
        ("[plant, .nan]", "one of them is empty"),
        ("[plant, [animal]]", "one of them is a list"),
    ],
)
def test_choices_of_no_use_are_refused(tmp_path, choices, why):
    path = tmp_path / "kinds.yaml"
    path.write_text(f"source: {{files: a.jsonl}}\ntarget: ' {{kind}}'\nchoices: {choices}\n")
    with pytest.raises(InputError, match=rf"kinds.yaml: choices: .*{re.escape(why)}"):
        read_spec(path, TaskSpec)
    path.write_text("source: {files: a.jsonl}\ntarget: '{kind} {word}'\nchoices: [plant, animal]\n")
    with pytest.raises(InputError, match=r"so target names one field, as in ' \{answer\}'"):
        read_spec(path, TaskSpec)


@pytest.mark.parametrize(
    ("row", "choices", "why"),
    [
        ({}, ["plant", "stone"], r"the target ' animal.', which is none of its choices \(' plant.', ' stone.'\)"),
        ({"options": ["plant", "stone"]}, "options", "which is none of its choices"),
        ({"options": "plant,animal"}, "options", "holds no list in the field 'options', which choices names"),
        (
            {"options": ["animal"]},
            "options",
            "holds choices in the field 'options' that are of no use: there is nothing",
        ),
        ({"options": ["animal", "animal"]}, "options", "'animal' is among the choices twice"),
        ({"options": ["animal", None]}, "options", "one of them is empty"),
        ({}, "options", "has no field 'options', only"),
    ],
)
def test_a_row_whose_choices_do_not_hold_its_target_is_named(save_jsonl, make_spec, row, choices, why):
    save_jsonl("train.jsonl", [{"word": f"w{n}", "kind": "animal"} | row for n in range(40)])
    with pytest.raises(InputError, match=rf"train.jsonl line \d+ .*{why}"):
        load_task(make_spec(**KINDS, choices=choices))


def test_tokens_of_wrong_choices(save_jsonl, make_spec, make_tokenizer):
    save_jsonl("train.jsonl", [row | {"options": row["options"][: 2 + (row["kind"] == "7")]} for row in ROWS])
    spec, tokenizer = make_spec(**KINDS, choices="options"), make_tokenizer()
    test = load_task(spec).test
    wrong = wrong_choices(test)
    assert all(one.target != example.target for example in test for one in wrong if one.prompt == example.prompt)
    tokens, others = (tokenise(rows, tokenizer, spec, encoder_decoder=False) for rows in (test, wrong))
    facts = choice_facts(test, tokens, others, tokenizer, encoder_decoder=False)
    assert facts["examples"] == [i for i, example in enumerate(test) for _ in range(len(example.choices) - 1)]
    assert facts["bytes"] == [len(one.target) for one in wrong]
    assert [test[i].prompt for i in facts["examples"]] == [one.prompt for one in wrong]
    assert not np.any(facts["same"])
    cut = spec.model_copy(update={"max_target_tokens": 1})  # " p" and " a" begin with one token
    tokens, others = (tokenise(rows, tokenizer, cut, encoder_decoder=False) for rows in (test, wrong))
    assert np.all(choice_facts(test, tokens, others, tokenizer, encoder_decoder=False)["same"])
