"""The report of `agents.sim2real`: a verdict, deployment and engine side by side, and a picture."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from agents.sim2real.compare import BESIDE, COMPARED, TOLERANCE, Cell, Order, Result, cells, mean, orders
from agents.sim2real.profile import Measured
from agents.sim2real.settings import Settings
from agents.sim2real.steps import MeasuredSteps
from agents.study.page import Page, Picture, Table, as_html, as_markdown, picture_bytes
from wisp_gym.files import write_bytes, write_json, write_text
from wisp_gym.machine import machine

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = "osD^v<>p"


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    return "0" if value == 0 else f"{value:,.{max(2 - math.floor(math.log10(abs(value))), 0)}f}"


def verdict(found: Sequence[Cell], ranked: Sequence[Order]) -> str:
    """One line: how many cells are near enough, and how many orders are the same."""
    near, same = sum(cell.within for cell in found), sum(order.same for order in ranked)
    against = sum(order.separated and not order.same for order in ranked)
    unadjusted = sum(abs(cell.unadjusted_difference) <= TOLERANCE for cell in found)
    far = max(found, key=lambda cell: abs(cell.difference))
    return (
        f"{near} of {len(found)} cells are within {100 * TOLERANCE:.0f} % of the deployment (largest difference {100 * far.difference:+.1f} %: "
        f"{COMPARED[far.measure]}, {far.controller} at {far.load} devices); the ranking by goodput is the same in {same} of {len(ranked)} pairs "
        f"that the engine separates, and the other way round, beyond the deployment's own spread, in {against}. The machine is as fast as a "
        f"yardstick says it was in each run; at the speed of the profile, "
        f"{unadjusted} cells are."
    )


def side_by_side(results: Sequence[Result]) -> list[list[str]]:
    """Header and rows of the comparison."""
    head = ["devices", "controller", "measure", "deployed", "engine", "95 % of the worlds", "difference"]
    rows = [
        [str(c.load), c.controller, COMPARED[c.measure], number(c.deployed), number(c.engine), f"{number(c.low)} – {number(c.high)}",
         f"{100 * c.difference:+.1f} %", "yes" if c.within else "**no**", f"{100 * c.unadjusted_difference:+.1f} %"]
        for c in cells(results)
    ]  # fmt: skip
    return [[*head, f"within {100 * TOLERANCE:.0f} %", "at the profile's speed"], *rows]


def explained(results: Sequence[Result]) -> list[list[str]]:
    """Header and rows of what stands behind the compared measures."""
    measures = [name.replace("_", " ") for name in BESIDE]
    rows = [["devices", "controller", *measures, "machine", "batch time / predicted"]]
    for result in results:
        pairs = [f"{number(mean(result.deployed, name))} / {number(mean(result.predicted, name))}" for name in BESIDE]
        machine = ", ".join(f"{times:.2f}" for times in result.machine)
        rows.append([str(result.load), result.controller, *pairs, machine, f"{result.level:.3f}"])
    return rows


def ranking(ranked: Sequence[Order]) -> list[list[str]]:
    """Header and rows of the pairs that the engine separates; of none where there are none."""
    head = ["devices", "better", "worse", "engine, tokens/s", "deployed, tokens/s, and half its 95 % interval", "same"]
    rows = [
        [str(o.load), o.better, o.worse, f"{o.engine:+.2f}", f"{o.deployed:+.2f} ± {o.half:.2f}", "yes" if o.same else "**no**"]
        for o in ranked
    ]  # fmt: skip
    return [head, *rows]


def measurements(m: Measured) -> list[list[str]]:
    """Header and rows of the profile."""
    yardstick = "'machine' above says how many times as long it took in each run"
    said = {
        "time of a drafted token": f"{1e3 * m.draft_token_s:.2f} ms, and {1e3 * m.round_overhead_s:.2f} ms a round",
        "delay of a message": f"{1e3 * m.one_way_s:.2f} ms median, log-normal spread {m.jitter:.3f}",
        "verification": ", ".join(f"{name} {value:.3g}" for name, value in m.roofline.items()),
        "its noise": f"{m.noise:.3f}, log-normal",
        "between two batches": f"{1e3 * m.host_s:.2f} ms",
        "yardstick": f"{1e3 * m.yardstick_s:.3f} ms; {yardstick}",
        "inside the model": f"{100 * m.model_share:.1f} % of the batch time",
        **fits(m.fit),
        "from": f"{m.rounds} rounds, {m.batches} batches",
    }
    return [["measured", "value"], *map(list, said.items())]


def step_measurements(m: MeasuredSteps) -> list[list[str]]:
    """Header and rows of the profile of a server that drafts for itself."""
    said = {
        "delay of a message": f"{1e3 * m.one_way_s:.2f} ms median, log-normal spread {m.jitter:.3f}",
        "verification, the draft's first pass with it": ", ".join(f"{k} {v:.3g}" for k, v in m.roofline.items()),
        "drafting": ", ".join(f"{name} {value:.3g}" for name, value in m.draft_time.items()),
        "noise of a step": f"{m.noise:.3f}, log-normal",
        "between two steps": f"{1e3 * m.host_s:.2f} ms",
        "yardstick": f"{1e3 * m.yardstick_s:.3f} ms",
        **fits(m.fit),
        "from": f"{m.rounds} rounds, {m.steps} steps",
    }
    return [["measured", "value"], *map(list, said.items())]


def fits(found: dict[str, dict[str, float]]) -> dict[str, str]:
    """How well each form fits."""
    return {f"fit of the {name}": f"R² {s['r2']:.3f}, MAPE {s['mape_percent']:.1f} %" for name, s in found.items()}


def draw(found: Sequence[Cell]) -> bytes:
    """Deployed against engine, one panel a measure, the diagonal with ±10 %; a PNG's bytes."""
    figure = Figure(figsize=(12.0, 3.6), layout="constrained")
    controllers, loads = (list(dict.fromkeys(getattr(c, key) for c in found)) for key in ("controller", "load"))
    for axes, (measure, title) in zip(figure.subplots(1, len(COMPARED)), COMPARED.items(), strict=True):
        own = [cell for cell in found if cell.measure == measure]
        values = [value for c in own for value in (c.deployed, c.engine, c.low, c.high)]
        low, high = 0.9 * min(values), 1.1 * max(values)
        diagonal = np.array([low, high])
        axes.fill_between(diagonal, diagonal * (1 - TOLERANCE), diagonal * (1 + TOLERANCE), color="0.9")
        axes.plot(diagonal, diagonal, color="0.5", linewidth=1)
        for c in own:
            colour = COLOURS[controllers.index(c.controller) % len(COLOURS)]
            marker = MARKERS[loads.index(c.load) % len(MARKERS)]
            axes.plot([c.deployed, c.deployed], [c.low, c.high], color=colour, linewidth=1, alpha=0.6)
            axes.plot(c.deployed, c.engine, marker, color=colour, markersize=6)
        axes.set(xlim=(low, high), ylim=(low, high), xlabel="deployed", ylabel="engine", title=title, aspect="equal")
    for k, name in enumerate(controllers):
        axes.plot([], [], "o", color=COLOURS[k % len(COLOURS)], label=name)
    for k, load in enumerate(loads):
        axes.plot([], [], MARKERS[k % len(MARKERS)], color="0.4", label=f"{load} devices")
    figure.legend(loc="outside lower center", ncols=len(controllers) + len(loads), fontsize="small", frameon=False)
    return picture_bytes(figure)


def setting_words(settings: Settings, worlds: int) -> str:
    """How the figures were made, and on which machine."""
    about = ", ".join(f"{name} {value}" for name, value in machine("numpy", "onnxruntime").items())
    return (
        f"{settings.repeats} runs of {settings.seconds} s each, after {settings.warmup_seconds} s, closed loop: a device has its next "
        f"prompt at once. Draft tokens paced to {settings.draft_token_ms:g} ms, delays shaped to {settings.one_way_ms:g} ms. Engine: "
        f"the first {settings.repeats} seeds have the deployment's prompts, {worlds} worlds give the interval. {about}."
    )


def write_report(
    folder: Path,
    settings: Settings,
    profiles: tuple[Measured, MeasuredSteps | None],
    results: Sequence[Result],
    notes: Sequence[str],
) -> None:
    """report.md, report.html, cells.png and results.json in the run's folder; `profiles`: of devices that draft, of a server that does."""
    measured, steps = profiles
    found, ranked = cells(results), orders(results)
    tables = {
        "Side by side": side_by_side(results), "Ranking": ranking(ranked), "Behind it, deployed / engine": explained(results),
        "Profile": measurements(measured), **({"Profile of the server's own drafting": step_measurements(steps)} if steps else {}),
    }  # fmt: skip
    page = Page(
        "Deployment and engine",
        [verdict(found, ranked), setting_words(settings, len(results[0].engine)), *notes],
        [Picture("deployed against engine", file="cells.png")],
        [Table("", title, "", head, rows) for title, (head, *rows) in tables.items()],
    )
    write_text(folder / "report.md", as_markdown(page))
    write_text(folder / "report.html", as_html(page))
    write_bytes(folder / "cells.png", draw(found))
    write_json(folder / "results.json", as_json(measured, steps, results))


def as_json(measured: Measured, steps: MeasuredSteps | None, results: Sequence[Result]) -> dict[str, Any]:
    """Profiles and every figure."""
    rows = [
        {"load": r.load, "controller": r.controller, "machine": list(r.machine), "batch_time_over_predicted": r.level,
         "deployed": list(r.deployed), "predicted": list(r.predicted), "engine": list(r.engine), "unadjusted": list(r.unadjusted)}
        for r in results
    ]  # fmt: skip
    return {"profile": asdict(measured), "colocated": asdict(steps) if steps else None, "results": rows}
