"""Computing the cells of a study on a Ray cluster, side by side, each on one host or on several together."""

import logging
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lensjax.core.errors import InputError, PeerLost, one_line
from lensjax.core.presets import VARIABLE, preset_in_use, use_preset
from lensjax.core.processes import start_processes
from lensjax.core.signals import stop_requested, stopping_on_signals
from lensjax.measure.measurement import FINETUNE, Cell
from lensjax.study.bench import Bench, Outcome
from lensjax.study.launching import LAUNCHERS, Launch
from lensjax.study.spec import Resources, StudySpec
from lensjax.train.loop import Stopped

_POLL = 1.0  # seconds between looks at whether to stop
_Study = tuple[str, str, bool, bool]  # a bench in a few words: its spec, folder, retry and over_memory
_benches: dict[_Study, Bench] = {}  # of a worker, whose programs stay compiled from one cell to the next


@LAUNCHERS.register("ray")
@contextmanager
def ray_launcher(bench: Bench) -> Iterator[Launch]:
    """Within it, cells are computed on the Ray cluster that RAY_ADDRESS names, or else on this machine alone.

    Every host must see the study's folder, its models and its data under the same paths.

    Raises:
      InputError: Ray is not installed, or the cluster cannot be reached.
    """
    if os.environ.get("RAY_ADDRESS", "local") == "local":
        # A cluster of this machine alone listens on its loopback; Ray reads this when it is imported.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "The launcher ray needs Ray; install it with: pip install 'lensjax[ray]', or use --launcher local."
        ) from error

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    started = not ray.is_initialized()
    if started:
        try:
            flags = {"env_vars": _flags()} if _flags() else None
            ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False, runtime_env=flags)
        except Exception as error:  # of many kinds
            raise InputError(f"Ray does not start or answer ({one_line(error)}); see its address and logs.") from error
    try:
        yield _Cluster(bench)
    finally:
        if started:
            ray.shutdown()


class _Cluster:
    """Launches cells as tasks of the Ray cluster that this process is connected to."""

    def __init__(self, bench: Bench) -> None:
        self.spec = spec = bench.spec
        self.study = spec.model_dump_json(), str(bench.out.absolute()), bench.retry, bench.over_memory
        for candidate in spec.candidates:
            _check_room(candidate.resources or spec.resources)

    def __call__(self, cells: Iterable[Cell]) -> Iterator[tuple[Cell, Outcome]]:
        """Each cell and how it ended, in the order in which they end.

        Raises:
          Stopped: this process was told to end; the cells under way are cancelled.
        """
        import ray

        waiting, running = list(cells), dict[Any, Cell]()
        with stopping_on_signals():
            while waiting or running:
                for cell in list(waiting):
                    if self._may_start(cell, running.values()):
                        waiting.remove(cell)
                        running[self._start(cell)] = cell
                ended, _ = ray.wait(list(running), timeout=_POLL)
                for reference in ended:
                    yield running.pop(reference), _outcome(reference)
                if stop_requested():
                    for reference in running:
                        ray.cancel(reference)
                    raise Stopped

    def _may_start(self, cell: Cell, running: Iterable[Cell]) -> bool:
        """Whether a cell need not wait for one that is choosing its candidate's learning rate."""
        training = self.spec.finetune_spec(self.spec.candidate(cell.model)).training
        alone = cell.kind == FINETUNE and len(training.learning_rates) > 1
        return not (alone and any((other.kind, other.model) == (cell.kind, cell.model) for other in running))

    def _start(self, cell: Cell) -> Any:
        import ray

        needed = self.spec.candidate(cell.model).resources or self.spec.resources
        if needed.hosts > 1:
            return ray.remote(num_cpus=0, max_retries=0)(_lead).remote(self.study, cell, needed)
        return ray.remote(**_options(needed), max_retries=needed.retries)(_compute).remote(self.study, cell)


def _flags() -> dict[str, str]:
    """What workers must have in their environment to compile with the flags of this process."""
    return {VARIABLE: preset_in_use()} if preset_in_use() else {}


def _options(needed: Resources) -> dict[str, Any]:
    return {"num_cpus": needed.cpus, "num_gpus": needed.gpus, "resources": needed.custom}


def _check_room(needed: Resources) -> None:
    """Raise InputError where no host has the resources of a cell, which would wait for ever."""
    import ray

    wanted = {"CPU": needed.cpus, "GPU": needed.gpus, **needed.custom}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for name, amount in wanted.items():
        largest = max((node.get(name, 0.0) for node in nodes), default=0.0)
        if amount > largest:
            raise InputError(
                f"A cell takes {amount:g} {name}, and the largest host of the Ray cluster has {largest:g}; lower "
                "resources in the spec, or start such a host first."
            )


def _outcome(reference: Any) -> Outcome:
    """How a cell ended on the cluster."""
    import ray

    try:
        return ray.get(reference)
    except Stopped:
        raise
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):  # which ends the study here too, as of a full disk
            raise error.cause from error
        return Outcome(f"its worker on the Ray cluster failed ({one_line(error, 200)})")
    except ray.exceptions.RayError as error:  # its worker or host died more often than `retries`
        return Outcome(f"its worker on the Ray cluster was lost ({one_line(error, 200)})")


def _compute(study: _Study, cell: Cell) -> Outcome:
    """Compute a cell in a worker of one host."""
    use_preset()
    if study not in _benches:
        _benches.clear()
        spec, out, retry, over_memory = study
        _benches[study] = Bench(StudySpec.model_validate_json(spec), Path(out), retry=retry, over_memory=over_memory)
    return _benches[study].compute(Cell(*cell))


def _lead(study: _Study, cell: Cell, needed: Resources) -> Outcome:
    """Compute a cell on several hosts, as one `jax.distributed` job that starts again when a host is lost."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    bundle = {"CPU": needed.cpus, "GPU": needed.gpus, **needed.custom}
    group = placement_group([{name: n for name, n in bundle.items() if n}] * needed.hosts, strategy="SPREAD")
    try:
        ray.get(group.ready())

        def at(rank: int, function: Any, **options: Any) -> Any:
            place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
            return ray.remote(**options, max_retries=0, scheduling_strategy=place)(function)

        for attempt in range(needed.retries + 1):
            coordinator = ray.get(at(0, _address, num_cpus=0).remote())
            # Its own environment gives every member a new process, where JAX has not computed anything yet.
            new = {"LENSJAX_COORDINATOR": coordinator, "LENSJAX_PROCESSES": str(needed.hosts), **_flags()}
            settings = {**_options(needed), "max_calls": 1, "runtime_env": {"env_vars": new}}
            members = [at(rank, _member, **settings).remote(study, cell, rank) for rank in range(needed.hosts)]
            try:
                outcomes: list[Outcome] = ray.get(members)
                return outcomes[0]
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.RayTaskError) as error:
                survivor = isinstance(getattr(error, "cause", None), PeerLost)
                if isinstance(error, ray.exceptions.RayTaskError) and not survivor:
                    raise
                for member in members:
                    ray.cancel(member, force=True)
                if attempt == needed.retries:
                    if survivor:
                        return Outcome("a host on the Ray cluster was lost")
                    raise
        raise AssertionError("unreachable: the last attempt returns or raises")
    finally:
        remove_placement_group(group)


def _address() -> str:
    """Address and free port of this host."""
    import ray

    host = ray.util.get_node_ip_address()
    with socket.socket() as free:
        free.bind((host, 0))
        return f"{host}:{free.getsockname()[1]}"


def _member(study: _Study, cell: Cell, rank: int) -> Outcome:
    """Compute a cell in a worker of one of several hosts."""
    os.environ["LENSJAX_PROCESS"] = str(rank)
    start_processes()
    return _compute(study, cell)
