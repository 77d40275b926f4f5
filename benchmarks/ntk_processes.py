"""Processes in which the contenders of `ntk.py` compute, some with Python packages of their own."""

import contextlib
import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import ntk_peers
from parts import Json

# The newest JAX with which neural-tangents computes these kernels.
NEURAL_TANGENTS = (
    "absl-py==2.3.1",
    "frozendict==2.4.6",
    "jax==0.5.3",
    "jaxlib==0.5.3",
    "ml_dtypes==0.5.1",
    "neural-tangents==0.6.5",
    "numpy==2.2.6",
    "opt_einsum==3.4.0",
    "scipy==1.15.3",
    "typing_extensions==4.14.1",
)

# The newest with which it has structured derivatives too.
STRUCTURED = (
    "absl-py==2.3.1",
    "frozendict==2.4.6",
    "jax==0.4.25",
    "jaxlib==0.4.25",
    "ml_dtypes==0.5.1",
    "neural-tangents==0.6.5",
    "numpy==1.26.4",
    "opt_einsum==3.4.0",
    "scipy==1.13.1",
    "typing_extensions==4.14.1",
)


@contextlib.contextmanager
def contender(name: str, folder: Path, neural_tangents: str = "", structured: str = "") -> Iterator[Callable[[], Json]]:
    """What computes the kernel of a case in a process of its own, and gives seconds and memory.

    Args:
      name: Of a contender of `ntk_peers`.
      folder: Of the case.
      neural_tangents: Python that has neural-tangents.
      structured: Python that has it with structured derivatives.
    """
    python = neural_tangents if name in ntk_peers.NEURAL_TANGENTS else sys.executable
    python = structured if name in ntk_peers.STRUCTURED else python
    messages = (folder / f"{name}.txt").open("w+", encoding="utf-8")
    with (
        messages,
        subprocess.Popen(
            [python, ntk_peers.__file__, name, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None

        def run() -> Json:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write("\n")
                process.stdin.flush()
            answer = process.stdout.readline()
            if not answer:
                raise RuntimeError(f"{name} ended: {Path(messages.name).read_text(encoding='utf-8')[-2000:]}")
            return json.loads(answer)

        try:
            yield run
        finally:
            process.kill()
            with contextlib.suppress(BrokenPipeError):  # of a line that nobody read
                process.stdin.close()


def install_neural_tangents(folder: Path, packages: Sequence[str] = NEURAL_TANGENTS) -> str:
    """Python of an environment that has neural-tangents, made where there is none; empty where that cannot be."""
    python = folder.absolute() / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    wanted = folder / "installed.txt"
    if wanted.exists() and wanted.read_text(encoding="utf-8").split() == list(packages):
        return str(python)
    print(f"Installing neural-tangents into {folder}")
    try:
        venv.create(folder, with_pip=True)
        # Without what it says it needs: that is TensorFlow, for parts that are not used here.
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, *packages], check=True, capture_output=True, text=True)
        check = "import ntk_peers; ntk_peers.import_neural_tangents()"
        there = Path(ntk_peers.__file__).parent
        subprocess.run([str(python), "-c", check], check=True, capture_output=True, text=True, cwd=there)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"neural-tangents is skipped: {getattr(error, 'stderr', None) or error}")
        return ""
    wanted.write_text("\n".join(packages) + "\n", encoding="utf-8")
    return str(python)
