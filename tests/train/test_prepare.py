"""Tokens beside the results: made once, and without what killed commands left."""

import numpy as np
import pytest

import lensjax.models
from lensjax.tasks.tokens import Tokens
from lensjax.tasks.writing import Writing
from lensjax.train import prepare
from lensjax.train.prepare import read_examples, tokenise_all


@pytest.fixture
def model(pretrained):
    return lensjax.models.load(pretrained("gpt2"))


def made(out):
    """Names and times of the folders of tokens."""
    return {path.name: path.stat().st_mtime_ns for path in (out / "tokens").iterdir()}


def test_tokens_are_made_once_and_what_killed_commands_left_is_removed(make_spec, model, tmp_path):
    spec = make_spec()
    examples = read_examples(spec, [0, 200], [0, 1])
    first = tokenise_all(examples, model, spec, tmp_path)
    before = made(tmp_path)
    assert len(before) == 4
    assert [len(tokens) for tokens in first.train.values()] == [200, 200]
    assert first.writing == Writing(rows=len(examples.sample))
    others = tmp_path / "tokens" / ".lensjax-of-another-task-x7.part"
    for folder in (*(tmp_path / "tokens" / f".lensjax-{name}-x7.part" for name in before), others):
        folder.mkdir()
        (folder / "ids.npy").write_bytes(b"half of it")
    again = tokenise_all(examples, model, spec, tmp_path)
    assert made(tmp_path).keys() == before.keys() | {others.name}
    assert made(tmp_path) | before == made(tmp_path)
    for seed in (0, 1):
        np.testing.assert_array_equal(again.train[seed].ids, first.train[seed].ids)


def test_tokens_of_another_version_are_not_used(make_spec, model, tmp_path, monkeypatch):
    spec = make_spec()
    monkeypatch.setattr(prepare, "TOKENS_VERSION", prepare.TOKENS_VERSION - 1)
    tokenise_all(read_examples(spec, [200], [0]), model, spec, tmp_path)
    before = made(tmp_path)
    monkeypatch.undo()
    tokenise_all(read_examples(spec, [200], [0]), model, spec, tmp_path)
    assert made(tmp_path) | before == made(tmp_path)
    assert len(made(tmp_path)) == 2 * len(before) == 6


def test_a_command_that_is_writing_the_same_tokens_loses_nothing(make_spec, model, tmp_path, monkeypatch):
    spec = make_spec()
    examples = read_examples(spec, [200], [0])
    save = Tokens.save

    def after_another(tokens, folder):
        """Save when another command has come first, and has removed what this one had written."""
        monkeypatch.setattr(Tokens, "save", save)
        tokenise_all(examples, model, spec, tmp_path)
        monkeypatch.setattr("numpy.save", lambda *args, **kwargs: (_ for _ in ()).throw(FileNotFoundError(2, "gone")))
        try:
            save(tokens, folder)
        finally:
            monkeypatch.undo()

    monkeypatch.setattr(Tokens, "save", after_another)
    assert len(tokenise_all(examples, model, spec, tmp_path).train[0]) == 200


def test_the_fingerprint_of_training_examples_is_computed_once(make_spec, model, tmp_path, monkeypatch):
    spec = make_spec(validation=6, test=8)
    examples = read_examples(spec, [200], [0])
    sizes = []
    real = prepare.fingerprint
    monkeypatch.setattr(prepare, "fingerprint", lambda rows: sizes.append(len(rows)) or real(rows))
    tokenise_all(examples, model, spec, tmp_path)
    assert sizes == [6, 8]
