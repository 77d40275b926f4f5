"""What happens to studies besides damaged files: deaths, full disks, clocks, leftovers, and inputs that change."""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager

import pytest
import yaml
from chaos_study import Scene, outcome

from lensjax.cli.main import main
from lensjax.core.artefacts import QUARANTINE, digest, sealed
from lensjax.core.errors import InputError
from lensjax.measure.measurement import Cell
from lensjax.models.hub import find_folder
from lensjax.study.cells import cells_left
from lensjax.study.deaths import MARK, marked
from lensjax.study.evidence import evidence_file
from lensjax.study.folder import read_study_folder
from lensjax.study.journal import Journal
from lensjax.study.launchers import local
from lensjax.study.report import collect
from lensjax.study.spec import read_study
from lensjax.study.state import read_state
from lensjax.study.winner import find_winner
from lensjax.train import ladder
from lensjax.train.recorder import keep_until

DEADLY = Cell("finetune", "small", 200, 1)


@pytest.fixture
def copy(scene, tmp_path):
    """A copy of the finished study."""
    return shutil.copytree(scene.whole, tmp_path / "copy")


class Death(BaseException):
    """The process dies: nothing below handles it."""


@contextmanager
def left_by_death(out, cell):
    """The mark of a cell, which stays where the process dies."""
    with marked(out, cell):
        mark = (out / MARK).read_bytes()
    (out / MARK).write_bytes(mark)
    yield
    (out / MARK).unlink()


def test_a_folder_that_only_holds_bookkeeping_is_taken(scene, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".lock").touch()  # as a full disk leaves it, before study.json
    (out / ".lensjax-x.part").touch()
    scene.run(out)
    assert outcome(out) == outcome(scene.whole)
    (out / "thesis.tex").touch()
    scene.run(out)  # what a user puts into the folder of a study is no reason to refuse it


def test_the_advice_on_an_empty_study_json_is_followed(scene, copy):
    (copy / "study.json").write_text("")
    with pytest.raises(InputError, match=r"study.json is damaged \(it is empty\); run the study again with its spec"):
        read_study_folder(copy)
    scene.run(copy)
    assert outcome(copy) == outcome(scene.whole)
    (copy / "study.json").unlink()
    with pytest.raises(InputError, match=r"study.json is missing; run the study again with its spec"):
        read_study_folder(copy)
    scene.run(copy)
    assert read_study_folder(copy).name == "study"


def test_what_killed_commands_left_is_removed_and_what_others_write_is_not(scene, copy):
    left = copy / "evidence" / "small" / ".lensjax-dead.part"
    left.write_text("half")
    handle, held = tempfile.mkstemp(dir=copy, prefix=".lensjax-", suffix=".part")
    import fcntl

    fcntl.flock(handle, fcntl.LOCK_EX)
    scene.run(copy)
    assert not left.exists()
    assert os.path.exists(held)
    os.close(handle)


def test_a_cell_that_processes_die_of_is_given_up_and_the_study_goes_on(scene, tmp_path, monkeypatch):
    out, train = tmp_path / "out", ladder.Candidate.train
    monkeypatch.setattr(local, "marked", left_by_death)

    def kills(self, run, recorder, **how):
        if (self.name, run.examples, run.seed) == ("small", 200, 1):
            raise Death
        return train(self, run, recorder, **how)

    with monkeypatch.context() as patch:
        patch.setattr(ladder.Candidate, "train", kills)
        for _ in range(3):
            with pytest.raises(Death):
                scene.run(out)
        said = scene.run(out)
    told = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    ends = [line.get("status") for line in told if line.get("cell") == list(DEADLY)]
    assert ends == ["died", "died", "died", "failed"]
    assert said[0].startswith(f"{DEADLY}: failed, the process ended 3 times while computing this cell")
    rows, _, _ = outcome(out)
    assert {row["model"] for row in rows if row["examples"] == "400"} == {"large"}
    failure = next(iter(read_state(read_study_folder(out), out).failed_cells()))
    assert "3 times" in failure.error
    assert failure.mend.startswith("Lower batch_size")
    scene.run(out, retry=True)
    assert outcome(out)[0] == outcome(scene.whole)[0]


@pytest.mark.parametrize("loss", [float("nan"), -1.0])
def test_a_loss_that_is_none_is_set_aside_with_its_reason(scene, copy, loss):
    path = copy / "runs" / "large" / "examples-400-seed-1" / "result.json"
    content = json.loads(path.read_text()) | {"loss": loss}
    del content["checksum"]  # as an earlier version wrote it
    path.write_text(json.dumps(content))
    state = read_state(read_study_folder(copy), copy)
    assert any(said.startswith("runs/large/examples-400-seed-1/result.json is left out (") for said in state.damage)
    said = scene.run(copy)
    assert said[0].startswith("runs/large/examples-400-seed-1/result.json was set aside in quarantine (loss: ")
    assert outcome(copy) == outcome(scene.whole)
    (reason,) = (copy / QUARANTINE / "reasons.jsonl").read_text().splitlines()
    assert json.loads(reason)["reason"].startswith("loss: ")


def test_kernels_that_were_exchanged_with_their_digests_are_noticed(scene, copy):
    """Whoever puts the kernel of another model in place and makes all digests fit has it said by the kernel."""
    mine, other = (evidence_file(copy, Cell("ntk", name)) for name in ("small", "large"))
    content = other.with_suffix(".npz").read_bytes()
    mine.with_suffix(".npz").write_bytes(content)
    told = json.loads(mine.read_text()) | {"arrays": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    del told["checksum"]
    mine.write_text(sealed(told))
    journal = Journal(copy, read_study_folder(copy).identity)
    journal.add(cell=Cell("ntk", "small"), digest=digest(mine.read_bytes()))
    damage = read_state(read_study_folder(copy), copy).damage
    assert damage == ["evidence/small/ntk.json is left out (it is of another cell); lensjax run makes it again."]
    said = scene.run(copy)
    assert said[0].startswith("evidence/small/ntk.json was set aside in quarantine (it is of another cell)")
    assert outcome(copy) == outcome(scene.whole)


def test_evidence_that_lacks_what_a_report_shows_is_made_again(scene, copy):
    path = evidence_file(copy, Cell("ntk", "large"))
    for changes, why in (({"effective_rank": None}, "does not hold what its measurement"), ({}, "lacks functional")):
        told = {key: value for key, value in json.loads(path.read_text()).items() if key != "checksum"} | changes
        told = told if changes else {key: value for key, value in told.items() if key != "functional"}
        path.write_text(sealed(told))
        damage = collect(read_study_folder(copy), copy).report.warnings
        assert any(f"evidence/large/ntk.json is left out (it {why}" in one for one in damage), damage
        assert why in scene.run(copy)[0]
        assert outcome(copy) == outcome(scene.whole)


@pytest.mark.parametrize("instead", ["a pipe", "/dev/zero", "odd lines"])
def test_a_report_does_without_a_log_that_is_none(scene, copy, instead):
    path = copy / "runs" / "large" / "examples-400-seed-0" / "log.jsonl"
    path.unlink()
    if instead == "odd lines":
        lines = ['{"step": 1, "validation_loss": 2.0}', "[" * 100_000, '"x"', f'{{"step": {10**400}}}', "[1]"]
        lines += ['{"step": NaN, "validation_loss": 1.5}', '{"step": true, "validation_loss": 1.5}']
        lines += ['{"step": 1, "validation_loss": 1.5}', '{"step": 2, "validation_loss": 1.0}']
        path.write_text("\n".join(lines))
    elif instead == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(instead)
    findings = collect(read_study_folder(copy), copy)
    known = {(one.model, one.examples): one for one in findings.report.learning}
    assert findings.report.decision.model == "large"
    if instead == "odd lines":
        assert (known["large", 400].steps, known["large", 400].losses) == ((1, 2), (2.0, 1.0))
        keep_until(path, 1)
        assert path.read_text().splitlines()[0] == lines[0]
        assert len(path.read_text().splitlines()) == 3
    else:
        assert ("large", 400) not in known


@pytest.mark.parametrize("place", ["runs/small", "runs/large/examples-200-seed-1", "evidence"])
def test_what_lies_in_the_place_of_a_folder_of_results_is_set_aside(scene, copy, place):
    shutil.rmtree(copy / place)
    (copy / place).symlink_to(place.rsplit("/")[-1])  # a circle
    damage = read_state(read_study_folder(copy), copy).damage
    assert f"{place} is left out (it is no folder, and one belongs there); lensjax run makes it again." in damage
    scene.run(copy)
    assert outcome(copy) == outcome(scene.whole)


def test_a_file_without_end_is_refused_with_advice(scene, copy):
    path = copy / "runs" / "large" / "examples-400-seed-0" / "result.json"
    os.truncate(path, 10**12)
    for command in (lambda: read_state(read_study_folder(copy), copy), lambda: scene.run(copy)):
        with pytest.raises(InputError, match=r"result.json is larger than 512 MB; remove it, and it is made again, or"):
            command()
    path.unlink()
    scene.run(copy)
    assert outcome(copy) == outcome(scene.whole)


@pytest.fixture
def read_only(copy):
    """The copy, on a disk that can only be read."""
    try:
        subprocess.run(["mount", "-o", "bind,ro", copy, copy], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("nothing can be mounted here")
    yield copy
    subprocess.run(["umount", "-l", copy], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a disk that can only be read")
def test_a_study_that_can_only_be_read_is_reported_elsewhere(scene, copy, read_only, tmp_path, capsys):
    assert cells_left(read_study(scene.file), read_only) == []
    assert find_winner(read_only).name == "large"
    with pytest.raises(SystemExit):
        main(["report", str(read_only)])
    assert "Read-only file system; choose another place" in capsys.readouterr().err
    main(["report", str(read_only), "--out", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out" / "report.json").read_text())["decision"]["model"] == "large"
    with pytest.raises(SystemExit):
        main(["report", str(read_only), "--out", str(tmp_path / "out" / "report.json")])
    assert "is no folder, and one belongs there; remove it, or choose another place" in capsys.readouterr().err
    other = shutil.copytree(scene.whole, tmp_path / "other")
    main(["report", str(read_only), str(other), "--out", str(tmp_path / "both")])
    assert "cannot be written, so that its own report stays as it is" in capsys.readouterr().out
    assert (tmp_path / "both" / "comparison.html").exists()
    with pytest.raises(InputError, match="Read-only file system; choose another place"):
        scene.run(read_only)


def test_files_from_the_future_are_as_good_as_others(scene, copy):
    scene.computed.clear()
    later = time.time() + 3600
    for path in copy.rglob("*"):
        os.utime(path, (later, later))
    scene.run(copy)
    assert scene.computed == []
    assert outcome(copy) == outcome(scene.whole)


def test_a_changed_byte_of_the_weights_is_noticed_at_start_and_in_reports(scene, tmp_path):
    model = shutil.copytree(find_folder("pocket:gpt2-0.2m"), tmp_path / "model")
    content = yaml.safe_load(scene.file.read_text())
    content["candidates"][0]["source"] = str(model)
    content["task"]["source"] = {"files": str(scene.file.parent / "numbers.jsonl")}
    ours = Scene(tmp_path / "study.yaml")
    ours.file.write_text(yaml.safe_dump(content))
    ours.run(ours.whole, limit=4)
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError) as refused:
        ours.run(ours.whole)
    said = str(refused.value)
    assert said.startswith(f"The files of {model} have changed: they were used as ")
    assert "small, kernel" in said
    assert "small, 0 examples, seed 0" in said
    assert "give back the files that it had, or give the candidate small another name" in said
    damage = read_state(read_study_folder(ours.whole), ours.whole).damage
    assert any(one.startswith(f"The files of {model} have changed") for one in damage)

    content["candidates"][0]["name"] = "changed"  # the one advice
    ours.file.write_text(yaml.safe_dump(content))
    ours.run(ours.whole, limit=1)
    weights.write_bytes(whole)  # the other
    content["candidates"][0]["name"] = "small"
    ours.file.write_text(yaml.safe_dump(content))
    ours.run(ours.whole)
    assert outcome(ours.whole)[0] == outcome(scene.whole)[0]


def test_reports_tell_of_rows_that_changed(scene, copy):
    rows = scene.file.parent / "numbers.jsonl"
    before = rows.read_bytes()
    try:
        rows.write_bytes(before + b"\n")
        damage = read_state(read_study_folder(copy), copy).damage
    finally:
        rows.write_bytes(before)
    assert [f"{rows} has changed since the study last ran" in one for one in damage] == [True]


@pytest.mark.skipif("LENSJAX_TEST_CHAOS" not in os.environ, reason="takes a minute; .ci/run sets LENSJAX_TEST_CHAOS")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_at_any_point_costs_nothing(scene, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(size, *how):
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}k", *how]), "tmpfs", str(disk)],
            check=True,
            capture_output=True,
        )

    try:
        mount(4)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("nothing can be mounted here")
    subprocess.run(["umount", str(disk)], check=True)
    full, said = [], []
    for size in range(4, 420, 24):
        mount(size)
        try:
            try:
                scene.run(disk / "out")
            except InputError as error:
                full.append(size)
                said.append(str(error))
            mount(8000, "remount")
            scene.run(disk / "out")
            assert outcome(disk / "out") == outcome(scene.whole), size
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)
    assert len(full) > 5
    assert all("No space left on device" in one for one in said)
