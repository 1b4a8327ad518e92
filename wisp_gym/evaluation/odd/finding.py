"""One strange thing about a scenario."""

from dataclasses import dataclass

from wisp_gym.scenario.table import all_fields, span, usual


@dataclass(frozen=True)
class Finding:
    """A line: the field, the figure that is strange in it, why, and what is usual.

    Attributes:
        field: dotted path as `with_` takes it; members of lists by name. figure: what is given, or follows, with its unit.
        why: what is strange. usual: what is not; a figure with its unit, too.
    """

    field: str
    figure: str
    why: str
    usual: str

    def __str__(self) -> str:
        return f"{self.field}: {' '.join(filter(None, (self.figure, self.why)))}; usual: {self.usual}"


def presets_hold(path: str) -> str:
    """What the presets hold in a number's field, with its unit: the lowest and the highest."""
    unit, held = next(field.unit for field in all_fields() if field.path == path), usual(path)
    assert held, f"{path} is in no preset"
    return f"{span(*held)} {unit}".rstrip()


def share(value: float) -> str:
    """A share as a whole percentage, or with the digits that a small one needs."""
    return f"{100 * value:.0f} %" if value >= 0.01 else f"{100 * value:.2g} %"


def time(seconds: float) -> str:
    """Seconds, in milliseconds where they are fewer than one."""
    return f"{seconds:.3g} s" if seconds >= 1.0 or seconds == 0.0 else f"{1e3 * seconds:.3g} ms"
