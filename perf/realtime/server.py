"""Real-time mode against a running server: each request is sent when it is due, however many are still out."""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import numpy as np

import hrt
from hrt.errors import BackendError
from hrt.perf.realtime.inference_client import TOLERANCE, Client, Question, Server, difference, with_answers
from hrt.perf.realtime.latencies import Figures, summarise
from hrt.perf.realtime.open_loop import GRACE_S, NS, UNSERVED, Options, Slice, schedule

# asyncio rounds its sleeps up to the millisecond: until so long before an arrival it sleeps, then it looks again and
# again, letting answers in between.
SPIN_NS = 2_500_000
REACHED_S = 5.0  # in which a server has to say that it is there
FLOOR = "empty call, asyncio"
Ask = Callable[[int], Awaitable[Any]]


def measure_servers(
    model: hrt.CompressedModel, inputs: Sequence[tuple[np.ndarray, ...]], servers: Sequence[Server], options: Options
) -> list[Figures]:
    """Every server in turns of a second, and an empty coroutine, once the answers are those of `predict`."""
    return asyncio.run(_measure(with_answers(model, inputs), servers, options))


async def _measure(asked: Sequence[Question], servers: Sequence[Server], options: Options) -> list[Figures]:
    async def nothing(_: int) -> None:
        return None

    slices: dict[str, list[Slice]] = {}
    errors: dict[str, list[str]] = {}
    try:
        async with AsyncExitStack() as stack:
            subjects: dict[str, Ask] = {}
            for server in servers:
                client = Client(server)
                stack.push_async_callback(client.connection.close)
                await reach(client)
                subjects[f"server, {server.protocol}"] = _asker(client, asked)
                await agree(subjects[f"server, {server.protocol}"], server, asked)
            subjects[FLOOR] = nothing
            slices, errors = {s: [] for s in subjects}, {s: [] for s in subjects}
            for name, count in options.turns(list(subjects)):
                part = await serve(subjects[name], options.rate, count, lead=options.lead, errors=errors[name])
                slices[name].append(part)
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted: these are the turns until then", file=sys.stderr)
    return [
        summarise(name, parts, deadline_us=options.deadline_us, note="; ".join(errors[name][-1:]))
        for name, parts in slices.items()
        if parts
    ]


async def serve(
    ask: Ask,
    rate: float,
    count: int,
    *,
    lead: int = 0,
    grace: float = GRACE_S,
    errors: list[str] | None = None,
    now: Callable[[], int] = time.perf_counter_ns,
) -> Slice:
    """Start `ask(k)` for `count` requests at `rate` a second, each when it is due. errors: what failures said."""
    due = schedule(rate, lead + count, now() + SPIN_NS)
    begun, done = [UNSERVED] * len(due), [UNSERVED] * len(due)
    failed = np.zeros(len(due), bool)

    async def one(k: int) -> None:
        begun[k] = now()
        try:
            await ask(k)
        except Exception as error:  # the server's or the network's
            failed[k] = True
            if errors is not None:
                errors.append(f"{type(error).__name__}: {error}")
        done[k] = now()

    tasks = []
    for k, moment in enumerate(due.tolist()):
        left = moment - now()
        if left > SPIN_NS:
            await asyncio.sleep((left - SPIN_NS) / NS)
        while now() < moment:
            await asyncio.sleep(0)
        tasks.append(asyncio.create_task(one(k)))
    _, late = await asyncio.wait(tasks, timeout=grace)
    closed = now()
    for task in late:
        task.cancel()
    if late:
        await asyncio.wait(late, timeout=grace)
    ended = np.array(done, np.int64)
    ended[ended > closed] = UNSERVED  # cancelled ones
    parts = (np.array(begun, np.int64)[lead:], ended[lead:], closed, NS / rate, (failed & (ended != UNSERVED))[lead:])
    return Slice(due[lead:], *parts)


async def reach(client: Client, seconds: float = REACHED_S) -> None:
    """Raise BackendError, saying what was found, unless the server is live and has the model ready."""
    server = client.server
    where = f"{server.address} ({server.protocol})"
    try:
        live = await asyncio.wait_for(client.connection.is_server_live(), seconds)
        ready = live and await asyncio.wait_for(client.connection.is_model_ready(server.name), seconds)
    except Exception as error:  # aiohttp's, grpc's, tritonclient's, the time limit
        reason = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
        raise BackendError(
            f"No server answers at {where}: {reason}. Start one (hrt repository --help), or correct the address."
        ) from error
    if not ready:
        raise BackendError(
            f"The server at {where} has no model {server.name!r} ready. Wait until it is live, or give --name."
        )


def _asker(client: Client, asked: Sequence[Question]) -> Ask:
    requests = [client.request(q) for q in asked]
    return lambda k: client.infer(requests[k % len(requests)])


async def agree(ask: Ask, server: Server, asked: Sequence[Question]) -> None:
    """Raise BackendError unless the server's answers are those of `predict`, in proportion to the outputs at large: one
    row may be near zero.
    """
    typical = {}
    for name in asked[0].expected:
        outputs = np.concatenate([q.expected[name].astype(np.float64).reshape(-1) for q in asked])
        typical[name] = float(np.sqrt(np.mean(np.square(outputs[np.isfinite(outputs)])))) if outputs.size else 0.0
    for k, question in enumerate(asked):
        try:
            answer = await ask(k)
            outputs = {name: answer.as_numpy(name) for name in question.expected}
        except Exception as error:
            raise BackendError(f"{server.address} refuses a request: {type(error).__name__}: {error}") from error
        for name, expected in question.expected.items():
            wrong, size = difference(outputs[name], expected), float(np.linalg.norm(expected))
            if TOLERANCE < wrong < float("inf") and size:
                wrong *= min(1.0, size / (typical[name] * expected.size**0.5))
            if not wrong <= TOLERANCE:
                raise BackendError(
                    f"{server.address} answers {name!r} otherwise than predict, by {wrong:.2g} (relative). "
                    f"Expected at most {TOLERANCE:g}: it has to serve the file that is named here."
                )
