"""Binary heap of (key, item) in two arrays, smallest key first, the smaller item first among equal keys.

Legend: `keys` (n,) float64 and `items` (n,) int64, of which the first `size` are the heap; `a`, `b` and `i` places
in them; `key`, `item` of one entry.
"""

from wisp_gym.jit import jit


@jit
def before(keys, items, a, b):
    """Whether entry a goes before entry b."""
    return keys[a] < keys[b] or (keys[a] == keys[b] and items[a] < items[b])


@jit
def swap(keys, items, a, b):
    """Exchange two entries."""
    keys[a], keys[b] = keys[b], keys[a]
    items[a], items[b] = items[b], items[a]


@jit
def sift_down(keys, items, size, i):
    """Move entry i down to its place among `size` entries."""
    while True:
        child = 2 * i + 1
        if child >= size:
            return
        if child + 1 < size and before(keys, items, child + 1, child):
            child += 1
        if not before(keys, items, child, i):
            return
        swap(keys, items, i, child)
        i = child


@jit
def push(keys, items, size, key, item):
    """Add an entry to `size` entries."""
    i = size
    keys[i] = key
    items[i] = item
    while i > 0:
        parent = (i - 1) >> 1
        if not before(keys, items, i, parent):
            return
        swap(keys, items, i, parent)
        i = parent


@jit
def pop(keys, items, size):
    """Take the first of `size` entries off; returns its item."""
    item = items[0]
    keys[0] = keys[size - 1]
    items[0] = items[size - 1]
    sift_down(keys, items, size - 1, 0)
    return item


@jit
def heapify(keys, items, size):
    """Order `size` entries as a heap."""
    for i in range(size // 2 - 1, -1, -1):
        sift_down(keys, items, size, i)
