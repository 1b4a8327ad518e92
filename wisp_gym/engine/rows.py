"""Rows of what only some controllers keep of each device.

Legend: `rows` (n, …), or (1, …) where no controller needs one for each device; `i` number of a device.
"""

from wisp_gym.jit import jit_inline


@jit_inline
def row_of(rows, i):
    """Place of device i's row, or of the only one."""
    return min(i, rows.shape[0] - 1)
