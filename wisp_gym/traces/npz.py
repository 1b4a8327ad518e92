"""NPZ files (a ZIP of NPY arrays) from outside: read without pickle, and without taking more memory than allowed.

A few kilobytes of ZIP can unpack to gigabytes, and an NPY header can claim any shape. So the sizes in the directory of
the file are added up first, each array's header is compared with its size, and only then is anything unpacked.
"""

import io
import math
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO

import numpy as np

from wisp_gym.errors import InputError


class NpzError(InputError):
    """A file that cannot be used; the message is one line and names the array."""


def read_arrays(
    path: Path, dtypes: Mapping[str, str], optional: Collection[str], max_bytes: int
) -> dict[str, np.ndarray]:
    """The arrays of a file by name, in C order; read-only.

    Args:
        path: A regular file.
        dtypes: Type of each array that may be there; all must, but for those named in `optional`.
        optional: The arrays that may be missing.
        max_bytes: Arrays that need more in all are an error.

    Raises:
        NpzError: no such file, unknown, missing or doubled arrays, wrong types, too large, damaged or cut off.
    """
    if not path.is_file():  # a pipe or a device could block, or never end
        raise NpzError("not a regular file" if path.exists() else "no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, dtypes, optional, max_bytes)
            return {name: _array(archive, info, name, np.dtype(dtypes[name])) for name, info in members.items()}
    except zipfile.BadZipFile as error:
        raise NpzError(f"not a whole NPZ file ({error})") from None
    except (OSError, NotImplementedError, RuntimeError) as error:  # the latter two: other compression, encryption
        raise NpzError(f"cannot be read ({error})") from None


def pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The arrays as an NPZ file; entries carry ZIP's earliest date, so that equal arrays give equal bytes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            entry = io.BytesIO()
            np.lib.format.write_array(entry, array, version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy")
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, entry.getvalue())
    return content.getvalue()


def _members(
    archive: zipfile.ZipFile, dtypes: Mapping[str, str], optional: Collection[str], max_bytes: int
) -> dict[str, zipfile.ZipInfo]:
    """The entries of the file by array: each known, none twice or missing, and not too large when unpacked."""
    found: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name not in dtypes or name in found or not info.filename.endswith(".npy"):
            raise NpzError(f"array {info.filename[:60]!r}: unknown or twice; allowed: {', '.join(dtypes)}")
        found[name] = info
    if missing := [name for name in dtypes if name not in found and name not in optional]:
        raise NpzError(f"array {missing[0]!r} is missing; allowed: {', '.join(dtypes)}")
    total = sum(info.file_size for info in found.values())
    if total > max_bytes:
        raise NpzError(f"arrays of {total} bytes; allowed: at most {max_bytes} (argument max_bytes)")
    return found


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, wanted: np.dtype) -> np.ndarray:
    """One array, once its NPY header says what the directory of the file says."""
    try:
        with archive.open(info) as file:
            shape = _shape(file, name, wanted)
            size = math.prod(shape) * wanted.itemsize
            if min(shape, default=1) < 0 or size > info.file_size:  # before memory is taken
                raise NpzError(f"{name}: shape {shape} needs {size} bytes, the file has {info.file_size}")
            content = file.read(size + 1)  # one more: the read at the end checks the sum over all bytes
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise NpzError(f"{name}: damaged or cut off ({error})") from None
    if len(content) != size:
        raise NpzError(f"{name}: {len(content)} bytes of data; allowed: {size} for shape {shape}")
    return np.frombuffer(content, wanted).reshape(shape)


def _shape(file: IO[bytes], name: str, wanted: np.dtype) -> tuple[int, ...]:
    """Shape of an NPY array in C order of the wanted type; the file then stands at its data."""
    try:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise NpzError(f"{name}: NPY version {version}; allowed: (1, 0)")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except NpzError:
        raise
    except ValueError as error:
        raise NpzError(f"{name}: no NPY array ({' '.join(str(error).split())[:100]})") from None
    if dtype != wanted:
        raise NpzError(f"{name}: type {dtype}; allowed: {wanted}")
    if fortran and len(shape) > 1:
        raise NpzError(f"{name}: Fortran order; allowed: C order")
    return shape
