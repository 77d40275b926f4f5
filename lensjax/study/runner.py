"""Running a study: all candidates on small subsets first, decisions after every rung, resumable at any moment."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

from lensjax.core.files import write_files
from lensjax.core.processes import is_first, on_first
from lensjax.curves.metrics import METRICS
from lensjax.curves.table import CurveTable
from lensjax.measure.measurement import FINETUNE, Cell
from lensjax.selection import advice
from lensjax.selection.evidence import Evidence
from lensjax.study.bench import Bench
from lensjax.study.cells import has_ended, stages
from lensjax.study.checks import check_candidates, check_device, check_results, refused_rows
from lensjax.study.deaths import TRIES, note_deaths
from lensjax.study.decisions import basis, decide, evidence_for_methods, rankable, results_table
from lensjax.study.folder import (
    pinned,
    read_results,
    read_searches,
    result_digest,
    run_folder,
    running,
    study_records,
)
from lensjax.study.inference import (
    Costs,
    candidates_costs,
    check_some_left,
    costs_by_name,
    refused,
    too_costly,
    write_costs,
)
from lensjax.study.inputs import check_inputs, note_inputs
from lensjax.study.journal import Entry, Journal
from lensjax.study.launching import LAUNCHERS, Launch
from lensjax.study.mending import lost_cells, mend
from lensjax.study.spec import StudySpec
from lensjax.study.standing import Known, Standing, Watch, losses_of, standing, steps_by
from lensjax.train.displays import Display
from lensjax.train.results import CURVES, curves_csv, read_result, result_sentence


class LimitReached(Exception):
    """As many cells were computed as were asked for."""


def run_study(
    spec: StudySpec,
    out: Path,
    *,
    launcher: str = "local",
    retry: bool = False,
    limit: int | None = None,
    tries: int = TRIES,
    over_memory: bool = False,
    show: bool | Display = False,
    watch: Watch = lambda standing: None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Journal:
    """Run a study, or go on with it from where an earlier command got to.

    Args:
      spec: The study, as `lensjax.study.spec.read_study` returns it.
      out: Its folder, for this study alone; it is made where it is missing.
      launcher: Name of the launcher that computes cells, such as "local" or "ray"; see `lensjax.study.launching`.
      retry: Try failed cells again.
      limit: Largest number of cells to compute.
      tries: Number of processes in a row that may die while computing a cell, before it counts as failed.
      over_memory: Train also where the machine's memory is not enough.
      show: Whether to show progress of training on standard error, or what shows it.
      watch: Called in the first process before measuring, and whenever a cell has ended, with how far the study is.
      say: Called with a sentence for each cell and each decision.

    Returns:
      The journal, with how each cell ended and every decision.

    Raises:
      InputError: the folder belongs to another study, another command or other data, a candidate cannot be used at all,
        there is no such launcher, the device that the spec asks for is missing, or a batch needs more memory than
        the machine has.
      Stopped: the process was told to end; the same call goes on.
    """
    spec = pinned(spec, out)
    bench = Bench(spec, out, show=show, retry=retry, over_memory=over_memory)
    with ExitStack() as stack:
        launch = stack.enter_context(LAUNCHERS[launcher](bench))  # first: JAX has no threads yet, and Ray may fork
        check_device(spec)
        journal = stack.enter_context(running(spec, out, say))
        if journal.quarantined:
            say(f"{journal.quarantined} damaged lines of the journal were set aside; results on disk replace them.")
        for sentence in filter(None, [note_deaths(out, journal, tries), *mend(spec, out, journal)]):
            say(sentence)
        check_results(spec, out, bench.task, retry=retry)
        check_inputs(spec, out)
        note_inputs(spec, out)
        writing = check_candidates(spec, bench)
        costs = candidates_costs(spec)
        unwritable = {name: found.why_not(spec.task.max_unwritable) for name, found in writing.items()}
        check_some_left(spec, costs, unwritable)
        on_first(lambda: write_costs(out, costs))
        costly, unmeasured = too_costly(spec, costs), refused(spec, costs)
        for name in spec.names:
            reasons = unwritable[name], costly.get(name, "")
            if name in unmeasured:
                say(f"{name} is not measured: {unmeasured[name]}.")
            elif any(reasons):
                say(f"{name} will be measured, but never chosen: {'; '.join(filter(None, reasons))}.")
        runner = _Runner(bench, journal, launch, limit, say, costs, watch)
        runner.set_aside(on_first(lambda: refused_rows(spec, bench)))
        runner.tell(runner.standing())
        try:
            runner.restore()
            runner.adaptive() if spec.strategy == "adaptive" else runner.ladder()
        except LimitReached:
            say(f"Stopped after {limit} cells; the same command goes on.")
    return journal


class _Runner:
    """One command's run of a study. Of several processes all take the same steps, and the first one writes."""

    def __init__(
        self,
        bench: Bench,
        journal: Journal,
        launch: Launch,
        limit: int | None,
        say: Callable[[str], None],
        costs: Costs | None = None,
        watch: Watch = lambda standing: None,
    ) -> None:
        self.bench, self.spec, self.out = bench, bench.spec, bench.out
        self.journal, self.launch, self.limit, self.say = journal, launch, limit, say
        self.costs, self.watch = costs or {}, watch
        self.refused = set(refused(self.spec, self.costs))
        self.forgiven = len(journal.entries) if bench.retry else 0  # failures before this do not count
        self.computed = 0
        self.target = self.spec.target or bench.available
        eliminating = self.spec.eliminate_below is not None
        self.eliminated = {name for entry in journal.entries for name in entry.eliminated if eliminating}

    def set_aside(self, reasons: Mapping[str, str]) -> None:
        """Let the first run of candidates fail for reasons that are known beforehand."""
        for name, reason in reasons.items():
            if name in self.left:
                cell = Cell(FINETUNE, name, self.bench.sizes[0], self.spec.seeds[0])
                self.journal.add(cell=cell, status="failed", error=reason)
                self.say(f"{name} is set aside: {reason}")

    def restore(self) -> None:
        """Make again what ended well and is lost, also of candidates that are measured no further."""
        lost = [cell for cell in lost_cells(self.spec, self.out, self.journal) if cell.model not in self.refused]
        self.compute(cell for cell in lost if cell.kind == FINETUNE)
        self.compute(cell for cell in lost if cell.kind != FINETUNE)
        on_first(self.write_curves)  # which may be damaged too

    def ladder(self) -> None:
        """Measure all candidates on one rung before the next."""
        self.climb(self.bench.sizes)

    def adaptive(self) -> None:
        """Measure all on the two smallest rungs, then always the run that lowers the expected regret most for its cost.

        What an earlier command left out of the rungs that it had chosen comes in between.
        """
        if not self.climb(self.bench.sizes[:3]):
            return
        self.catch_up()
        while (chosen := self.advised()) is not None:
            model, size = chosen
            if not self.goes_on([model], size):
                return
        table = rankable(self.table())
        if table is not None:
            looked_at = f"advice {basis(self.spec, table)}"
            if not any(entry.basis == looked_at for entry in self.journal.entries):
                sentence = "No further run is expected to lower the regret."
                self.journal.add(decision=sentence, basis=looked_at, stop=True)
                self.say(sentence)

    def climb(self, sizes: Iterable[int]) -> bool:
        """Measure all candidates that are left on one rung after the other; whether measuring goes on after that."""
        return all(self.goes_on(self.left, size) for size in sizes)

    def catch_up(self) -> None:
        """Measure what an earlier command left out of the rungs that it had chosen."""
        ended = dict.fromkeys(entry.run for entry in self.journal.entries if entry.run is not None)
        runs = [run for run in ended if run.model in self.left and run.seed in self.spec.seeds]
        self.compute(runs)
        self.compute(cell for run in runs for cell in self.spec.cells_at(run))

    def goes_on(self, models: list[str], size: int) -> bool:
        """Measure models on a rung and decide, if the budget allows; whether measuring goes on after that."""
        if not self.affordable(models, size):
            return False
        for stage in stages(self.spec, models, size):
            self.compute(stage)
        table = rankable(self.table(size if self.spec.strategy == "ladder" else None))
        return table is None or not self.is_clear(table)

    def compute(self, cells: Iterable[Cell]) -> None:
        """Compute the cells that are pending."""
        pending = self.pending(cells)
        if self.limit is not None:
            pending, left_out = pending[: self.limit - self.computed], pending[self.limit - self.computed :]
        for cell, outcome in self.launch(pending):
            self.computed += 1
            entry = self.journal.add(
                cell=cell,
                status="failed" if outcome.error else "ok",
                error=outcome.error,
                seconds=round(outcome.seconds, 3),
                flops=outcome.flops,
                digest="" if outcome.error else on_first(partial(result_digest, self.spec, self.out, cell)),
            )
            on_first(self.write_curves)
            found = self.standing()
            self.say(f"{self.sentence(cell, entry)} ({found.sentence})")
            self.tell(found)
        if self.limit is not None and left_out:
            raise LimitReached

    def tell(self, found: Standing) -> None:
        """Tell who watches how far the study is."""
        if is_first():
            self.watch(found)

    def standing(self) -> Standing:
        """How far the study is; of an adaptive one only the first rungs are known beforehand."""
        sizes = self.bench.sizes[:3] if self.spec.strategy == "adaptive" else self.bench.sizes
        cells = [cell for size in sizes for stage in stages(self.spec, self.left, size) for cell in stage]
        ended = {cell: entry for cell in self.journal.cells if (entry := self.journal.last(cell)) is not None}
        table = self.table()
        return standing(
            Known(
                names=self.spec.names,
                sizes=self.bench.sizes,
                ended={cell: entry for cell, entry in ended.items() if cell.model in self.spec.names},
                pending=self.pending(cells),
                searched=self.searches("seconds"),
                steps=steps_by(self.spec),
                weights={name: cost.flops_per_token for name, cost in self.costs.items()},
                losses={} if table is None else losses_of(table),
                left=self.left,
            )
        )

    def pending(self, cells: Iterable[Cell]) -> list[Cell]:
        """The cells that have not ended, of candidates of which no run failed."""
        failed, journal = self.failed, self.journal
        return [
            cell
            for cell in cells
            if cell.model not in failed and not has_ended(self.spec, self.out, journal, cell, self.forgiven)
        ]

    @property
    def failed(self) -> set[str]:
        """Candidates of which a run failed."""
        runs = {entry.run for entry in self.journal.entries if entry.run is not None}
        ends = {cell: self.journal.last(cell, self.forgiven) for cell in runs}
        return {cell.model for cell, last in ends.items() if last is not None and last.status == "failed"}

    @property
    def left(self) -> list[str]:
        """Candidates that are still measured."""
        gone = self.failed | self.eliminated | self.refused
        return [name for name in self.spec.names if name not in gone]

    def is_clear(self, table: CurveTable) -> bool:
        """Decide, or recall the decision about the same curves; whether it ends measuring."""
        known = basis(self.spec, table)
        entry = next((e for e in self.journal.entries if e.decision and e.basis == known), None)
        if entry is None:
            gone = sorted(self.failed | self.eliminated)
            costs = costs_by_name(self.costs)
            verdict = on_first(lambda: asdict(decide(self.spec, table, self.target, gone, self.evidence(table), costs)))
            entry = self.journal.add(basis=known, **verdict)
            self.say(entry.decision)
        self.eliminated |= set(entry.eliminated)
        return entry.stop

    def advised(self) -> tuple[str, int] | None:
        """The candidate and rung that promise most for their cost; None where no run is left that promises anything."""

        def ask() -> tuple[str, int] | None:
            table = rankable(self.table())
            if table is None:
                return None
            left = table.select([i for i, name in enumerate(table.models) if name in self.left])
            if left.eligible.sum() < 2:  # nothing is left to choose between
                return None
            points = advice.candidate_points(left, self.bench.sizes)
            found = advice.advise(
                table,
                self.target,
                {point: self.cost(*point) for point in points},
                prefer=None if self.spec.prefer is None else self.spec.prefer.preference,
                metric=None if self.spec.metric is None else METRICS[self.spec.metric],
                model_costs=costs_by_name(self.costs),
            )
            best = next(iter(found.points), None)
            return (best.point.model, best.point.examples) if best is not None and best.drop else None

        chosen = on_first(ask)
        return None if chosen is None else (chosen[0], chosen[1])

    def affordable(self, models: list[str], size: int) -> bool:
        """Whether the budget has room for a rung of some candidates, judged by the cost of their smaller rungs."""
        left = sorted({cell.model for stage in stages(self.spec, models, size) for cell in self.pending(stage)})
        hours = self.spec.budget.hours
        limits = {"flops": self.spec.budget.flops, "seconds": None if hours is None else 3600 * hours}
        if not left or all(
            limit is None or self.spent(unit) + sum(self.cost(model, size, unit) for model in left) <= limit
            for unit, limit in limits.items()
        ):
            return True
        sentence = f"The budget leaves no room for {size:,} examples."
        if not self.journal.entries or self.journal.entries[-1].decision != sentence:
            self.journal.add(decision=sentence)
        self.say(sentence)
        return False

    def spent(self, unit: str) -> float:
        """FLOPs or seconds so far, the choice of learning rates included."""
        cells = float(sum(getattr(entry, unit) for entry in self.journal.entries if entry.cell is not None))
        return cells + (sum(self.searches(unit).values()) if unit == "flops" else 0.0)  # whose seconds are in cells

    def searches(self, unit: str) -> dict[str, float]:
        """FLOPs or seconds, by candidate, of the runs that only the choice of learning rates needed."""

        def add() -> dict[str, float]:
            results = read_results(self.spec, self.out)
            runs = {one.name: read_searches(self.out, one, results) for one in self.spec.candidates}
            return {name: float(sum(getattr(run, unit) for run in each)) for name, each in runs.items()}

        return on_first(add)

    def cost(self, model: str, size: int, unit: str = "flops") -> float:
        """FLOPs or seconds that a candidate's rung will take, by its largest smaller rung; 0 without one.

        The test costs the same on every rung, and so does evidence, which is measured on equally many examples; the
        rest grows in proportion. Of cells that were computed again, the last time counts.
        """
        last = {e.cell: e for e in self.journal.entries if e.cell is not None and e.cell.model == model}

        def took(kind: str, examples: int) -> float:
            own = (entry for cell, entry in last.items() if (cell.kind, cell.examples) == (kind, examples))
            return float(sum(getattr(entry, unit) for entry in own))

        largest = max((cell.examples for cell in last if cell.kind == FINETUNE and cell.examples < size), default=0)
        if not largest:
            return 0.0
        run = took(FINETUNE, largest)
        if unit == "seconds" and largest == self.bench.sizes[1]:
            run = max(0.0, run - self.searches(unit)[model])  # which the first rung alone waits for
        fixed = min(took(FINETUNE, 0), run)
        evidence = sum(took(kind, largest) for kind in {cell.kind for cell in last} - {FINETUNE})
        return fixed + (run - fixed) * size / largest + evidence

    def table(self, largest: int | None = None) -> CurveTable | None:
        """The curves so far, up to a number of examples; candidates that cost too much are not eligible."""
        found = on_first(lambda: curves_csv(read_results(self.spec, self.out), self.spec.task.max_unwritable))
        table = results_table(found, self.spec.task.name)
        if table is None:
            return None
        table = table.barring(too_costly(self.spec, self.costs))
        return table.up_to(self.target if largest is None else min(largest, self.target))

    def evidence(self, table: CurveTable) -> Evidence:
        """What was measured besides curves."""
        return evidence_for_methods(study_records(self.spec, self.out, self.bench.sizes, table))

    def write_curves(self) -> str:
        """The table of all results so far, which `lensjax rank` reads."""
        text = curves_csv(read_results(self.spec, self.out), self.spec.task.max_unwritable)
        write_files({self.out / CURVES: text}, follow=False)
        return text

    def sentence(self, cell: Cell, entry: Entry) -> str:
        """How a cell ended."""
        if entry.status == "failed":
            return f"{cell}: failed, {entry.error}"
        loss = ""
        if cell.kind == FINETUNE:
            folder = run_folder(self.out, self.spec.candidate(cell.model), cell)
            result = on_first(lambda: None if (found := read_result(folder)) is None else result_sentence(found))
            loss = "" if result is None else f"{result}, "
        return f"{cell}: {loss}{entry.seconds:,.0f} s"
