"""Batches beyond the machine's memory: refused with what helps, which then helps; and trained all the same if told."""

import pytest

from lensjax.cli.main import main
from lensjax.models import make_mesh
from lensjax.study.bench import Bench
from lensjax.study.runner import run_study
from lensjax.study.spec import read_study
from lensjax.train import memory
from lensjax.train.estimate import AbstractCandidate

SHORT = {"learning_rate": 3e-3, "batch_size": 16, "epochs": 1, "max_steps": 2}
HELP = "in its training, set a smaller batch_size or more accumulation or remat full or method lora"
MENDS = [{"remat": "full"}, {"method": "lora"}]  # beside accumulation, with which the study goes on


@pytest.fixture(scope="module")
def peaks(write_study, tiny_models, tmp_path_factory):
    """The bytes that fine-tuning llama takes, as it is and with each mend."""
    folder = tmp_path_factory.mktemp("peaks")
    (llama,) = tiny_models("llama")
    mended = [llama, *({"source": llama, "name": f"mended-{n}", "training": one} for n, one in enumerate(MENDS))]
    file = write_study(folder, training=SHORT, candidates=mended)
    spec, found = read_study(file), []
    bench, mesh = Bench(spec, folder), make_mesh("data=1")
    for one in spec.candidates:
        settings = spec.finetune_spec(one), one.source, bench.examples(one.name), mesh
        found.append(AbstractCandidate(*settings).memory.peak)
    return found


@pytest.mark.long
def test_a_batch_beyond_the_memory_is_refused_unless_told_and_what_the_sentence_says_helps(
    peaks, write_study, tiny_models, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(memory, "device_memory", lambda mesh: peaks[0] - 1)  # gpt_neox takes less
    sources, out = tiny_models("gpt_neox", "llama"), tmp_path / "study"
    with pytest.raises(SystemExit) as end:
        main(["run", str(write_study(tmp_path, training=SHORT, candidates=sources)), "--out", str(out)])
    assert end.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("lensjax: A batch of llama needs 1.9 MB of memory, and this machine has 1.9 MB; ")
    assert said.endswith(f"; {HELP}, or go on with --over-memory.")

    def goes_on(candidates, **how):
        spec = read_study(write_study(tmp_path, training=SHORT, candidates=candidates))
        cells = [entry for entry in run_study(spec, out, **how).entries if entry.cell is not None]
        assert not any(entry.error for entry in cells)
        return str(cells[-1].cell)

    assert goes_on(sources, limit=1, over_memory=True) == "llama, 200 examples, seed 0"
    assert all(peak < peaks[0] for peak in peaks[1:])
    mended = {"source": sources[1], "name": "llama", "training": {"accumulation": 8}}
    assert goes_on([sources[0], mended], limit=2) == "llama, 200 examples, seed 0"
