"""Reading a study: defaults, what candidates differ in, and sentences about what is wrong."""

from inspect import signature

import pytest
import yaml

from lensjax.cli.curvature import hessian
from lensjax.core.errors import InputError
from lensjax.study.spec import read_study


@pytest.fixture
def write(tmp_path):
    """Writes a study whose fields are replaced; None leaves one out."""

    def write(**fields):
        content = {
            "candidates": ["org/one", {"source": "org/two", "training": {"batch_size": 8}}],
            "task": {"source": {"files": "rows.jsonl"}, "prompt": "{a}", "target": "{b}"},
            "budget": 1600,
        }
        path = tmp_path / "verses.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in (content | fields).items() if v is not None}))
        return path

    return write


def test_a_short_study_has_defaults(write, tmp_path):
    spec = read_study(write())
    assert (spec.name, spec.task.name, spec.names) == ("verses", "verses", ["one", "two"])
    assert spec.task.source.files == {"train": [tmp_path / "rows.jsonl"]}
    assert spec.evidence.ntk is not None
    assert spec.evidence.hessian is None
    assert spec.ladder(10_000) == [0, 200, 400, 800, 1600]
    assert spec.ladder(500) == [0, 200, 400]


def test_studies_and_the_command_measure_the_same_block_of_the_hessian(write):
    spec = read_study(write(evidence={"hessian": True}))
    assert spec.evidence.hessian.block == signature(hessian).parameters["block"].default == "diagonal"


def test_candidates_may_be_trained_otherwise(write):
    spec = read_study(write(training={"batch_size": 64, "epochs": 3}))
    one, two = (spec.finetune_spec(candidate).training for candidate in spec.candidates)
    assert (one.batch_size, two.batch_size) == (64, 8)
    assert one.epochs == two.epochs == 3


LORA = {"method": "lora", "lora_rank": 4}


@pytest.mark.parametrize(
    ("training", "own", "name", "rates"),
    [
        ({"learning_rate": 1e-5}, LORA, "one+lora4", (1e-4, 3e-4, 1e-3)),  # not those of full fine-tuning
        ({"learning_rate": 1e-5}, LORA | {"learning_rate": 2e-4}, "one+lora4", (2e-4,)),
        ({"learning_rate": 1e-3, **LORA}, {"lora_rank": 16}, "one+lora16", (1e-3,)),
        ({"learning_rate": 1e-3, **LORA}, {"method": "full"}, "one+full", (3e-5, 1e-4, 3e-4)),
    ],
)
def test_one_model_may_be_two_candidates(write, training, own, name, rates):
    spec = read_study(write(candidates=["org/one", {"source": "org/one", "training": own}], training=training))
    assert spec.names == ["one", name]
    assert spec.finetune_spec(spec.candidates[0]).training == spec.training
    assert spec.finetune_spec(spec.candidates[1]).training.learning_rates == rates


def test_a_task_may_have_its_own_file(write, tmp_path):
    (tmp_path / "tasks").mkdir()
    task = {"source": {"files": "rows.jsonl"}, "target": "{b}", "training": {"epochs": 7}}
    (tmp_path / "tasks" / "topics.yaml").write_text(yaml.safe_dump(task))
    spec = read_study(write(task="tasks/topics.yaml"))
    assert spec.task.name == "topics"
    assert spec.task.source.files == {"train": [tmp_path / "tasks" / "rows.jsonl"]}
    assert spec.training.epochs == 7
    assert read_study(write(task="tasks/topics.yaml", training={"epochs": 1})).training.epochs == 1


def test_models_beside_the_spec_are_found(write, tmp_path):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    spec = read_study(write(candidates=["models/mine", "org/two"]))
    assert [candidate.source for candidate in spec.candidates] == [str(tmp_path / "models" / "mine"), "org/two"]


def test_identity_is_of_name_task_and_training(write):
    base = read_study(write()).identity
    for same in ({"budget": 800}, {"candidates": ["org/two", "org/three"]}, {"evidence": {"ntk": False}}):
        assert read_study(write(**same)).identity == base
    for other in ({"name": "other"}, {"training": {"epochs": 1}}):
        assert read_study(write(**other)).identity != base


def test_the_whole_spec_survives_json(write):
    spec = read_study(write(evidence={"hessian": {"examples": 8}}, stop_when={"expected_regret": 0.01}))
    assert type(spec).model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"candidates": ["org/one"]}, r"candidates: a study compares two candidates or more\."),
        ({"candidates": ["org/one", "lab/one"]}, r"two candidates are called one \(org/one, lab/one\); give one"),
        (
            {"candidates": [{"source": "a/b", "training": LORA}, {"source": "a/b", "training": LORA | {"epochs": 2}}]},
            r"two candidates are called b\+lora4 \(a/b, a/b\); give one of them another name\.",
        ),
        ({"candidates": ["org/one", {"source": "a/b", "name": "../b"}]}, r"'../b' cannot name a folder"),
        ({"candidates": ["a/b", {"source": "a/c", "training": {"epoch": 1}}]}, r"no field epoch.*of the candidate c"),
        ({"budget": 399}, r"budget.examples is '399': a curve needs two rungs, so give at least 400"),
        ({"budget": {}}, r"budget: give examples, flops or hours"),
        ({"budget": None}, r"the field budget is missing"),
        ({"target": 800}, r"the target of 800 examples is below the budget of 1600"),
        ({"metric": "bleu"}, r"metric is 'bleu': input should be 'exact_match'"),
        ({"metric": "choice_accuracy"}, r"the metric choice_accuracy needs answers to choose from; give task.choices"),
        ({"method": "guess"}, r"method is 'guess': choose from .*joint, .*lensllm"),
        ({"method": "lensllm", "evidence": {"ntk": False}}, r"the method lensllm needs kernels; set evidence.ntk"),
        (
            {"evidence": {"ntk": {"examples": 201, "along_ladder": True}}},
            r"evidence.ntk: along_ladder is on examples that every rung was trained on: 200 at most",
        ),
        ({"seeds": [1, 1]}, r"seeds: give one seed or more, each once"),
        ({"stop_when": {}}, r"stop_when: give probability_best or expected_regret"),
        ({"stragety": "ladder"}, r"there is no field stragety"),
        ({"task": {"source": {"files": "x"}, "target": "none"}}, r"task.target is 'none': it names no field"),
        ({"task": "missing.yaml"}, r"Cannot read .*missing.yaml"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(write, fields, sentence):
    with pytest.raises(InputError, match=sentence) as error:
        read_study(write(**fields))
    assert "\n" not in str(error.value)


def test_too_few_examples_for_two_rungs(write):
    with pytest.raises(InputError, match="leaves 399 examples to train on, and a curve needs two rungs, 200 and 400"):
        read_study(write()).ladder(399)
