"""How threads share the worlds of a task: each takes the next one that none has taken, and all know when the last is done.

The counts go on from task to task, so a thread that comes late finds all worlds of its task taken, whatever others do meanwhile.

Legend: `counts` (2,) int64 of worlds that have been taken, and that are done, in all tasks so far; `end` what both are after a task.
"""

from typing import Any

from numba.core import extending, types

from wisp_gym.jit import COMPILES, jit

TAKEN, DONE = range(2)
intrinsic: Any = extending.intrinsic


def number_at(context: Any, builder: Any, counts: Any, given: Any, which: int) -> Any:
    """Emit the address of a count."""
    first = context.make_array(counts)(context, builder, given).data
    return builder.gep(first, [context.get_constant(types.intp, which)])


@intrinsic
def load(context: Any, counts: Any, which: Any) -> Any:
    """A count as other threads have left it."""
    place = which.literal_value if isinstance(which, types.Literal) else None
    if place is None:
        return None

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.load_atomic(number_at(context, builder, counts, given[0], place), "acquire", 8)

    return types.int64(counts, which), generate


@intrinsic
def take(context: Any, counts: Any, taken: Any) -> Any:
    """Take a world if so many are taken; returns whether they were."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        place, more = number_at(context, builder, counts, given[0], TAKEN), builder.add(given[1], given[1].type(1))
        return builder.extract_value(builder.cmpxchg(place, given[1], more, "acq_rel", "acquire"), 1)

    return types.boolean(counts, types.int64), generate


@intrinsic
def add_done(context: Any, counts: Any, done: Any) -> Any:
    """Count worlds as done; whoever reads the count sees what was written in them."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        builder.atomic_rmw("add", number_at(context, builder, counts, given[0], DONE), given[1], "release")
        return context.get_dummy_value()

    return types.void(counts, types.int64), generate


if COMPILES:

    @jit
    def next_place(counts, end):
        """Take the next world; returns how many had been taken, `end` for all."""
        taken = load(counts, TAKEN)
        while taken < end and not take(counts, taken):
            taken = load(counts, TAKEN)
        return taken

    @jit
    def count_done(counts, done):
        """So many more worlds are done."""
        add_done(counts, done)

    @jit
    def all_done(counts, end, looks):
        """Whether all worlds are done; looks again so many times."""
        while looks > 0 and load(counts, DONE) < end:
            looks -= 1
        return load(counts, DONE) >= end

else:

    def next_place(counts, end):  # type: ignore[no-untyped-def]
        """Take the next world; returns how many had been taken, `end` for all."""
        taken = int(counts[TAKEN])
        counts[TAKEN] = min(taken + 1, end)
        return taken

    def count_done(counts, done):  # type: ignore[no-untyped-def]
        """So many more worlds are done."""
        counts[DONE] += done

    def all_done(counts, end, looks):  # type: ignore[no-untyped-def]
        """Whether all worlds are done."""
        return bool(counts[DONE] >= end)
