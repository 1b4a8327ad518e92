"""The line of those who wait at the server, in order of arrival.

Whoever leaves makes a gap, and the others stay where they are: they move up together once the line has reached the end of
its array, not after every batch. Places in the line therefore tell who came first.

Legend: `s` SERVER row; `d` DEVICE row and `i` number of a device; `line` (2n,) int64 devices, NOBODY in a gap; `places` (n,)
int64 place of each device that waits, `place` one of them; `queue` (n,) int64 devices that the next batch looks at.
"""

from wisp_gym.engine.state import NOBODY, QUEUED
from wisp_gym.jit import jit


@jit
def enqueue(s, d, line, places, queue, i):
    """A message reaches the server."""
    if s.line_end == line.shape[0]:
        move_up(s, line, places)
    d.phase = QUEUED
    places[i] = s.line_end
    line[s.line_end], queue[s.n_queue] = i, i
    s.line_end += 1
    s.n_waiting += 1
    s.n_queue += 1


@jit
def leave_line(s, line, place):
    """Who stands in this place waits no longer."""
    line[place] = NOBODY
    s.n_waiting -= 1
    while s.line_first < s.line_end and line[s.line_first] == NOBODY:
        s.line_first += 1


@jit
def move_up(s, line, places):
    """Close the gaps. The line has twice as many places as there are devices, so at least as many are free then."""
    end = 0
    for place in range(s.line_first, s.line_end):
        i = line[place]
        if i != NOBODY:
            line[end], places[i] = i, end
            end += 1
    s.line_first, s.line_end = 0, end
