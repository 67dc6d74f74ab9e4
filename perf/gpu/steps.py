"""What each step on a GPU does; `hrt.perf.gpu.plan` has their order."""

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hrt.errors import InputError
from hrt.kernels.launch import Config
from hrt.kernels.tuning import bucket_of, candidates
from hrt.perf.gpu import layers, testing
from hrt.perf.gpu.ground import Ground, NotHereError, WrongError
from hrt.perf.gpu.layers import UNIT, Layer, Report, one_layer
from hrt.perf.gpu.pack import ROOT, machine, refuse
from hrt.perf.measuring.gpu_timing import Bench
from hrt.perf.measuring.provenance import gpu, versions
from hrt.perf.networks.integral_kernels import layer
from hrt.runtime.capturing import capture, device_seconds
from hrt.runtime.cuda_graphs import Bucket
from hrt.runtime.cuda_program import CudaProgram
from hrt.runtime.cuda_session import CudaSession
from hrt.runtime.tune_kernels import time_on_device
from hrt.schedule.roofline import Chip
from hrt.support.devices import architecture, cuda_device, missing_for_cuda

PLANNED_BYTES = 12 << 30  # of the card: what measuring 65,536 rows of a layer of 4096 beside copies of it takes
ALONE = "threads or strict or derivatives"
MEMORY = "memory_that_runs_out"
MAIN, OTHERS = "log-4096", ("helmholtz-4096", "laplace-4096", "log-8192", "helmholtz-8192", "laplace-8192")
BATCHES, OTHER_BATCHES, NETWORK_BATCHES = (1, 16, 256, 4096, 65536), (1, 16, 256, 4096), (1, 1024)
TRIAL_BATCHES = (1, 16)
MOST_CANDIDATES = 10  # configurations tried for a shape: the rule's and others spread over all
TUNED = (
    ("burgers-1e-3", "", 1),
    ("burgers-1e-3", "", 1024),
    (MAIN, "bf16", 1),
    (MAIN, "bf16", 256),
    (MAIN, "bf16", 4096),
)
STRESSED = ("card", "burgers-1e-2")  # int8 in bf16 and in fp16 arithmetic
SANITIZER = "compute-sanitizer"
SANITIZERS = (Path("/usr/local/cuda/bin") / SANITIZER, Path("/usr/local/cuda/compute-sanitizer") / SANITIZER)
FAULTS_STATUS = 9


def smoke(ground: Ground) -> None:
    """Is this the machine, and are the numbers right? One bf16 session, in its graph and launch by launch."""
    facts, device = _facts(ground)
    ground.record.add_facts(facts)
    subject = ground.layer(MAIN, "bf16")
    x, y = subject.reference
    session = CudaSession(subject.program, device, "bf16", densify=False)
    launched = Bucket(session.program, bucket_of(len(x)), capture=False)
    answers = {"graph": session.run([x.to(device)])[0], "launches": launched.run([x.to(device)], len(x))[0]}
    errors = {k: float((a.cpu().double() - y).norm() / y.norm()) for k, a in answers.items()}
    allowed, again = 5 * UNIT["bf16"], session.run([x.to(device)])[0]
    repeats = bool(torch.equal(again, answers["graph"]))
    ground.write({"errors": errors, "allowed": allowed, "same_bits_again": repeats})
    if ground.judges and not (repeats and all(e <= allowed for e in errors.values())):
        tables = session.program.plan.tables
        tensors = {"x": x, "expected": y, "again": again, **answers, "tiles": tables.tiles, "steps": tables.steps}
        tensors |= {"biases": tables.biases, "scales": tables.scales}
        path = ground.save_wrong(tensors | {f"weights{k}": w for k, w in enumerate(tables.weights)})
        raise WrongError(
            f"errors {errors}, at most {allowed:.1e} expected, same bits again: {repeats}; see {path.name}"
        )


def _facts(ground: Ground) -> tuple[dict[str, Any], torch.device]:
    """What this machine is. Raises InputError where nothing can be measured on it, or the pack is for another one."""
    if lacking := missing_for_cuda():
        raise InputError(f"{_why_no_device() or lacking} Nothing was measured.")
    device = cuda_device(None)
    here = machine(architecture(device))
    mismatches = ground.pack.mismatches(here)
    refuse(mismatches, ground.anyway)
    free, _ = torch.cuda.mem_get_info(device)
    if free < PLANNED_BYTES:
        raise InputError(
            f"Found {free / 1e9:.1f} GB of free memory on {device}. Expected {PLANNED_BYTES / 1e9:.1f} GB."
        )
    return {"gpu": gpu(), "versions": versions(), "machine": here, "in_spite_of": mismatches}, device


def _why_no_device() -> str:
    """What CUDA itself says, such as a driver that is too old."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return f"No CUDA device can be used: {str(error).partition(chr(10))[0].rstrip('.')}."
    return ""


def correctness(ground: Ground) -> None:
    """tests/card.py but for what runs alone, in eight processes."""
    testing.run(ground, f"not ({ALONE} or {MEMORY})", processes=8, most_failures=20)


def threads(ground: Ground) -> None:
    """Threads and streams, strict models, derivatives."""
    testing.run(ground, ALONE)


def memory(ground: Ground) -> None:
    """What happens where a card's memory runs out: nothing else may run beside it."""
    testing.run(ground, MEMORY)


def stress(ground: Ground) -> None:
    """Networks with int8 weights again and again: the same bits every time, and within their tolerance of float64."""
    results: dict[str, Any] = {}
    wrong: list[str] = []
    for name in STRESSED:
        model, (x, y) = ground.model(name), ground.reference(name)
        session = CudaSession(model.program, None, model.precision)
        storages = sorted({str(w.dtype).removeprefix("torch.") for w in session.program.plan.tables.weights})
        error = _relative(session, x, y)
        results[name] = {"precision": model.precision, "storages": storages, "error": error}
        results[name] |= {"tol": model.certificate.tol, "batches": {}}
        if ground.judges and not error <= 1.05 * model.certificate.tol:
            wrong.append(f"{name}: error {error:.2e} where {model.certificate.tol:g} was certified")
        for batch in (16, 64, 256):
            count, differing = _repeated(ground, session, x[:batch].to(session.device))
            results[name]["batches"][str(batch)] = {"replays": count, "differing": differing}
            wrong += [f"{name}: {differing} of {count} replays of {batch} rows differ"] if differing else []
            ground.write(results)
    _refuse_wrong(wrong)


def _relative(session: CudaSession, x: Tensor, y: Tensor) -> float:
    """Relative L2 error of all answers together."""
    return float((session.run([x.to(session.device)])[0].cpu().double() - y).norm() / y.norm())


def _repeated(ground: Ground, session: CudaSession, rows: Tensor) -> tuple[int, int]:
    """How often the same was asked while there was time, and how often the answer was another one than at first."""
    first, count = session.run([rows])[0], 0
    differing = torch.zeros((), dtype=torch.int64, device=session.device)
    while count < ground.replays and not ground.is_over():
        differing += (session.run([rows])[0] != first).any()
        count += 1
    return count, int(differing)


def main_figures(ground: Ground) -> None:
    """Burgers at 1 and 1,024 rows and the log layer of 4096, beside the best dense form and the card's ceilings."""
    report = _report(ground)
    ground.record.add_facts({"chip": asdict(report.chip)})
    wrong = _network(ground, report, "burgers-1e-3")
    wrong += one_layer(report, MAIN, ground.layer(MAIN, "bf16"), TRIAL_BATCHES if ground.trial else BATCHES)
    _refuse_wrong(wrong)


def other_figures(ground: Ground) -> None:
    """A dense layer on our kernels, the other networks, layers and arithmetics, as far as the time goes."""
    report, wrong = _report(ground), []
    batches = TRIAL_BATCHES if ground.trial else OTHER_BATCHES
    wrong += one_layer(report, "dense-4096", dense_layer(64 if ground.trial else 4096), batches)
    for name in ("neuralfoil", "burgers-1e-2"):
        wrong += _network(ground, report, name) if name in ground.pack.models else []
    for precision in ("bf16", "tf32", "fp16"):
        for name in (MAIN, *OTHERS) if precision != "bf16" else OTHERS:
            if name in ground.pack.models:
                wrong += one_layer(report, name, ground.layer(name, precision), batches)
    _refuse_wrong(wrong)


def dense_layer(size: int) -> Layer:
    """A layer that nothing is gained on: it shows what the kernels themselves reach."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(size, size, generator=generator).bfloat16()
    x = torch.randn(16, size, generator=generator)
    return Layer(layer(weight), "bf16", (x, x.double() @ weight.double().T))  # type: ignore[arg-type]


def _network(ground: Ground, report: Report, name: str) -> list[str]:
    batches = TRIAL_BATCHES if ground.trial else NETWORK_BATCHES
    return layers.network(report, name, ground.model(name), ground.reference(name), batches)


def _report(ground: Ground) -> Report:
    torch.set_float32_matmul_precision("high")  # tf32 for dense, as for ours, and for the ceiling
    bench, known = Bench(), ground.record.read()["facts"].get("chip")
    chip = Chip(**known) if known else layers.stand_in() if ground.stub else layers.measured_chip(bench)
    return Report(ground.write, bench, chip, ground.limits)


def _refuse_wrong(lines: list[str]) -> None:
    if lines:
        raise WrongError("; ".join(lines))


def tuning(ground: Ground) -> None:
    """The five shapes used most: seconds of the rule's configuration and of a few others, as kernels/configs.json."""
    rows: list[dict[str, Any]] = []
    for name, precision, bucket in TUNED:
        if ground.is_over():
            break
        program = ground.layer(name, precision).program if precision else ground.model(name).program
        precision = precision or ground.model(name).precision
        launched = CudaSession(program, None, precision, warm=False, densify=not precision).program
        every = candidates(launched.key(bucket))
        most = 2 if ground.trial else MOST_CANDIDATES
        spread = every[1 :: max(1, len(every) // most)][: most - 1]
        row: dict[str, Any] = {"shape": f"{name}, batch {bucket}", "key": str(launched.key(bucket)), "tried": []}
        rows.append(row)
        for config in (every[0], *spread):
            if ground.is_over():
                break
            try:
                seconds: float | None = _seconds(ground, launched, bucket, config)
                remark = ""
            except Exception as error:  # out of shared memory, or a compiler that gives up: the next one
                seconds, remark = None, str(error).partition("\n")[0]
            row["tried"].append({"config": asdict(config), "seconds": seconds, "remark": remark})
            ground.write({"shapes": rows})


def _seconds(ground: Ground, program: CudaProgram, bucket: int, config: Config) -> float:
    """As `hrt tune` times a configuration; in one round, where times say nothing."""
    if not ground.stub:
        return time_on_device(program, bucket, "step", config)
    graph = capture(partial(program.execute, program.new_workspace(bucket), bucket, "step", config))
    return device_seconds(graph.replay, rounds=1)


def one_kernel(ground: Ground) -> None:
    """What compute-sanitizer watches: one network once, launch by launch."""
    model, (x, _) = ground.model("burgers-1e-2"), ground.reference("burgers-1e-2")
    session = CudaSession(model.program, None, model.precision, warm=False)
    Bucket(session.program, 16, kernel="step", capture=False).run([x[:16].to(session.device)], 16)
    torch.cuda.synchronize()


def sanitizer(ground: Ground) -> None:
    """compute-sanitizer's memcheck over one network."""
    tool = shutil.which(SANITIZER) or next((str(p) for p in SANITIZERS if p.is_file()), "")
    if not tool:
        raise NotHereError(f"{SANITIZER} is not on this machine")
    inner = [sys.executable, str(ROOT / "perf" / "gpu"), "worker", *testing.locations(ground), "--step", "one-kernel"]
    command = [tool, "--tool", "memcheck", "--error-exitcode", str(FAULTS_STATUS), *inner]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    )
    print(done.stdout[-8000:], done.stderr[-4000:], flush=True)
    summary = [line for line in done.stdout.splitlines() if "SUMMARY" in line]
    ground.write({"status": done.returncode, "summary": summary[-1:]})
    if done.returncode == FAULTS_STATUS:
        raise WrongError(" ".join(summary[-1:]))
    if done.returncode:
        raise RuntimeError(f"{SANITIZER} ended with status {done.returncode}: {done.stderr.strip()[-300:]}")


def exported(ground: Ground) -> None:
    """The exported graph in ONNX Runtime's CUDA provider: the error, and milliseconds of one row and of many."""
    if find_spec("onnxruntime") is None:
        raise NotHereError("onnxruntime-gpu is not on this machine")
    import onnxruntime as ort

    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise NotHereError("ONNX Runtime has no CUDA provider here")
    name = "burgers-1e-3"
    x, y = ground.reference(name)
    session = ort.InferenceSession(
        str(ground.pack.model(name).with_suffix(".onnx")), providers=["CUDAExecutionProvider"]
    )
    feed = session.get_inputs()[0].name
    answer = torch.from_numpy(session.run(None, {feed: x.numpy()})[0]).double()
    results: dict[str, Any] = {"error": float((answer - y).norm() / y.norm()), "p50_us": {}}
    for batch in NETWORK_BATCHES:
        times = []
        for _ in range(ground.replays // 10 or 1):
            begun = time.perf_counter()
            session.run(None, {feed: x[:batch].numpy()})
            times.append(1e6 * (time.perf_counter() - begun))
        results["p50_us"][str(batch)] = statistics.median(times)
        ground.write(results)
    if not results["error"] <= 1.05e-3:
        raise WrongError(f"error {results['error']:.2e} where 1e-3 was certified")


WORK: Mapping[str, Callable[[Ground], None]] = {
    "smoke": smoke,
    "correctness": correctness,
    "threads": threads,
    "int8-stress": stress,
    "main-figures": main_figures,
    "other-figures": other_figures,
    "memory": memory,
    "tuning": tuning,
    "sanitizer": sanitizer,
    "onnxruntime": exported,
    "one-kernel": one_kernel,
}
