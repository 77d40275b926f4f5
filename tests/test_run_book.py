"""Commands of docs/run_book.md: shells parse them, their programs have such options, and LensJAX takes its own."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from lensjax.cli.main import main
from lensjax.core.devices import topology_devices

PAGE = (Path(__file__).parents[1] / "docs" / "run_book.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    (\S.*)$", PAGE.partition("```")[0] + PAGE.rpartition("```")[2], re.MULTILINE)

# As the references of these programs list them.
GCLOUD = {
    ("tpu-vm", "create"): {"zone", "accelerator-type", "version", "spot"},
    ("tpu-vm", "ssh"): {"zone", "worker", "command"},
    ("tpu-vm", "scp"): {"zone", "worker"},
    ("tpu-vm", "delete"): {"zone", "quiet"},
    ("queued-resources", "create"): {
        "zone", "accelerator-type", "runtime-version", "node-count", "node-prefix", "node-id", "spot",
    },
    ("queued-resources", "ssh"): {"zone", "node", "worker", "command"},
    ("queued-resources", "delete"): {"zone", "force", "quiet"},
}  # fmt: skip
OTHERS = {
    ("xpk", "workload", "create"): {
        "cluster", "workload", "tpu-type", "num-slices", "max-restarts", "docker-image", "command",
    },
    ("sbatch",): {"nodes", "ntasks-per-node", "gpus-per-node", "requeue", "wrap"},
    ("srun",): {"kill-on-bad-exit"},
    ("ray", "start"): {"head"},
    ("pip", "install"): set(),
    ("sudo", "apt-get"): {"yes"},
}  # fmt: skip
CHIPS = {"v5litepod-16": "v5e:4x4", "v5p-64": "v5p:2x4x4"}


def options(words: list[str]) -> dict[str, str]:
    """Options of a command, and their values."""
    return dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))


def inner(words: list[str]) -> list[str]:
    """Commands that a command hands to other machines."""
    given = options(words)
    return [given[name] for name in ("command", "wrap") if name in given]


def simple(line: str) -> list[list[str]]:
    """The commands that a line joins by && and ||."""
    parts: list[list[str]] = [[]]
    for word in shlex.split(line):
        if word in ("&&", "||"):
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def checked(line: str) -> int:
    """Check a line and what it hands on, and count the commands of LensJAX in it."""
    subprocess.run(["bash", "-n", "-c", line], check=True)
    found = 0
    for words in simple(line):
        known = next((names for start, names in OTHERS.items() if tuple(words[: len(start)]) == start), None)
        if words[0] == "gcloud":
            assert words[1:3] == ["compute", "tpus"], line
            known = GCLOUD[words[3], words[4]]
        own = next((place for place, word in enumerate(words) if word.rpartition("/")[2] == "lensjax"), None)
        if own is not None and words[0] not in ("pip", "gcloud", "xpk", "sbatch"):
            with pytest.raises(SystemExit) as ended:
                main([*words[own + 1 :], "--help"])  # which parses what is before it
            assert ended.value.code == 0, line
            words, found = words[:own], found + 1
        assert known is not None or not options(words), line
        assert options(words).keys() <= (known or set()), line
        found += sum(map(checked, inner(words)))
    return found


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_what_their_programs_take(line, capsys):
    assert checked(line) == (1 if "lensjax " in line else 0)


def test_there_are_commands_for_each_pod():
    made = [options(shlex.split(line)) for line in COMMANDS if " create " in line and "gcloud" in line]
    assert [one["accelerator-type"] for one in made] == ["v5litepod-16", "v5p-64", "v5litepod-16"]
    planned = [words[words.index("--topology") + 1] for line in COMMANDS if "plan" in (words := shlex.split(line))]
    assert planned == ["v5e:4x4", "v5p:2x4x4", "v5e:4x4:2"]


@pytest.mark.parametrize(("name", "topology"), CHIPS.items())
def test_slices_have_the_chips_that_are_planned_for(name, topology):
    pytest.importorskip("libtpu", reason="topologies are those of libtpu")
    chips = {"v5litepod-16": 16, "v5p-64": 32}[name]
    assert name in PAGE
    assert len(topology_devices(topology)) == chips


def test_the_job_of_kubernetes_is_one():
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    job = yaml.safe_load(text)
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"]
    chips = spec["completions"] * container["resources"]["limits"]["google.com/tpu"]
    sides = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    assert chips == int(sides[0]) * int(sides[1])
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    with pytest.raises(SystemExit) as ended:
        main([*container["command"][1:], "--help"])
    assert ended.value.code == 0
