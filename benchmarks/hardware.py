"""What this machine can do, as a yardstick for the engine: memory bandwidth and peak arithmetic.

    .venv/bin/python benchmarks/hardware.py [--threads N] [--json FILE]

* memory: each thread reads an array of its own, far larger than the caches, with one numpy pass after
  another (the GIL is released); the best pass of the fastest kind counts. This bounds decoding.
* fp32: numpy's BLAS, 2048 x 2048 matrices. Its kernel is named: OPENBLAS_CORETYPE, where it is set,
  can force a slow one, so the measuring child runs without it.
* int8 and int4: single ONNX Runtime nodes as in our graphs (MatMulNBits, blocks of 32, accuracy level
  4) and MatMulInteger, with many rows (prefill) and one row (decode). The one-row matrix does not fit
  in the caches, so its GB/s can be compared with the memory's.

Every part runs in a child of its own with exactly the threads asked for.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ARRAY_BYTES = 512 * 2**20
SECONDS = 2.0  # for each number
FORCED = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
BLOCK = 32
# rows, inputs, outputs of a product: prefill, decode out of memory, decode of a small layer out of cache.
SHAPES = ((512, 2048, 2048), (1, 2048, 65536), (1, 576, 1536))

Numbers = dict[str, Any]


def memory(threads: int) -> Numbers:
    """Read bandwidth of all threads together."""
    with ThreadPoolExecutor(threads) as pool:
        # Written by the thread that reads it, so that its pages are near.
        arrays = list(pool.map(lambda _: np.ones(ARRAY_BYTES // 4, np.float32), range(threads)))
        best: dict[str, float] = {}
        kinds: dict[str, Callable[[Any], Any]] = {
            "dot(x, x)": lambda array: np.dot(array, array),
            "max": lambda array: array.max(),
            "bitwise or": lambda array: np.bitwise_or.reduce(array.view(np.uint64)),
        }
        for name, read in kinds.items():
            seconds = best_seconds(lambda read=read: list(pool.map(read, arrays)))
            best[name] = threads * ARRAY_BYTES / seconds / 1e9
    kind = max(best, key=lambda name: best[name])
    return {"read bandwidth, GB/s": best[kind], "read by": kind, "all ways": best}


def fp32(threads: int) -> Numbers:
    """Matrix product of numpy's BLAS."""
    size = 2048
    left, right = (np.random.default_rng(seed).random((size, size), np.float32) for seed in (0, 1))
    seconds = best_seconds(lambda: left @ right)
    return {"fp32, GFLOP/s": 2 * size**3 / seconds / 1e9, "BLAS kernel": _blas_kernel()}


def products(threads: int) -> Numbers:
    """Integer products of ONNX Runtime."""
    numbers: Numbers = {}
    for rows, inputs, outputs in SHAPES:
        for name, bits in (("MatMulNBits 8 bit", 8), ("MatMulNBits 4 bit", 4), ("MatMulInteger", 0)):
            run = _product(rows, inputs, outputs, bits, threads)
            seconds = best_seconds(run)
            label = f"{name}, {rows}x{inputs}x{outputs}"
            numbers[f"{label}, GOP/s"] = 2 * rows * inputs * outputs / seconds / 1e9
            if rows == 1:
                size = inputs * outputs * (bits / 8 + 4 / BLOCK if bits else 1)
                numbers[f"{label}, GB/s of weights"] = size / seconds / 1e9
    return numbers


PARTS = {"memory": memory, "fp32": fp32, "products": products}


def machine_seconds() -> float:
    """Processor time that all programs have taken so far, and what the hypervisor gave to others."""
    total = psutil.cpu_times()
    return float(total.user + total.nice + total.system + total.irq + total.softirq + total.steal)


def measure_part(part: str, threads: int) -> Numbers:
    """Measure in a child with that many threads and no forced BLAS kernel."""
    began, busy, own = time.perf_counter(), machine_seconds(), _children_seconds()
    environment = {name: value for name, value in os.environ.items() if name not in FORCED}
    # Where Python's threads read, BLAS must not bring more.
    blas = 1 if part == "memory" else threads
    environment |= {"OPENBLAS_NUM_THREADS": str(blas), "OMP_NUM_THREADS": str(blas)}
    command = [sys.executable, __file__, "--part", part, "--threads", str(threads)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    numbers: Numbers = json.loads(done.stdout)
    others = machine_seconds() - busy - _children_seconds() + own
    numbers[f"{part}: cores that other programs took"] = max(0.0, others) / (time.perf_counter() - began)
    return numbers


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def processor() -> str:
    """The processor's name."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def best_seconds(run: Callable[[], Any], limit: float = SECONDS) -> float:
    """Seconds of the fastest run within `limit` seconds; the first one, which allocates, does not count."""
    run()
    best, end = float("inf"), time.perf_counter() + limit
    while time.perf_counter() < end:
        began = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - began)
    return best


def _product(rows: int, inputs: int, outputs: int, bits: int, threads: int) -> Callable[[], Any]:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    if bits:
        blocks = inputs // BLOCK
        weights = generator.integers(0, 256, (outputs, blocks, BLOCK * bits // 8), np.uint8)
        scales = generator.random((outputs, blocks), np.float32)
        constants = {"W": weights, "S": scales}
        node = helper.make_node(
            "MatMulNBits",
            ["X", "W", "S"],
            ["Y"],
            domain="com.microsoft",
            **{"K": inputs, "N": outputs, "bits": bits, "block_size": BLOCK, "accuracy_level": 4},
        )
        given, taken = TensorProto.FLOAT, TensorProto.FLOAT
        value = generator.random((rows, inputs), np.float32)
    else:
        constants = {"W": generator.integers(-128, 128, (inputs, outputs), np.int8)}
        node = helper.make_node("MatMulInteger", ["X", "W"], ["Y"])
        given, taken = TensorProto.UINT8, TensorProto.INT32
        value = generator.integers(0, 256, (rows, inputs), np.uint8)
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("X", given, [rows, inputs])],
        [helper.make_tensor_value_info("Y", taken, [rows, outputs])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"X": value})


def _blas_kernel() -> str:
    """What the loaded OpenBLAS says it uses; the name of the function depends on its build."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    for path in {line.split()[-1] for line in maps.splitlines() if "openblas" in line}:
        library = ctypes.CDLL(path)
        for name in (
            "scipy_openblas_get_corename64_",
            "scipy_openblas_get_corename",
            "openblas_get_corename",
        ):
            if hasattr(library, name):
                function = getattr(library, name)
                function.restype = ctypes.c_char_p
                return str(function().decode())
    return "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(PARTS[options.part](options.threads)))
        return
    numbers: Numbers = {"processor": processor(), "threads": options.threads}
    for part in PARTS:
        numbers |= measure_part(part, options.threads)
    for name, value in numbers.items():
        if not isinstance(value, dict):
            print(f"{name:56}{value:>12.1f}" if isinstance(value, float) else f"{name:56}{value:>12}")
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
