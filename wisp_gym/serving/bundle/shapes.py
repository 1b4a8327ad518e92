"""How large each value of a graph is, reckoned before onnxruntime computes any: a small file must not make large arrays.

Shapes follow from those of the inputs. Exporters compute some shapes in the graph (`x.reshape(x.shape[0], …)`), so small values that
come from shapes and constants are followed as numbers. Operators: ONNX opset 18.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wisp_gym.serving.bundle.protobuf import WireError

MAX_RANK, MAX_KNOWN = 6, 64  # axes of a value; numbers of one that is followed by value
Shape = tuple[int, ...]
FLOATS, INT, INTS = 1, 2, 7  # AttributeProto.AttributeType


class Value(NamedTuple):
    """A value's shape, and its numbers where they are known and few."""

    shape: Shape
    known: NDArray[Any] | None = None


class Call(NamedTuple):
    """A node with what it reads."""

    values: list[Value]
    attributes: Mapping[str, Any]
    outputs: int

    def shape(self, index: int = 0) -> Shape:
        """Shape of an input."""
        return self.values[index].shape

    def numbers(self, index: int) -> list[int]:
        """An input that must be known beforehand: a shape, axes, places."""
        known = self.values[index].known
        if known is None:
            raise WireError("a shape that depends on what is observed")
        return [int(number) for number in known.reshape(-1)]

    def axis(self, rank: int, default: int = 0) -> int:
        """The attribute `axis`, counted from the front."""
        return place(self.attributes.get("axis", default), rank)


def place(axis: int, rank: int) -> int:
    """An axis counted from the front."""
    if not -rank <= axis < rank:
        raise WireError(f"axis {axis} of a value of {rank}")
    return axis % rank


def attributes_of(node: dict[str, Any]) -> dict[str, Any]:
    """A node's attributes by name."""
    key = {FLOATS: "f", INT: "i", INTS: "ints"}
    return {each.get("name"): each.get(key.get(each.get("type"), ""), 0) for each in node["attribute"]}


# --- shapes, by operator ----------------------------------------------------------------------------------------------


def same(call: Call) -> list[Shape]:
    """One output of the first input's shape."""
    return [call.shape()]


def broadcast(call: Call) -> list[Shape]:
    """numpy's rule."""
    return [np.broadcast_shapes(*(value.shape for value in call.values))]


def matmul(call: Call) -> list[Shape]:
    """Matrices in the last two axes, others broadcast; a vector is a row before, or a column behind."""
    a, b = call.shape(0), call.shape(1)
    rows, columns = (1, *a) if len(a) == 1 else a, (*b, 1) if len(b) == 1 else b
    if not a or not b or rows[-1] != columns[-2]:
        raise WireError(f"MatMul of {a} and {b}")
    made = (*np.broadcast_shapes(rows[:-2], columns[:-2]), *rows[-2:-1] * (len(a) > 1), *columns[-1:] * (len(b) > 1))
    return [made]


def gemm(call: Call) -> list[Shape]:
    """A·B + C of matrices, either turned."""
    a, b = (
        call.shape(k)[::-1] if call.attributes.get(name) else call.shape(k)
        for k, name in ((0, "transA"), (1, "transB"))
    )
    if len(a) != 2 or len(b) != 2 or a[1] != b[0]:
        raise WireError(f"Gemm of {a} and {b}")
    return [np.broadcast_shapes((a[0], b[1]), *(value.shape for value in call.values[2:]))]


def without(shape: Shape, axes: list[int], keep: bool) -> Shape:
    """A shape after reducing axes."""
    gone = {place(axis, len(shape)) for axis in axes}
    return tuple(1 if k in gone else n for k, n in enumerate(shape) if keep or k not in gone)


def reduce(call: Call) -> list[Shape]:
    """Sums, means, extremes over axes: all where none are named."""
    shape = call.shape()
    axes = call.numbers(1) if len(call.values) > 1 else list(call.attributes.get("axes") or range(len(shape)))
    return [without(shape, axes, bool(call.attributes.get("keepdims", 1)))]


def arg(call: Call) -> list[Shape]:
    """The place of an extreme along an axis."""
    return [without(call.shape(), [call.attributes.get("axis", 0)], bool(call.attributes.get("keepdims", 1)))]


def gather(call: Call) -> list[Shape]:
    """Entries of an axis."""
    shape, axis = call.shape(), call.axis(len(call.shape()))
    return [(*shape[:axis], *call.shape(1), *shape[axis + 1 :])]


def split(call: Call) -> list[Shape]:
    """Parts along an axis, equal ones where their lengths are not given."""
    shape, axis, n = call.shape(), call.axis(len(call.shape())), call.outputs
    even = -(-shape[axis] // n)
    parts = call.numbers(1) if len(call.values) > 1 else [min(even, shape[axis] - even * k) for k in range(n)]
    if len(parts) != n or min(parts) < 0 or sum(parts) != shape[axis]:
        raise WireError(f"Split of {shape} into {parts}")
    return [(*shape[:axis], part, *shape[axis + 1 :]) for part in parts]


def concat(call: Call) -> list[Shape]:
    """Values one behind the other along an axis."""
    first, axis = call.shape(), call.axis(len(call.shape()))
    if any(without(value.shape, [axis], False) != without(first, [axis], False) for value in call.values):
        raise WireError(f"Concat of {[value.shape for value in call.values]}")
    return [(*first[:axis], sum(value.shape[axis] for value in call.values), *first[axis + 1 :])]


def reshape(call: Call) -> list[Shape]:
    """The same numbers in another shape: 0 keeps an axis, −1 takes what is left."""
    shape = call.shape()
    wanted = [shape[k] if n == 0 and k < len(shape) else n for k, n in enumerate(call.numbers(1))]
    others = math.prod(n for n in wanted if n != -1)
    made = tuple(math.prod(shape) // max(others, 1) if n == -1 else n for n in wanted)
    if call.attributes.get("allowzero") or min(wanted, default=0) < -1 or math.prod(made) != math.prod(shape):
        raise WireError(f"Reshape of {shape} to {wanted}")
    return [made]


def flatten(call: Call) -> list[Shape]:
    """A matrix of what lies before an axis and from it on."""
    shape = call.shape()
    axis = call.attributes.get("axis", 1)
    axis = axis if axis == len(shape) else place(axis, len(shape))
    return [(math.prod(shape[:axis]), math.prod(shape[axis:]))]


def transpose(call: Call) -> list[Shape]:
    """Axes in another order."""
    shape = call.shape()
    order = call.attributes.get("perm") or list(range(len(shape)))[::-1]
    if sorted(order) != list(range(len(shape))):
        raise WireError(f"Transpose of {shape} by {order}")
    return [tuple(shape[k] for k in order)]


def unsqueeze(call: Call) -> list[Shape]:
    """New axes of length 1."""
    axes = call.numbers(1)
    rank = len(call.shape()) + len(axes)
    new, old = {place(axis, rank) for axis in axes}, iter(call.shape())
    if len(new) != len(axes):
        raise WireError(f"Unsqueeze at {axes}")
    return [tuple(1 if k in new else next(old) for k in range(rank))]


def squeeze(call: Call) -> list[Shape]:
    """Axes of length 1 go."""
    shape = call.shape()
    axes = call.numbers(1) if len(call.values) > 1 else [k for k, n in enumerate(shape) if n == 1]
    if any(shape[place(axis, len(shape))] != 1 for axis in axes):
        raise WireError(f"Squeeze of {shape} at {axes}")
    return [without(shape, axes, False)]


def cuts(call: Call) -> list[tuple[int, slice]]:
    """(axis, part) of a `Slice`."""
    starts, ends = call.numbers(1), call.numbers(2)
    axes = call.numbers(3) if len(call.values) > 3 else list(range(len(starts)))
    steps = call.numbers(4) if len(call.values) > 4 else [1] * len(starts)
    if 0 in steps:
        raise WireError("Slice in steps of 0")
    rank = len(call.shape())
    return [(place(axis, rank), slice(*cut)) for axis, *cut in zip(axes, starts, ends, steps, strict=True)]


def cut(call: Call) -> list[Shape]:
    """Part of a value."""
    shape = list(call.shape())
    for axis, part in cuts(call):
        shape[axis] = len(range(shape[axis])[part])
    return [tuple(shape)]


def expand(call: Call) -> list[Shape]:
    """A value repeated along axes of length 1."""
    return [np.broadcast_shapes(call.shape(), tuple(call.numbers(1)))]


Rule = Callable[[Call], list[Shape]]
SAME = (
    "Abs", "Cast", "Ceil", "Celu", "Elu", "Erf", "Exp", "Floor", "HardSigmoid", "HardSwish", "Identity", "LayerNormalization", "LeakyRelu",
    "Log", "LogSoftmax", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Softmax", "Softplus", "Softsign",
    "Sqrt", "Tanh",
)  # fmt: skip
BROADCAST = (
    "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum",
    "Where",
)  # fmt: skip
REDUCE = ["ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"]
RULES: dict[str, Rule] = {
    **dict.fromkeys(SAME, same), **dict.fromkeys(BROADCAST, broadcast), **dict.fromkeys(REDUCE, reduce), "ArgMax": arg, "Concat": concat,
    "Expand": expand, "Flatten": flatten, "Gather": gather, "Gemm": gemm, "MatMul": matmul, "Reshape": reshape,
    "Shape": lambda call: [(len(call.shape()),)], "Slice": cut, "Split": split, "Squeeze": squeeze, "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}  # fmt: skip

# --- values that are followed -------------------------------------------------------------------------------------------


def part_of(call: Call) -> Any:
    """The numbers of a `Slice`."""
    found: Any = call.values[0].known
    for axis, part in cuts(call):
        found = found[(slice(None),) * axis + (part,)]
    return found


NUMBERS: dict[str, Callable[[Call, list[Any]], Any]] = {
    "Add": lambda call, n: n[0] + n[1], "Sub": lambda call, n: n[0] - n[1], "Mul": lambda call, n: n[0] * n[1],
    "Div": lambda call, n: n[0] // n[1] if n[0].dtype.kind == "i" else n[0] / n[1], "Equal": lambda call, n: n[0] == n[1],
    "Mod": lambda call, n: n[0] % n[1], "Expand": lambda call, n: np.broadcast_to(n[0], expand(call)[0]),
    "Cast": lambda call, n: n[0].astype(np.int64) if call.attributes.get("to") == 7 else None, "Identity": lambda call, n: n[0],
    "Concat": lambda call, n: np.concatenate(n, call.attributes.get("axis", 0)), "Where": lambda call, n: np.where(*n),
    "Gather": lambda call, n: np.take(n[0], n[1], call.attributes.get("axis", 0)), "Slice": lambda call, n: part_of(call),
}  # fmt: skip
RESHAPED = ("Reshape", "Unsqueeze", "Squeeze", "Flatten")


def numbers_of(operator: str, call: Call, shape: Shape) -> NDArray[Any] | None:
    """What a node gives, where all that it reads is known and it gives few numbers."""
    if operator == "Shape":
        return np.array(call.shape(), np.int64)
    known = [value.known for value in call.values]
    if math.prod(shape) > MAX_KNOWN or any(each is None for each in known):
        return None
    if operator in RESHAPED:
        assert known[0] is not None
        return known[0].reshape(shape)
    with np.errstate(all="ignore"):
        found = NUMBERS[operator](call, known) if operator in NUMBERS else None
    return None if found is None else np.asarray(found)


# --- the graph ----------------------------------------------------------------------------------------------------------


def check_sizes(
    graph: dict[str, Any], constants: Mapping[str, NDArray[Any]], inputs: Mapping[str, Shape], most: int
) -> dict[str, Shape]:
    """Shapes of all values of a checked graph by name, which hold at most `most` numbers together.

    Args:
        constants: its tensors. inputs: shapes of its inputs.

    Raises:
        WireError: shapes that do not fit, that nobody knows beforehand, or that are too large; one line.
    """
    values = {name: Value(shape) for name, shape in inputs.items()}
    for name, array in constants.items():
        values[name] = Value(array.shape, array if array.size <= MAX_KNOWN else None)
    left = most
    for node in graph["node"]:
        operator = node["op_type"]
        call = Call([values[name] for name in node["input"]], attributes_of(node), len(node["output"]))
        for name, shape in zip(node["output"], shapes_of(operator, call), strict=True):
            left -= math.prod(shape)
            if len(shape) > MAX_RANK or left < 0:
                allowed = f"{most:,} numbers in all values, and {MAX_RANK} axes"
                raise WireError(f"{operator}: makes {shape}, allowed are {allowed}")
            values[name] = Value(shape, numbers_of(operator, call, shape))
    return {name: value.shape for name, value in values.items()}


def shapes_of(operator: str, call: Call) -> list[Shape]:
    """Shapes of a node's outputs."""
    given = [value.shape for value in call.values]
    try:
        shapes = RULES[operator](call)
    except WireError as error:
        raise WireError(f"{operator}: {error}") from None
    except (ValueError, IndexError, TypeError):
        raise WireError(f"{operator}: cannot be computed of values of {given}") from None
    if len(shapes) != call.outputs:
        raise WireError(f"{operator}: {call.outputs} outputs, allowed are {len(shapes)}")
    return shapes
