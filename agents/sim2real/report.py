"""The report of `agents.sim2real`: a verdict, deployment and engine side by side, and a picture."""

from __future__ import annotations

import html
import io
import math
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from agents.sim2real.compare import BESIDE, COMPARED, TOLERANCE, Cell, Order, Result, cells, orders
from agents.sim2real.profile import Measured, row_of
from wisp_gym.files import write_bytes, write_json, write_text
from wisp_gym.machine import machine

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = "osD^v<>p"
STYLE = "body{font:15px/1.5 system-ui;max-width:72rem;margin:2rem auto}td,th{padding:.15rem .6rem;text-align:right}table{border-collapse:collapse}"


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
    head = [
        "devices",
        "controller",
        "measure",
        "deployed",
        "engine",
        "95 % of the worlds",
        "difference",
        f"within {100 * TOLERANCE:.0f} %",
        "at the profile's speed",
    ]
    rows = [
        [str(c.load), c.controller, COMPARED[c.measure], number(c.deployed), number(c.engine), f"{number(c.low)} – {number(c.high)}",
         f"{100 * c.difference:+.1f} %", "yes" if c.within else "**no**", f"{100 * c.unadjusted_difference:+.1f} %"]
        for c in cells(results)
    ]  # fmt: skip
    return [head, *rows]


def explained(results: Sequence[Result]) -> list[list[str]]:
    """Header and rows of what stands behind the compared measures."""
    rows = [
        ["devices", "controller", *(name.replace("_", " ") for name in BESIDE), "machine", "batch time / predicted"]
    ]
    for result in results:
        pairs = [f"{number(result.run_mean(name))} / {number(result.engine_mean(name))}" for name in BESIDE]
        machine = ", ".join(f"{times:.2f}" for times in result.machine)
        rows.append([str(result.load), result.controller, *pairs, machine, f"{result.level:.3f}"])
    return rows


def ranking(ranked: Sequence[Order]) -> list[list[str]]:
    """Header and rows of the pairs that the engine separates; of none where there are none."""
    head = ["devices", "better", "worse", "engine, tokens/s", "deployed, tokens/s, and half its 95 % interval", "same"]
    rows = [
        [
            str(o.load),
            o.better,
            o.worse,
            f"{o.engine:+.2f}",
            f"{o.deployed:+.2f} ± {o.half:.2f}",
            "yes" if o.same else "**no**",
        ]
        for o in ranked
    ]
    return [head, *rows]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    rule = ["---"] * len(rows[0])
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], rule, *rows[1:]]) + "\n"


def as_html(rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [[html.escape(cell.strip("*")) for cell in row] for row in rows]
    head = "".join(f"<th>{cell}</th>" for cell in lines[0])
    return f"<table><tr>{head}</tr>{''.join('<tr><td>' + '</td><td>'.join(line) + '</td></tr>' for line in lines[1:])}</table>"


def measurements(measured: Measured) -> list[list[str]]:
    """Header and rows of the profile."""
    rows = [
        [
            "time of a drafted token",
            f"{1e3 * measured.draft_token_s:.2f} ms, and {1e3 * measured.round_overhead_s:.2f} ms a round",
        ],
        ["delay of a message", f"{1e3 * measured.one_way_s:.2f} ms median, log-normal spread {measured.jitter:.3f}"],
        ["verification", ", ".join(f"{name} {value:.3g}" for name, value in measured.roofline.items())],
        ["its noise", f"{measured.noise:.3f}, log-normal"],
        ["between two batches", f"{1e3 * measured.host_s:.2f} ms"],
        [
            "yardstick",
            f"{1e3 * measured.yardstick_s:.3f} ms; 'machine' above says how many times as long it took in each run",
        ],
        ["inside the model", f"{100 * measured.model_share:.1f} % of the batch time"],
        *(
            [f"fit of the {name}", f"R² {s['r2']:.3f}, MAPE {s['mape_percent']:.1f} %"]
            for name, s in measured.fit.items()
        ),
        ["from", f"{measured.rounds} rounds, {measured.batches} batches"],
    ]
    return [["measured", "value"], *rows]


def draw(found: Sequence[Cell]) -> bytes:
    """Deployed against engine, one panel a measure, the diagonal with ±10 %; a PNG's bytes."""
    figure = Figure(figsize=(12.0, 3.6), layout="constrained")
    controllers, loads = (list(dict.fromkeys(getattr(c, key) for c in found)) for key in ("controller", "load"))
    for axes, (measure, title) in zip(figure.subplots(1, len(COMPARED)), COMPARED.items(), strict=True):
        own = [cell for cell in found if cell.measure == measure]
        values = [value for c in own for value in (c.deployed, c.engine, c.low, c.high)]
        low, high = 0.9 * min(values), 1.1 * max(values)
        axes.fill_between(
            [low, high],
            [low * (1 - TOLERANCE), high * (1 - TOLERANCE)],
            [low * (1 + TOLERANCE), high * (1 + TOLERANCE)],
            color="0.9",
        )
        axes.plot([low, high], [low, high], color="0.5", linewidth=1)
        for c in own:
            colour, marker = (
                COLOURS[controllers.index(c.controller) % len(COLOURS)],
                MARKERS[loads.index(c.load) % len(MARKERS)],
            )
            axes.plot([c.deployed, c.deployed], [c.low, c.high], color=colour, linewidth=1, alpha=0.6)
            axes.plot(c.deployed, c.engine, marker, color=colour, markersize=6)
        axes.set(xlim=(low, high), ylim=(low, high), xlabel="deployed", ylabel="engine", title=title, aspect="equal")
    for k, name in enumerate(controllers):
        axes.plot([], [], "o", color=COLOURS[k % len(COLOURS)], label=name)
    for k, load in enumerate(loads):
        axes.plot([], [], MARKERS[k % len(MARKERS)], color="0.4", label=f"{load} devices")
    figure.legend(loc="outside lower center", ncols=len(controllers) + len(loads), fontsize="small", frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    return picture.getvalue()


def write_report(
    folder: Path, given: Namespace, measured: Measured, results: Sequence[Result], notes: Sequence[str]
) -> None:
    """report.md, report.html, cells.png and results.json in the run's folder."""
    found, ranked = cells(results), orders(results)
    about = ", ".join(f"{name} {value}" for name, value in machine("numpy", "onnxruntime").items())
    setting = (
        f"{given.repeats} runs of {given.seconds} s each, after {given.warmup_seconds} s, closed loop: a device has its next prompt at once. "
        f"Draft tokens paced to {given.draft_token_ms:g} ms, delays shaped to {given.one_way_ms:g} ms. Engine: the first {given.repeats} seeds "
        f"have the deployment's prompts, {len(given.seeds)} worlds give the interval. {about}."
    )
    sections: list[tuple[str, list[list[str]]]] = [
        ("Side by side", side_by_side(results)), ("Ranking", ranking(ranked)), ("Behind it, deployed / engine", explained(results)),
        ("Profile", measurements(measured)),
    ]  # fmt: skip
    said = [verdict(found, ranked), setting, *notes]
    text = "# Deployment and engine\n\n" + "\n\n".join(said) + "\n\n![deployed against engine](cells.png)\n\n"
    write_text(folder / "report.md", text + "\n".join(f"## {title}\n\n{markdown(rows)}" for title, rows in sections))
    body = "".join(f"<p>{html.escape(line)}</p>" for line in said) + '<img src="cells.png" style="max-width:100%">'
    body += "".join(f"<h2>{html.escape(title)}</h2>{as_html(rows)}" for title, rows in sections)
    page = f"<!doctype html><meta charset=utf-8><title>Deployment and engine</title><style>{STYLE}</style><h1>Deployment and engine</h1>{body}\n"
    write_text(folder / "report.html", page)
    write_bytes(folder / "cells.png", draw(found))
    write_json(folder / "results.json", as_json(measured, results))


def as_json(measured: Measured, results: Sequence[Result]) -> dict[str, Any]:
    """Profile and every figure."""
    rows = [
        {"load": r.load, "controller": r.controller, "machine": list(r.machine), "batch_time_over_predicted": r.level,
         "deployed": list(r.deployed), "predicted": list(r.predicted), "engine": list(r.engine), "unadjusted": list(r.unadjusted)}
        for r in results
    ]  # fmt: skip
    return {"profile": row_of(measured), "results": rows}
