"""The devices of co-located cells: they send prompts and receive tokens, behind the same shaped network as those that draft.

Nothing waits for a token but the next prompt for the last one, so a token counts as received its delay after it came, never before the
one before it, and a device sleeps before it sends a prompt and for the last token alone.
"""

import asyncio
import contextlib
import json
import random
import time

from agents.sim2real.devices import Deployed, Fleet, RoundRow, answer_of, start_of
from agents.sim2real.stream_server import Sent
from wisp_gym.cli import progress

LINE_BYTES = 1 << 20  # most of one message


class Receiver:
    """One device: prompt after prompt, closed loop.

    Args:
        fleet: of which it is one. place: which one. address: of the server. out: where its rounds are noted.
    """

    def __init__(self, fleet: Fleet, place: int, address: str, out: Deployed) -> None:
        self.fleet, self.place, self.out = fleet, place, out
        self.host, _, self.port = address.partition(":")
        self.rng = random.Random(fleet.seed * 1_000_003 + place)

    def delay_s(self) -> float:
        """One message's."""
        return self.fleet.shape.one_way_s * self.rng.lognormvariate(0.0, self.fleet.shape.jitter)

    async def work(self) -> None:
        """Until it is cancelled."""
        fleet, request = self.fleet, 0
        reader, writer = await asyncio.open_connection(self.host, int(self.port), limit=LINE_BYTES)
        with contextlib.closing(writer):
            await sleep_until(self.out.start_s + start_of(fleet.seed, self.place, fleet.start_window_s))
            while True:
                begun_s = time.monotonic()
                prompt = fleet.prompts[answer_of(fleet.seed, self.place, request, len(fleet.prompts))]
                await asyncio.sleep(self.delay_s())
                writer.write((json.dumps([list(prompt), fleet.max_new_tokens]) + "\n").encode())
                await sleep_until(await self.answer(reader, request, begun_s))
                request += 1

    async def answer(self, reader: asyncio.StreamReader, request: int, begun_s: float) -> float:
        """When the last token of an answer is received; each message is a round.

        Raises:
            ConnectionError: the server is gone.
        """
        position, sent = 0, Sent(0.0, 0.0, 0, 0, 0, False)
        asked_s = begun_s
        while not sent.ended:
            if not (line := await reader.readline()):
                raise ConnectionError("the server has ended")
            sent = Sent(*json.loads(line))
            received_s = max(time.monotonic() + self.delay_s(), begun_s)
            left_s, held_s = (sent.sent_s, 0.0) if position else (asked_s, sent.sent_s - sent.arrived_s)
            if received_s < self.out.end_s:
                row = (self.place, request, position, begun_s, left_s, received_s, held_s)
                self.out.rounds.append(RoundRow(*row, sent.drafted, sent.accepted, sent.committed))
            begun_s, position = received_s, position + sent.committed
        return begun_s


async def sleep_until(moment_s: float) -> None:
    """Sleep, on the clock of the rows."""
    await asyncio.sleep(max(moment_s - time.monotonic(), 0.0))


async def run_all(fleet: Fleet, address: str, out: Deployed, name: str) -> None:
    """All devices, to the end of the run."""
    tasks = [asyncio.create_task(Receiver(fleet, place, address, out).work()) for place in range(fleet.n)]
    with progress(round(fleet.seconds), "s", desc=name) as bar:
        while (left_s := out.end_s - time.monotonic()) > 0:
            await asyncio.sleep(min(left_s, 1.0))
            bar.update()
    for task in tasks:
        task.cancel()
    for place, found in enumerate(await asyncio.gather(*tasks, return_exceptions=True)):
        if not isinstance(found, asyncio.CancelledError):  # a device that ended by itself
            out.faults.append(f"device {place}: {type(found).__name__}: {found}")


def receive_all(fleet: Fleet, address: str, name: str) -> Deployed:
    """Run a fleet of receivers to its end, with a progress bar of this name."""
    start_s, cpu_s = time.monotonic() + 0.5, time.process_time()
    out = Deployed(start_s, start_s + fleet.seconds)
    asyncio.run(run_all(fleet, address, out, name))
    out.cpu_share = (time.process_time() - cpu_s) / fleet.seconds
    return out
