"""A load of concurrent requests on an inference server, every answer compared with `predict`."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import hrt
from hrt.perf.realtime.inference_client import TOLERANCE, Client, Question, Server, difference, with_answers

BATCHES = (1, 2, 3, 7, 16, 33, 64)  # rows of a request, in turn
DEADLINE_SECONDS = 60.0
HEADER = "served by                  proto  asked  at once  failed  again  wrong    worst   p50 ms   p99 ms"


@dataclass(frozen=True)
class Outcome:
    """What came of a load. wrong: answers that differ from `predict`.  failed: requests without an answer.  repeated:
    those answered when they were sent again.  worst: the largest relative difference.  seconds: of every answer.
    """

    requests: int
    wrong: int
    failed: int
    repeated: int
    worst: float
    seconds: tuple[float, ...]
    in_flight: int
    errors: tuple[str, ...] = ()

    def quantile(self, q: float) -> float:
        """Milliseconds within which the fraction `q` of the answered requests had its answer; NaN without any."""
        return 1e3 * float(np.quantile(self.seconds, q)) if self.seconds else float("nan")


def questions(model: hrt.CompressedModel, batches: Sequence[int] = BATCHES, kinds: int = 4) -> list[Question]:
    """Random requests of mixed batch sizes, `kinds` of every size."""
    generator = np.random.default_rng(0)
    shapes = [[(rows, *v.shape) for v in model.program.inputs] for _ in range(kinds) for rows in batches]
    return with_answers(model, (tuple(generator.random(s, dtype=np.float32) for s in shape) for shape in shapes))


def ask(
    server: Server,
    asked: Sequence[Question],
    requests: int = 1000,
    in_flight: int | None = None,
    attempts: int = 1,
    deadline: float = DEADLINE_SECONDS,
) -> Outcome:
    """Send `requests` requests, `asked` in turn, and compare every answer.

    in_flight: how many are out at once; None: all of them.  attempts: how often a request that fails is sent.
    deadline: seconds for all together. With all at once latency is mostly the wait for the others.
    """
    return asyncio.run(_ask(server, asked, requests, in_flight or requests, attempts, deadline))


async def _ask(
    server: Server, asked: Sequence[Question], requests: int, in_flight: int, attempts: int, deadline: float
) -> Outcome:
    client, gate = Client(server), asyncio.Semaphore(in_flight)
    seconds: list[float] = []
    differences: list[float] = []
    errors: list[str] = []
    repeated = 0

    async def one(question: Question) -> None:
        nonlocal repeated
        for attempt in range(attempts):
            async with gate:
                start = time.perf_counter()
                try:
                    answer = await client.infer(client.request(question))
                    outputs = {name: answer.as_numpy(name) for name in question.expected}
                except Exception as error:  # the server's or the network's
                    reason = f"{type(error).__name__}: {error}"
                else:
                    seconds.append(time.perf_counter() - start)
                    differences.append(max(difference(outputs[n], e) for n, e in question.expected.items()))
                    repeated += attempt > 0
                    return
            if attempt + 1 == attempts:
                errors.append(reason)
            else:
                await asyncio.sleep(0.2 * (attempt + 1))

    tasks = [asyncio.create_task(one(asked[k % len(asked)])) for k in range(requests)]
    try:
        _, late = await asyncio.wait(tasks, timeout=deadline)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=5)
            errors.append(f"{len(late)} requests had no answer after {deadline:g} s")
    finally:
        await client.connection.close()
    wrong, worst = sum(not d <= TOLERANCE for d in differences), max(differences, default=0.0)
    failed = requests - len(differences)
    return Outcome(requests, wrong, failed, repeated, worst, tuple(seconds), in_flight, tuple(errors[-3:]))


def row(what: str, server: Server, outcome: Outcome) -> str:
    """One line of the transcript, under `HEADER`."""
    return (
        f"{what:26} {server.protocol:5} {outcome.requests:6} {outcome.in_flight:8} {outcome.failed:7} "
        f"{outcome.repeated:6} {outcome.wrong:6} {outcome.worst:8.0e} {outcome.quantile(0.5):8.1f} "
        f"{outcome.quantile(0.99):8.1f}"
    )
