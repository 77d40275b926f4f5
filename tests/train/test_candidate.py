"""A model that is too large, before training and in it."""

import json
import math
import shutil

import jax
import pytest
from safetensors.numpy import load_file, save_file

import lensjax.models
from lensjax.cli.main import main
from lensjax.core.errors import InputError
from lensjax.tasks.packing import PackedShape
from lensjax.tasks.spec import read_spec
from lensjax.train.candidate import Candidate
from lensjax.train.estimate import AbstractCandidate
from lensjax.train.prepare import read_examples
from lensjax.train.recorder import Recorder
from lensjax.train.runs import open_folder
from lensjax.train.spec import FinetuneSpec

DEVICE = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes.\nAnd more.")
HOST = MemoryError("Unable to allocate 16.0 GiB")


@pytest.fixture
def make_candidate(make_spec, pretrained, tmp_path):
    """Makes a candidate that is to be tested without training, on a number of devices."""

    def make(devices=1, **training):
        spec = make_spec(**training)
        mesh = lensjax.models.make_mesh(f"fsdp={devices}", jax.devices()[:devices])
        return Candidate(spec, str(pretrained("gpt2")), "tiny", read_examples(spec, [0], [0]), tmp_path / "out", mesh)

    return make


@pytest.fixture
def load_fails(monkeypatch):
    """Makes loading a model raise an error."""

    def make(error):
        def load(*args, **kwargs):
            raise error

        monkeypatch.setattr("lensjax.train.candidate.load", load)

    return make


@pytest.mark.eight_devices
@pytest.mark.parametrize("error", [DEVICE, HOST], ids=["devices", "host"])
def test_a_model_that_does_not_fit_is_named_in_one_sentence(make_candidate, load_fails, pretrained, error):
    load_fails(error)
    with pytest.raises(InputError, match="gpt2 does not fit in the memory of one device; take a smaller") as caught:
        make_candidate()
    assert str(caught.value).startswith(str(pretrained("gpt2")))
    assert str(caught.value).endswith("or method lora, which trains few parameters.")
    with pytest.raises(InputError, match=r"of 2 devices; take a smaller model, or more devices along fsdp\.$"):
        make_candidate(2, method="lora")


@pytest.mark.eight_devices
def test_the_command_ends_with_2(save_task, load_fails, pretrained, tmp_path, capsys):
    load_fails(DEVICE)
    with pytest.raises(SystemExit, match="2"):
        main(
            [
                "finetune",
                str(save_task()),
                "--model",
                str(pretrained("gpt2")),
                "--examples",
                "0",
                "--out",
                str(tmp_path / "out"),
            ]
        )
    said = capsys.readouterr().err
    assert said.startswith("lensjax: ")
    assert said.count("\n") == 1
    assert "does not fit in the memory of 8 devices" in said


def test_other_errors_of_devices_are_not_taken_for_it(make_candidate, load_fails):
    load_fails(jax.errors.JaxRuntimeError("INTERNAL: the device is on fire"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="on fire"):
        make_candidate()


@pytest.mark.parametrize("error", [DEVICE, HOST], ids=["devices", "host"])
def test_a_run_that_does_not_fit_is_a_failed_row(make_candidate, monkeypatch, error):
    candidate = make_candidate()

    def test(*args):
        raise error

    monkeypatch.setattr(candidate, "test", test)
    run = candidate.planned(0, 0, 0.0)
    result = candidate.train(run, Recorder(candidate.dtype, 1))
    assert result.status == "failed"
    assert "ran out of memory; lower batch_size" in result.error
    assert json.loads((run.folder / "result.json").read_text())["status"] == "failed"


def test_a_result_says_what_is_not_known_of_cut_targets(make_candidate, make_spec, pretrained, tmp_path):
    whole = make_candidate()
    result = whole.train(whole.planned(0, 0, 0.0), Recorder(whole.dtype, 1))
    assert result.note == ""
    assert result.nats_per_example == pytest.approx(result.loss * result.test_tokens / result.test_examples)
    assert result.test_bytes == sum(len(example.target) for example in whole.examples.test)

    limited = make_spec().model_copy(update={"max_target_tokens": 5})
    examples, mesh = read_examples(limited, [0], [0]), whole.mesh
    cut = Candidate(limited, str(pretrained("gpt2")), "tiny", examples, tmp_path / "cut", mesh)
    found = cut.train(cut.planned(0, 0, 0.0), Recorder(cut.dtype, 1))
    count = int(cut.tokens.test.target_cut.sum())
    assert found.note == f"nats_per_example is not known: {count} of the test targets were cut at max_target_tokens"
    assert found.nats_per_example is None
    assert 0 < found.test_bytes < result.test_bytes
    nats = found.loss * found.test_tokens
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / found.test_bytes)


def test_packed_conversations_are_trained_planned_and_described(pretrained, tmp_path):
    def turn(role, n):
        return {"role": role, "content": "two " * (8 if n % 6 == 0 else 1) + f"{n}"}

    rows = [[turn(role, n) for role in ("user", "assistant")] for n in range(60)]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    training = {"packing": True, "batch_size": 8, "learning_rate": 1e-3, "max_steps": 4, "evaluate_every": 4}
    fields = {"source": {"files": "chat.jsonl"}, "validation": 12, "test": 12, "training": training}
    (tmp_path / "chat.yaml").write_text(json.dumps(fields))
    spec = read_spec(tmp_path / "chat.yaml", FinetuneSpec)
    examples, mesh = read_examples(spec, [32], [0]), lensjax.models.make_mesh("data=1", jax.devices()[:1])
    open_folder(tmp_path / "out", spec, examples.digest)
    candidate = Candidate(spec, str(pretrained("gpt_neox")), "tiny", examples, tmp_path / "out", mesh)
    result = candidate.make(candidate.planned(32, 0, 1e-3), Recorder(candidate.dtype, 1))
    assert (result.status, result.steps) == ("ok", 4)
    assert (
        result.note == "the tokenizer has no chat template, so conversations are in a plain one (User: … Assistant: …)"
    )
    contents = [turn.content for one in examples.test for turn in one.turns if turn.role == "assistant"]
    assert result.test_bytes == sum(map(len, contents)) > 0
    plan = AbstractCandidate(spec, str(pretrained("gpt_neox")), examples, mesh)
    assert plan.step_shapes == candidate.step_shapes
    shape = next(one for one in plan.step_shapes if isinstance(one, PackedShape))
    assert plan.flops(plan.work(0, 32)) == result.flops
    assert plan.rows(shape, plan.placement)["segment_ids"].shape == (shape.rows, shape.length)
    with pytest.raises(InputError, match=r"training\.packing is true, and t5 models cannot keep several examples"):
        Candidate(spec, str(pretrained("t5")), "other", examples, tmp_path / "out", mesh)


def test_knowing_the_memory_compiles_nothing_that_training_does_not(prepare):
    count = {"now": 0}

    def listen(event, seconds, **how):
        count["now"] += event.endswith("backend_compile_duration")

    jax.monitoring.register_event_duration_secs_listener(listen)
    compiled = []
    for knows in (False, True):
        candidate, recorder = prepare([40], out=f"knows {knows}", max_steps=2)
        candidate._over_memory = not knows
        before = count["now"]
        candidate.make(candidate.planned(40, 0, 1e-3), recorder)
        compiled.append(count["now"] - before)
    assert compiled[1] <= compiled[0]


@pytest.mark.parametrize("examples", [0, 40])
def test_weights_that_are_nan_are_named(prepare, pretrained, tmp_path, examples):
    folder = shutil.copytree(pretrained("gpt2"), tmp_path / "broken")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if "mlp" in name)
    tensors[name].flat[3] = math.nan
    save_file(tensors, path, metadata={"format": "pt"})
    candidate, recorder = prepare([examples], source=folder, max_steps=3)
    with pytest.raises(InputError, match=f"broken/model.safetensors holds NaN or infinity in the tensor {name}; fetch"):
        candidate.make(candidate.planned(examples, 0, 1e-3 if examples else 0.0), recorder)
