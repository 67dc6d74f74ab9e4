"""Real-time mode against a running server: each request is sent when it is due, however many are still out."""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

import hrt
from hrt.errors import BackendError
from hrt.perf.realtime.latencies import Figures, summarise
from hrt.perf.realtime.open_loop import GRACE_S, NS, UNSERVED, Slice, schedule
from hrt.perf.realtime.server_load import TOLERANCE, Question, Server, open_client

if TYPE_CHECKING:
    from hrt.perf.realtime.command import Options

# asyncio rounds its sleeps up to the millisecond: until so long before an arrival it sleeps, then it looks again and
# again, letting answers in between.
SPIN_NS = 2_500_000
REACHED_S = 5.0  # in which a server has to say that it is there
FLOOR = "empty call, asyncio"
Ask = Callable[[int], Awaitable[object]]


def measure_servers(
    model: hrt.CompressedModel, asked: Sequence[tuple[np.ndarray, ...]], servers: Sequence[Server], options: "Options"
) -> list[Figures]:
    """Every server in turns of a second, and an empty coroutine. Raises BackendError where a server cannot be reached,
    has no such model or answers otherwise than `predict`.
    """
    return asyncio.run(_measure(_questions(model, asked), servers, options))


async def _measure(asked: Sequence[Question], servers: Sequence[Server], options: "Options") -> list[Figures]:
    async def nothing(_: int) -> None:
        return None

    clients, subjects = [], {}
    errors: dict[str, list[str]] = {}
    found: dict[str, list[Slice]] = {}
    try:
        for server in servers:
            client, encode = open_client(server)
            clients.append(client)
            await reach(client, server)
            ask = _asker(client, encode, server, asked)
            await _agree(ask, server, asked)
            subjects[f"server, {server.protocol}"] = ask
        subjects[FLOOR] = nothing
        found, errors = {s: [] for s in subjects}, {s: [] for s in subjects}
        await _turns(subjects, options, found, errors)
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted: these are the turns until then", file=sys.stderr)
    finally:
        for client in clients:
            await client.close()
    return [
        summarise(name, slices, deadline_us=options.deadline_us, note="; ".join(errors[name][-1:]))
        for name, slices in found.items()
        if slices
    ]


async def _turns(
    subjects: Mapping[str, Ask], options: "Options", found: Mapping[str, list[Slice]], errors: Mapping[str, list[str]]
) -> None:
    order, shuffle = list(subjects), Random(options.seed).shuffle
    lead = max(1, round(0.05 * options.rate))
    for count in options.turns():
        shuffle(order)
        for name in order:
            found[name].append(await serve(subjects[name], options.rate, count, lead=lead, errors=errors[name]))


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
    """Start `ask(k)` for `count` requests at `rate` a second, each when it is due. lead: arrivals before, not counted.
    grace: seconds after the last arrival for answers.  errors: what failed requests said is added here.
    """
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


async def reach(client: Any, server: Server, seconds: float = REACHED_S) -> None:
    """Raise BackendError, saying what was found, unless the server is live and has the model ready."""
    where = f"{server.address} ({server.protocol})"
    try:
        live = await asyncio.wait_for(client.is_server_live(), seconds)
        ready = live and await asyncio.wait_for(client.is_model_ready(server.name), seconds)
    except Exception as error:  # aiohttp's, grpc's, tritonclient's, the time limit
        why = str(error).strip().splitlines()
        raise BackendError(
            f"No server answers at {where}: {type(error).__name__}{': ' + why[0] if why else ''}. "
            "Start one (hrt repository --help), or correct the address."
        ) from error
    if not ready:
        raise BackendError(
            f"The server at {where} is {'there, but has no model ' + repr(server.name) if live else 'not live'}"
            f"{' ready. Give its name with --name' if live else '. Wait until it is'}."
        )


def _asker(client: Any, encode: Callable[..., Any], server: Server, asked: Sequence[Question]) -> Ask:
    plain = server.protocol == "http" and not server.binary
    headers = {"Content-Type": "application/json"} if plain else None
    encoded = [encode(q) for q in asked]

    async def ask(k: int) -> Any:
        inputs, outputs = encoded[k % len(encoded)]
        return await client.infer(server.name, inputs, outputs=outputs, headers=headers)

    return ask


async def _agree(ask: Ask, server: Server, asked: Sequence[Question]) -> None:
    """The server's answers are those of `predict`, in proportion to the outputs at large: one row may be near zero."""
    from hrt.export.onnx.check import relative

    typical = {}
    for name in asked[0].expected:
        outputs = np.concatenate([q.expected[name].astype(np.float64).reshape(-1) for q in asked])
        typical[name] = float(np.sqrt(np.mean(np.square(outputs[np.isfinite(outputs)])))) if outputs.size else 0.0
    for k, question in enumerate(asked):
        try:
            answer: Any = await ask(k)
            found = {name: answer.as_numpy(name) for name in question.expected}
        except Exception as error:
            raise BackendError(f"{server.address} refuses a request: {type(error).__name__}: {error}") from error
        for name, expected in question.expected.items():
            y = found[name]
            difference = relative(y, expected) if y is not None and y.shape == expected.shape else float("inf")
            if TOLERANCE < difference < float("inf") and (own := float(np.linalg.norm(expected))):
                difference *= min(1.0, own / (typical[name] * expected.size**0.5))
            if not difference <= TOLERANCE:
                raise BackendError(
                    f"{server.address} answers {name!r} otherwise than predict, by {difference:.2g} (relative). "
                    f"Expected at most {TOLERANCE:g}: it has to serve the file that is named here."
                )


def _questions(model: hrt.CompressedModel, asked: Sequence[tuple[np.ndarray, ...]]) -> list[Question]:
    from hrt.export.onnx.exporter import to_onnx

    graph = to_onnx(model).graph
    found = []
    for x in asked:
        y = model.predict(x)
        answers = y if isinstance(y, tuple) else (y,)
        inputs = {v.name: a for v, a in zip(graph.input, x, strict=True)}
        found.append(Question(inputs, {v.name: a for v, a in zip(graph.output, answers, strict=True)}))
    return found
