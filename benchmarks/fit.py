"""How long the fits take, beside SciPy doing the same job, and how their cost grows with the number of models.

    python benchmarks/fit.py [--quick] [--out benchmarks/results/fit.json]

Every case runs in a fresh process, so that its first ("cold") call compiles everything anew and its peak of memory
is its own. Importing is not part of a cold call; it is part of the command line's times. The curves are the public
ones of 30 models on FLAN where `$LENSJAX_BENCHMARKS` has them, else simulated; those of the scaling part are always
simulated.
"""

import os
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from machine import describe, peak_memory_gb
from parts import Json, Promise, command, conclude, processes, ratios, summary, timed
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table
from scipy.optimize import curve_fit, least_squares

from lensjax.curves.public import VARIABLE, available, rectified
from lensjax.curves.simulated import SIZES, simulated
from lensjax.curves.table import CurveTable
from lensjax.fit.joint.fitting import fit_joint
from lensjax.fit.per_model import MAX_ALPHA, MAX_BETA, MIN_ALPHA, MIN_BETA, fit_per_model

TARGET = SIZES[-1]  # examples to predict for
FAMILY = 8  # simulated models in a family, about
WORSE = 1.01  # a fit is worse if its rmse is so many times the least that any fitter found for the model
PARTS = {
    "fit": slice(0, 1),
    "predict": slice(1, 2),
    "probability_best": slice(2, 3),
    "fit_and_predict": slice(0, 2),
    "all": slice(0, 3),
}  # of a joint fit and the questions to it

RANKED = {  # models and sizes of curves in a file, and what ranking them may take
    (30, 11): {"median_s": 15.0},
    (30, 200): {"median_s": 20.0},
    (3000, 11): {"median_s": 60.0, "peak_gb": 4.0, "page_mb": 2.0},
    (30_000, 11): {"median_s": 480.0, "peak_gb": 8.0, "page_mb": 2.0},
}
VERY_MANY = 10_000  # models, that are ranked once


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    models: int = 30
    sizes: int = 11
    scaling: tuple[int, ...] = (30, 100, 300, 1000, 3000)
    repeats: int = 5
    long_repeats: int = 3  # of what takes seconds
    ranked: Mapping[tuple[int, int], Mapping[str, float]] = field(default_factory=lambda: RANKED)


QUICK = Plan(models=3, sizes=5, scaling=(3,), repeats=1, long_repeats=1, ranked={(3, 5): {"median_s": 600.0}})


def benchmark(quick: bool = False, out: Path = Path("benchmarks/results/fit.json")) -> None:
    """Measure, print a table, and write JSON.

    Args:
        quick: Only try the script on tiny tables; one process does all cases, and the times mean nothing.
        out: File to write.
    """
    plan, console = QUICK if quick else Plan(), Console()
    real = not quick and bool(os.environ.get(VARIABLE)) and "flan" in available()
    table = rectified("flan").up_to(SIZES[plan.sizes - 1]) if real else simulate(plan.models, plan.sizes)
    found: Json = {
        "benchmark": "fit",
        "quick": quick,
        **describe("jax", "jaxlib", "numpy", "scipy", "optax", "lensjax"),
        "curves": {
            "source": "flan, Rectified Scaling Law benchmark" if real else "simulated",
            "models": len(table.models),
            "sizes": int((table.sizes > 0).sum()),
            "target": TARGET,
        },
        "repeats": {"per_model_and_joint": plan.repeats, "scaling_and_command_line": plan.long_repeats},
        "notes": {
            "times": "wall seconds; cold is the first call of a fresh process after imports, warm the calls after it",
            "ratio": "warm time of the peer over warm time of lensjax; above 1, lensjax is faster",
            "rmse": "of log loss, mean over models; `worse` counts models fitted more than 1 % worse than by the best",
            "least_squares": "trf within the bounds of lensjax on exponents, from `starts` points, the best kept",
            "curve_fit": "lm without bounds from one point; both peers fit log loss, with finite differences",
            "joint": "no other joint fitter is known; its peer is least_squares of the rectified law, over all models",
            "scaling": "exponent is the slope of log least warm time in log models, over all points and the larger "
            "half; peak_gb is of a process that fits, predicts and asks for P(best), cold and warm",
            "ranking": "whole commands, which compile all anew and write a page; cpu_s are seconds of all threads, "
            "which other work on the machine changes less than wall times; page_mb is of the page",
        },
    }
    with tempfile.TemporaryDirectory() as folder, console.status("") as status:
        # Processes are spawned by this one, which does nothing but import: see `peak_memory_gb`.
        with processes(quick) as call:
            found["per_model"] = {}
            for law in PEERS:
                status.update(f"Per-model fits, law {law}")
                found["per_model"][law] = call(per_model, table, law, plan.repeats)
            status.update("Joint fit")
            found["joint"] = call(joint, table, plan.repeats)
            points = []
            for models in plan.scaling:
                status.update(f"Joint fit of {models} models")
                point = call(joint, simulate(models, plan.sizes), plan.long_repeats)
                points.append({"models": models} | point)
        peer = found["per_model"]["rectified"]["least_squares"]
        found["joint"]["peer"] = {"name": "least_squares, rectified"} | ratios(peer, found["joint"]["fit_and_predict"])
        found["scaling"] = {"points": points, "exponent": exponents(points)}
        status.update("Command line")
        found["command_line"] = command_line(simulate(plan.models, plan.sizes), Path(folder), plan.long_repeats)
        found["ranking"] = []
        for models, sizes in plan.ranked:
            status.update(f"lensjax rank of {models} models at {sizes} sizes")
            repeats = 1 if models > VERY_MANY else plan.long_repeats
            found["ranking"].append(ranking(models, sizes, Path(folder), repeats))
    conclude(found, targets(found, plan), times(found), out, console)


def simulate(models: int, sizes: int) -> CurveTable:
    return simulated(models=models, families=max(1, round(models / FAMILY)), sizes=SIZES[:sizes])


class Peer(NamedTuple):
    """A law in NumPy for SciPy, as log loss of log D, and a first guess from β and the floor's share of the loss."""

    log_loss: Callable[..., np.ndarray]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    guess: Callable[[np.ndarray, np.ndarray, float, float], list[float]]


def _rectified(x: np.ndarray, log_b: float, log_d_l: float, beta: float, log_e: float) -> np.ndarray:
    return np.logaddexp(log_b - np.logaddexp(log_d_l, beta * x), log_e)


def _guess_rectified(x: np.ndarray, y: np.ndarray, beta: float, share: float) -> list[float]:
    log_e, knee = y[-1] + np.log(share), x[0] + 0.3 * (x[-1] - x[0])
    log_b = np.log(np.exp(y[0]) - np.exp(log_e)) + np.logaddexp(beta * knee, beta * x[0])
    return [log_b, beta * knee, beta, log_e]


def _vanilla(x: np.ndarray, log_b: float, beta: float, log_e: float, log_alpha: float) -> np.ndarray:
    log_loss: np.ndarray = np.exp(log_alpha) * np.logaddexp(log_b - beta * x, log_e)
    return log_loss


def _guess_vanilla(x: np.ndarray, y: np.ndarray, beta: float, share: float) -> list[float]:
    log_e = y[-1] + np.log(share)
    return [np.log(np.exp(y[0]) - np.exp(log_e)) + beta * x[0], beta, log_e, 0.0]


FREE = np.inf
PEERS = {
    "rectified": Peer(_rectified, (-FREE, -FREE, MIN_BETA, -FREE), (FREE, FREE, MAX_BETA, FREE), _guess_rectified),
    "vanilla": Peer(
        _vanilla,
        (-FREE, MIN_BETA, -FREE, np.log(MIN_ALPHA)),
        (FREE, MAX_BETA, FREE, np.log(MAX_ALPHA)),
        _guess_vanilla,
    ),
}
START = (0.3, 0.3)  # β and share of the floor
STARTS = tuple(product((0.1, 0.5), (0.05, 0.7)))  # more lower the mean rmse on FLAN by less than one part in 10⁵


def by_least_squares(peer: Peer, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    fits = [
        least_squares(
            lambda p: peer.log_loss(x, *p) - y,
            peer.guess(x, y, *start),
            bounds=(peer.lower, peer.upper),
            x_scale="jac",
        )
        for start in STARTS
    ]
    best: np.ndarray = min(fits, key=lambda fit: fit.cost).x
    return best


def by_curve_fit(peer: Peer, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Parameters, or the guess where no optimum was found."""
    guess = peer.guess(x, y, *START)
    try:
        found: np.ndarray = curve_fit(peer.log_loss, x, y, guess, maxfev=10_000)[0]
    except RuntimeError:
        return np.array(guess)
    return found


def per_model(table: CurveTable, law: str, repeats: int) -> Json:
    """Times and quality of a law fitted to every model, ours and SciPy's taking turns."""
    peer, above = PEERS[law], table.sizes > 0
    curves = [
        (np.log(table.sizes[above][seen]), np.log(loss[seen]))
        for loss, seen in zip(table.loss[:, above], table.measured[:, above], strict=True)
    ]

    def each(fit: Callable[..., np.ndarray]) -> np.ndarray:
        errors = [peer.log_loss(x, *fit(peer, x, y)) - y for x, y in curves]
        return np.array([np.sqrt(np.mean(e**2)) for e in errors])

    fitters: dict[str, Callable[[], np.ndarray]] = {
        "lensjax": lambda: fit_per_model(table, law).rmse,
        "least_squares": lambda: each(by_least_squares),
        "curve_fit": lambda: each(by_curve_fit),
    }
    cold, _ = timed(fitters["lensjax"])
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SciPy's, of covariances that nobody asked for
        turns = [{name: timed(fit) for name, fit in fitters.items()} for _ in range(repeats)]
    rmse = {name: errors for name, (_, errors) in turns[0].items()}
    least = np.min(list(rmse.values()), axis=0)
    found: Json = {
        name: summary([turn[name][0] for turn in turns])
        | {"mean_rmse": float(errors.mean()), "worse": int((errors > WORSE * least).sum())}
        for name, errors in rmse.items()
    }
    found["lensjax"] = {"cold_s": cold} | found["lensjax"]
    for name, starts in (("least_squares", len(STARTS)), ("curve_fit", 1)):
        found[name] = {"starts": starts} | found[name] | ratios(found[name], found["lensjax"])
    return found


def joint(table: CurveTable, repeats: int) -> Json:
    """Times of the joint fit and of two questions to its posterior, and the peak of memory."""

    def turn() -> np.ndarray:
        marks = [time.perf_counter()]
        posterior = fit_joint(table, TARGET)
        marks.append(time.perf_counter())
        posterior.predict(TARGET)
        marks.append(time.perf_counter())
        posterior.probability_best(TARGET)
        marks.append(time.perf_counter())
        return np.diff(marks)

    cold, *warm = (turn() for _ in range(1 + repeats))
    return {
        name: {"cold_s": float(cold[part].sum())} | summary([float(times[part].sum()) for times in warm])
        for name, part in PARTS.items()
    } | {"peak_gb": peak_memory_gb()}


def exponents(points: list[Json]) -> Json:
    """Slopes of log warm time in log number of models, over all points and over the larger half; None of one."""

    def slope(part: str, chosen: list[Json]) -> float | None:
        if len(chosen) < 2:
            return None
        models, times = [p["models"] for p in chosen], [p[part]["min_s"] for p in chosen]
        return float(np.polyfit(np.log(models), np.log(times), 1)[0])

    larger = points[len(points) // 2 :]
    return {part: {"all": slope(part, points), "larger_half": slope(part, larger)} for part in PARTS}


def command_line(table: CurveTable, folder: Path, repeats: int) -> Json:
    """Times of whole commands, from starting Python to its end."""
    curves = folder / "curves.csv"
    table.write(curves)
    commands = {"rank": ["rank", str(curves), "--target", str(TARGET)], "help": ["--help"]}
    return {
        name: summary([command(*arguments)["median_s"] for _ in range(repeats)]) for name, arguments in commands.items()
    }


def ranking(models: int, sizes: int, folder: Path, repeats: int) -> Json:
    """What `lensjax rank` of so many models and sizes takes: wall and CPU times, memory, and bytes of its page."""
    curves, page = folder / f"curves-{models}-{sizes}.csv", folder / "page.html"
    grid = np.unique(np.geomspace(SIZES[0], SIZES[min(sizes, 11) - 1], sizes).round().astype(int))
    simulated(models=models, families=max(1, round(models / FAMILY)), sizes=grid.tolist()).write(curves)
    runs = [command("rank", str(curves), "--target", str(TARGET), "--html", str(page)) for _ in range(repeats)]
    cpu = summary([run["cpu_s"] for run in runs])
    return {
        "models": models,
        "sizes": len(grid),
        **summary([run["median_s"] for run in runs]),
        "cpu_s": cpu["median_s"],
        "least_cpu_s": cpu["min_s"],
        "peak_gb": max(run["peak_gb"] for run in runs),
        "page_mb": page.stat().st_size / 1e6,
    }


RANKING = {"median_s": "s", "peak_gb": "peak memory in GB", "page_mb": "page in MB"}


def targets(found: Json, plan: Plan) -> list[Promise]:
    """What we promised ourselves, beside what was measured."""
    models, last = found["curves"]["models"], found["scaling"]["points"][-1]
    return [
        (f"joint fit and prediction of {models} models, warm, s", 1.0, found["joint"]["fit_and_predict"]["median_s"]),
        ("lensjax rank in a fresh process, s", 15.0, found["command_line"]["rank"]["median_s"]),
        (f"fit, prediction and P(best) of {last['models']} models, cold, s", 60.0, last["all"]["cold_s"]),
        (f"peak memory at {last['models']} models, GB", 4.0, last["peak_gb"]),
        ("exponent of warm cost in the number of models", 1.1, found["scaling"]["exponent"]["all"]["all"]),
        ("the same over the larger half", 1.1, found["scaling"]["exponent"]["all"]["larger_half"]),
        *(
            (f"lensjax rank of {case['models']} models at {case['sizes']} sizes, {RANKING[key]}", limit, case[key])
            for case, limits in zip(found["ranking"], plan.ranked.values(), strict=True)
            for key, limit in limits.items()
        ),
    ]


def times(found: Json) -> Table:
    """A row for every fitter, every number of models and every command."""
    heads = ("cold", "warm", "least", "rmse", "worse", "ratio", "CPU", "GB")
    right = [Column(head, justify="right", no_wrap=True) for head in heads]
    table = Table(Column(no_wrap=True), *right, box=SIMPLE, pad_edge=False, collapse_padding=True, title="Seconds")

    def row(what: str, *parts: Json) -> None:
        known = {key: value for part in parts for key, value in part.items()}
        columns = ("cold_s", "median_s", "min_s", "mean_rmse", "worse", "ratio", "cpu_s", "peak_gb")
        table.add_row(what, *(f"{known[name]:.3g}" if name in known else "" for name in columns))

    for law, fitters in found["per_model"].items():
        for name, fit in fitters.items():
            row(f"{law}, {name}", fit)
    row("joint fit + predict", found["joint"]["fit_and_predict"], found["joint"]["peer"])
    for point in found["scaling"]["points"]:
        row(f"joint, {point['models']} models", point["all"], {"peak_gb": point["peak_gb"]})
    for name, taken in found["command_line"].items():
        row(f"lensjax {name}", taken)
    for case in found["ranking"]:
        row(f"lensjax rank, {case['models']} × {case['sizes']}", case)
    return table


if __name__ == "__main__":
    tyro.cli(benchmark)
