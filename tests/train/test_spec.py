"""The `training` part of a spec."""

import pytest

from lensjax.core.errors import InputError
from lensjax.tasks.spec import read_spec
from lensjax.tasks.tokens import TOKENS_VERSION
from lensjax.train.spec import FinetuneSpec, TrainingSpec

BASE = "source: {files: rows.jsonl}\ntarget: '{answer}'\n"


def read(tmp_path, text):
    path = tmp_path / "task.yaml"
    path.write_text(BASE + text)
    return read_spec(path, FinetuneSpec)


@pytest.mark.parametrize(
    ("text", "rates"),
    [
        ("", (3e-5, 1e-4, 3e-4)),
        ("training: {method: lora}", (1e-4, 3e-4, 1e-3)),
        ("training: {learning_rate: 1e-4}", (1e-4,)),  # which YAML reads as text
        ("training: {learning_rate: [0.1, 2e-3]}", (0.1, 2e-3)),
    ],
)
def test_learning_rates(tmp_path, text, rates):
    assert read(tmp_path, text).training.learning_rates == rates


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {learning_rate: fast}", r"task.yaml: training.learning_rate.0 is 'fast': "),
        ("training: {learning_rate: -1}", r"training.learning_rate.0 is '-1': .*greater than 0"),
        ("training: {batch_size: 10, accumulation: 3}", r"accumulation 3 does not divide batch_size 10"),
        ("training: {optimiser: sgd}", r"there is no field training.optimiser"),
        ("training: {min_steps: 9, max_steps: 8}", r"min_steps 9 is above max_steps 8"),
        ("training: {epochs: 0}", r"training.epochs is '0'"),
        ("training: {method: qlora}", r"training.method is 'qlora'"),
        ("training: {lora_targets: ['(q']}", r"training.lora_targets.0 is '\(q': it is no regular expression"),
        ("training: {quantise: nf4}", r"quantise nf4 leaves nothing for method full to train; set method: lora"),
        ("training: {lora_ranks: {q: 0}}", r"training.lora_ranks.q is '0'"),
        ("training: {lora_alphas: {'[': 1}}", r"training.lora_alphas.\[ is '\[': it is no regular expression"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, text)


def test_later_fields_leave_digests_as_they_were(tmp_path):
    spec = read(tmp_path, "training: {method: lora}")
    later = {"lora_ranks", "lora_alphas", "rslora", "dora", "lora_seed", "quantise"}
    assert not later & spec.deciding()["training"].keys()
    assert spec.digest("data") == "22c5a8cb3affb83c"  # of the version without them
    fields = (
        {"lora_ranks": {"q": 4}},
        {"lora_alphas": {"q": 4}},
        {"rslora": True},
        {"dora": True},
        {"lora_seed": 1},
        {"quantise": "nf4"},
    )
    changed = (TrainingSpec(method="lora", **one) for one in fields)
    digests = [spec.model_copy(update={"training": one}).digest("data") for one in changed]
    assert len({spec.digest("data"), *digests}) == 7


def test_digest_depends_on_what_results_depend_on(tmp_path, monkeypatch):
    spec = read(tmp_path, "training: {epochs: 3}")

    def changed(**training):
        return spec.model_copy(update={"training": TrainingSpec(epochs=3, **training)}).digest("data")

    assert changed() == spec.digest("data")
    assert changed(remat="full", checkpoint_every=5) == spec.digest("data")
    assert changed(batch_size=64) != spec.digest("data")
    assert spec.model_copy(update={"prompt": "{x}"}).digest("data") != spec.digest("data")
    assert spec.model_copy(update={"name": "other"}).digest("data") == spec.digest("data")
    assert spec.digest("other data") != spec.digest("data")
    now = spec.digest("data")
    monkeypatch.setattr("lensjax.train.spec.TOKENS_VERSION", TOKENS_VERSION + 1)
    assert spec.digest("data") != now
