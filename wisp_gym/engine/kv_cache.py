"""Keys and values in the server's memory: prefix cache, least recently used sessions are evicted first.

Legend: `s` SERVER row; `d` DEVICE row of a session; `devices` (n,) DEVICE; `i` number of the session's device.
"""

from wisp_gym.jit import jit


@jit
def forget(s, devices, i):
    """Take session i off the list of idle cached sessions (its tokens stay counted)."""
    d = devices[i]
    if d.resident == 0:
        return
    if d.newer >= 0:
        devices[d.newer].older = d.older
    else:
        s.lru_newest = d.older
    if d.older >= 0:
        devices[d.older].newer = d.newer
    else:
        s.lru_oldest = d.newer
    d.resident = 0


@jit
def remember(s, devices, i):
    """Put session i on the list of idle cached sessions as the most recently used."""
    d = devices[i]
    d.newer = -1
    d.older = s.lru_newest
    if s.lru_newest >= 0:
        devices[s.lru_newest].newer = i
    else:
        s.lru_oldest = i
    s.lru_newest = i
    d.resident = 1


@jit
def release(s, devices, i):
    """Free all of session i."""
    forget(s, devices, i)
    s.kv_tokens -= devices[i].cached_tokens
    devices[i].cached_tokens = 0


@jit
def make_room(s, devices, needed_tokens, capacity_tokens):
    """Evict idle sessions, oldest first, until `needed_tokens` more fit; returns how many were evicted."""
    evicted = 0
    while s.kv_tokens + needed_tokens > capacity_tokens and s.lru_oldest >= 0:
        release(s, devices, s.lru_oldest)
        evicted += 1
    return evicted
