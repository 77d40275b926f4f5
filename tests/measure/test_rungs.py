"""Fine-tuned models that evidence is measured at."""

import json

import pytest

from lensjax.core.errors import InputError
from lensjax.measure.rungs import find_runs
from lensjax.tasks.tokens import TOKENS_VERSION
from lensjax.train.results import Result, write_result


def test_models_that_were_trained_on_other_tokens_are_refused(tmp_path):
    run = tmp_path / "out" / "tiny" / "examples-200-seed-0"
    (run / "model").mkdir(parents=True)
    write_result(run, Result(model="tiny", examples=200, loss=1.0, seed=0, size=1, family="gpt2"))
    kept = tmp_path / "out" / "spec.json"
    for tokens in ({}, {"tokens": TOKENS_VERSION - 1}):
        kept.write_text(json.dumps({"digest": "one", "spec": {}} | tokens))
        for folder in (run, run.parent):
            with pytest.raises(InputError, match="was fine-tuned by another version of LensJAX, which made other tok"):
                find_runs([folder], "tiny")
    kept.write_text(json.dumps({"digest": "one", "tokens": TOKENS_VERSION, "spec": {}}))
    assert [found.folder for found in find_runs([run], "tiny")] == [run]
    kept.write_text("{}")  # of something else
    assert len(find_runs([run.parent], "tiny")) == 1
