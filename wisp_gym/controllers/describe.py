"""Controllers described: a name with all its settings written out, and the listing of all rules."""

from wisp_gym.controllers.choice import chosen
from wisp_gym.controllers.lookup import parts_of, signature
from wisp_gym.controllers.resolve import filled
from wisp_gym.controllers.shipped import shipped_choices, shipped_names
from wisp_gym.errors import of_kind
from wisp_gym.rules.catalogue import (
    ADMISSION,
    ALIASES,
    BATCHING,
    CENTRALIZED,
    CHUNK,
    COLOCATED,
    DRAFTERS,
    OVERLAP,
    PACE,
    SPECULATION,
    TRIMMING,
)
from wisp_gym.scenario import Scenario

WIDTH = 24  # of the column of names; what is longer has its meaning in the next line


def spelled(name: str, scenario: Scenario | None = None) -> str:
    """The long form of a controller's name, every setting by name: `fixed(k=4)+static(n=4, timeout_s=0.1)`.

    It resolves to the same controller; whole systems and a policy alone are written out, and with a scenario what a choice takes.

    Args:
        name: a name. scenario: gives WISP's threshold, which is left out without one and then stays the scenario's own.

    Raises:
        ControllerError: as `resolve`.
    """
    of_kind("scenario", scenario, (Scenario, type(None)))
    parts = parts_of(chosen(name, scenario) if scenario else name)
    return "+".join(
        part.name
        if part.is_policy
        else signature(part.name, part.rule, filled(part, scenario) if scenario else part.values)
        for part in parts
    )


def listing() -> str:
    """Table of all rules for `--help`, each with its settings and their defaults."""
    lines = []
    for title, rules in (
        ("speculation", SPECULATION),
        ("batching", BATCHING),
        ("server alone", CENTRALIZED),
        ("added to batching", TRIMMING | CHUNK | ADMISSION | PACE | OVERLAP),
        (
            "drafted by the server (alone, or added to a server alone, or to batching with a rule of who drafts)",
            COLOCATED,
        ),
        ("who drafts, the device or the server (added to batching)", DRAFTERS),
    ):
        lines.append(f"{title}:")
        lines += [row(signature(name, rule), rule.meaning) for name, rule in rules.items()]
    lines.append("whole systems:")
    lines += [row(name, meaning) for name, meaning in ALIASES.items()]
    lines.append("saved policies:")
    lines.append(row("FILE[+batching]", "one of devices: policy.json or its run folder (default +wisp)"))
    lines.append(row("speculation+FILE", "one of the server, beside any speculation rule or policy"))
    lines.append(row(", ".join(shipped_names()), "come with wisp-gym, wherever a file may stand"))
    lines.append("learned choices of the whole controller:")
    lines.append(
        row(
            ", ".join(shipped_choices()) or "FILE",
            "by what is known of the deployment; stands alone (or FILE: choice.json)",
        )
    )
    return "\n".join(lines)


def row(name: str, meaning: str) -> str:
    """A line of the listing, or two where the name is long."""
    space = " " if len(name) <= WIDTH else f"\n{'':{WIDTH + 3}}"
    return f"  {name:<{WIDTH}}{space}{meaning}"
