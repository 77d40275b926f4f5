"""A whole ladder: nested runs, a learning rate chosen on the first, rows that `lensjax rank` reads."""

import csv
import json
import math

import jax
import numpy as np
import pytest

from lensjax.core.errors import InputError
from lensjax.curves.csv_files import read_curves
from lensjax.curves.units import BITS_PER_BYTE
from lensjax.models import load
from lensjax.models.peft import load_adapters
from lensjax.train.ladder import measure
from lensjax.train.prepare import rungs
from lensjax.train.results import read_result, write_curves


def test_rungs_double_from_200():
    assert rungs(199) == [0]
    assert rungs(200) == [0, 200]
    assert rungs(3200) == [0, 200, 400, 800, 1600, 3200]
    assert rungs(3199) == [0, 200, 400, 800, 1600]


def test_a_ladder_is_measured_once_and_ranked(prepare, tmp_path):
    sizes = rungs(400)
    candidate, recorder = prepare(sizes, learning_rate=[1e-4, 3e-3], seeds=(0, 1))
    results = list(measure(candidate, sizes, (0, 1), recorder))
    assert [(r.seed, r.examples) for r in results] == [(seed, size) for seed in (0, 1) for size in sizes]
    losses = {(r.seed, r.examples): r.bits_per_byte for r in results}
    assert losses[0, 0] == losses[1, 0] > losses[0, 200] > losses[0, 400]
    assert losses[0, 200] != losses[1, 200]
    assert all(r.status == "ok" and r.learning_rate in (None, 3e-3) for r in results)
    assert candidate.programs.step._cache_size() <= 2
    assert candidate.programs.losses._cache_size() == 1

    chosen = json.loads((candidate.folder / "learning_rate.json").read_text())
    assert chosen["learning_rate"] == 3e-3
    assert chosen["validation_losses"]["0.003"] < chosen["validation_losses"]["0.0001"]

    table = read_curves(tmp_path / "out" / "curves.csv")
    assert table.unit == BITS_PER_BYTE
    np.testing.assert_allclose(table.column(400), np.mean([losses[0, 400], losses[1, 400]]))
    np.testing.assert_array_equal(table.seeds, 2)
    assert table.parameters[0] == sum(leaf.size for leaf in jax.tree.leaves(candidate.pretrained().params))
    assert table.families == ("gpt2",)

    log = [
        json.loads(line) for line in (candidate.folder / "examples-400-seed-0" / "log.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in log if "loss" in line] == list(range(1, results[2].steps + 1))
    speeds = [line["tokens_per_second"] for line in log if "tokens_per_second" in line]
    assert speeds
    assert min(speeds) > 0
    assert results[2].validation_loss in [line.get("validation_loss") for line in log]
    assert results[2].tokens > 400 * results[2].steps / 25

    left = candidate.folder / "examples-400-seed-0" / "checkpoints" / "50"
    left.mkdir(parents=True)  # as where a run was killed between writing its result and removing them
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("result.json")}
    again = list(measure(candidate, sizes, (0, 1), recorder))
    assert again == results
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("result.json")} == before
    assert not left.exists()


def test_a_run_that_diverges_is_a_failed_row_and_others_go_on(prepare, tmp_path):
    candidate, recorder = prepare([0, 200], learning_rate=1e30, clip=1e30, warmup=0)
    results = list(measure(candidate, [0, 200], (0,), recorder))
    assert [r.status for r in results] == ["ok", "failed"]
    assert "loss is nan" in results[1].error or "is inf" in results[1].error
    with (tmp_path / "out" / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[1]["loss"] == ""
    assert rows[1]["status"] == "failed"
    assert read_curves(tmp_path / "out" / "curves.csv").points()[0] == 0
    assert list(measure(candidate, [0, 200], (0,), recorder)) == results  # and not tried again


def test_adapters_are_merged_in_what_is_saved(prepare):
    import torch
    from transformers import AutoModelForSeq2SeqLM

    candidate, recorder = prepare([200], "t5", method="lora", learning_rate=1e-2, validation=4, test=8)
    (result,) = measure(candidate, [200], (0,), recorder, save_models=True)
    assert result.method == "lora"
    folder = candidate.folder / "examples-200-seed-0" / "model"
    theirs = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    test = candidate.tokens.test
    total = 0.0
    for i in range(len(test)):
        ids, labels = (torch.tensor(np.array(part))[None].long() for part in (test.prompt(i), test.target(i)))
        with torch.no_grad():
            total += float(theirs(input_ids=ids, labels=labels).loss) * labels.numel()
    assert total / result.test_tokens == pytest.approx(result.loss, rel=1e-5)
    assert total / result.test_examples == pytest.approx(result.nats_per_example, rel=1e-5)
    assert result.test_bytes == sum(len(example.target) for example in candidate.examples.test)  # all in ASCII
    assert total / math.log(2) / result.test_bytes == pytest.approx(result.bits_per_byte, rel=1e-5)
    assert 0 <= result.exact_match <= result.token_accuracy <= 1
    assert result.bits_per_byte_error > 0
    adapted = load_adapters(load(candidate.source), folder.parent / "adapters").merged().params
    jax.tree.map(lambda ours, saved: np.testing.assert_allclose(ours, saved, atol=1e-7), adapted, load(folder).params)

    assert result.note == ""


def test_a_damaged_result_is_named(tmp_path):
    run = tmp_path / "tiny" / "examples-0-seed-0"
    run.mkdir(parents=True)
    assert read_result(run) is None
    (run / "result.json").write_text('{"model": "tiny"')
    with pytest.raises(InputError, match=r"result.json is damaged .*; remove it"):
        write_curves(tmp_path, 0.0)


def test_the_order_of_examples_depends_on_no_other_rung_or_seed(prepare):
    one, _ = prepare([200], out="one")
    other, _ = prepare([0, 200, 400], out="other", seeds=(0, 3))
    assert one.tokens.lengths[0] == other.tokens.lengths[0]
    assert one.fingerprint(one.planned(200, 0, 0.1)) == other.fingerprint(other.planned(200, 0, 0.1))
