"""A strict reader of the protobuf wire format: messages of known fields, nothing else.

Source: protobuf.dev/programming-guides/encoding. A field that the caller's table does not list is an error, so what the
table leaves out (functions, external data, training graphs, custom domains) cannot be in a file that is read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from wisp_gym.errors import InputError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
MAX_DEPTH = 8


class WireError(InputError):
    """Bytes that are not a message of the table; the message is one line."""


class Field(NamedTuple):
    """One field of a message: its name, how its value is read, and whether it may come more than once.

    `read` is "int", "float", "bytes", "text", or the table of a message.
    """

    name: str
    read: str | Mapping[int, Field]
    many: bool = False


Table = Mapping[int, Field]
MANY = True


def table(**fields: tuple[Any, ...]) -> Table:
    """The table of a message: name of each field = its number, how its value is read, and `MANY` where it may be repeated."""
    return {number: Field(name, *read) for name, (number, *read) in fields.items()}


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """(value, place after it) of a base-128 number of at most 64 bits."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (2**64 - 1), at
    raise WireError("a number is cut off or too long")


def take(data: memoryview, at: int, n: int) -> tuple[memoryview, int]:
    """(n bytes, place after them)."""
    if n > len(data) - at:
        raise WireError(f"a field of {n} bytes is cut off")
    return data[at : at + n], at + n


def signed(value: int) -> int:
    """int64 of a varint."""
    return value - 2**64 if value >= 2**63 else value


def message(data: memoryview, table: Table, where: str, depth: int = 0) -> dict[str, Any]:
    """Fields of a message by name; a field that may come more than once is a list, one that is missing is left out.

    Raises:
        WireError: unknown fields, wrong wire types, doubled single fields, bytes cut off, messages too deep.
    """
    if depth > MAX_DEPTH:
        raise WireError(f"{where}: messages lie more than {MAX_DEPTH} deep")
    found: dict[str, Any] = {field.name: [] for field in table.values() if field.many}
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        field = table.get(tag >> 3)
        if field is None:
            raise WireError(f"{where}: field {tag >> 3} is not allowed")
        place = f"{where}.{field.name}"
        values, at = read_field(data, at, tag & 7, field, place, depth)
        if field.many:
            found[field.name] += values
        elif field.name in found or len(values) != 1:
            raise WireError(f"{place}: allowed once")
        else:
            found[field.name] = values[0]
    return found


def read_field(data: memoryview, at: int, wire: int, field: Field, place: str, depth: int) -> tuple[list[Any], int]:
    """Values of one occurrence of a field (several where numbers are packed) and the place after it."""
    if field.read == "int" and wire == VARINT:
        value, at = varint(data, at)
        return [signed(value)], at
    if field.read == "float" and wire == FIXED32:
        raw, at = take(data, at, 4)
        return [struct.unpack("<f", raw)[0]], at
    if wire != BYTES:
        raise WireError(f"{place}: wire type {wire} is not allowed")
    length, at = varint(data, at)
    raw, at = take(data, at, length)
    if isinstance(field.read, Mapping):
        return [message(raw, field.read, place, depth + 1)], at
    return READERS[field.read](raw, place), at


def packed_ints(raw: memoryview, place: str) -> list[int]:
    """Numbers one after another."""
    values, at = [], 0
    while at < len(raw):
        value, at = varint(raw, at)
        values.append(signed(value))
    return values


def packed_floats(raw: memoryview, place: str) -> list[float]:
    """float32 one after another."""
    if len(raw) % 4:
        raise WireError(f"{place}: {len(raw)} bytes are no float32 numbers")
    return list(struct.unpack(f"<{len(raw) // 4}f", raw))


def text(raw: memoryview, place: str) -> list[str]:
    """UTF-8."""
    try:
        return [str(raw, "utf-8")]
    except UnicodeDecodeError:
        raise WireError(f"{place}: not UTF-8") from None


READERS: dict[str, Callable[[memoryview, str], list[Any]]] = {
    "int": packed_ints,
    "float": packed_floats,
    "text": text,
    "bytes": lambda raw, place: [bytes(raw)],
}
