"""How fast a model's network runs here, and how that compares with what the processor can do.

    .venv/bin/python bench/inference.py [--slices 300] [--threads 2] [--rounds 3] [--json FILE]

The demo's chest CT is repeated to 300 slices of 512x512. Each way to run the network gets a process
of its own, which prints seconds and its peak memory:

    eager     PyTorch eager, float32, as it comes
    torch     PyTorch as the node runs it without OpenVINO: eager, float32, channels-last
    shipped   what the node runs: OpenVINO, in the precision that the model's reference allows
    f32       OpenVINO in float32
    gpu       PyTorch on a GPU, if there is one

`network` is the network alone, over slabs that are ready; `whole` is all that the infer step does
with a decoded volume: resampling, network, labels on the source grid, components. Floating-point
operations are counted by PyTorch's dispatcher (a multiply-add is two). The peak is the best rate of
a square matrix product in the same precision and with as many threads, measured by a process of its
own in every round. The machine may be shared: trust medians and ratios, mind the load average, and
where it is high use `--threads 1` and the seconds of the processor, which neighbours change little.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as in the compute worker

import numpy as np
from pydicom import dcmread

from node.imaging.volume import volume_from_series
from node.manifest import NetworkManifest, read_manifest
from node.packages import (
    NetworkModel,
    find_or_make_export,
    load_network_model,
    on_gpu,
    on_openvino,
    on_torch,
)
from node.runtimes import Engine, Scores, openvino_cpu
from node.sdk import Volume
from node.segmentation import VolumeModel

DEMO = ROOT / "deploy" / "demo"
WAYS = ("eager", "torch", "shipped", "f32", "gpu")
TARGET_MS_PER_SLICE = 35.0
MATRIX = 2048


class Eager:
    """PyTorch without any of our choices."""

    batch_slices = 1

    def __init__(self, network: Any, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.network = network
        self.engine = Engine("torch", torch.__version__, "CPU", "f32")

    def scores(self, slabs: Iterable[Scores]) -> Iterator[Scores]:
        import torch

        for slab in slabs:
            with torch.inference_mode():
                yield self.network(torch.from_numpy(slab)).numpy()


def main() -> None:
    """Run every way in turn, several rounds, and print the table."""
    arguments = _arguments()
    if arguments.measure:
        print(json.dumps(_measured(arguments)))
        return
    counted = _run(arguments, "operations")
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    peaks: dict[str, list[float]] = defaultdict(list)
    for _ in range(arguments.rounds):
        for name, rate in _run(arguments, "peak").items():
            peaks[name].append(rate)
        for way in WAYS:
            if (row := _run(arguments, way)) is not None:
                rows[way].append(row)
    profile = _run(arguments, "profile")
    report = _report(arguments, counted, rows, peaks, profile)
    print(report["text"])
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1, default=str))


# -- one process ----------------------------------------------------------------------------------


def _measured(arguments: argparse.Namespace) -> Any:
    folder = arguments.models / arguments.model
    manifest = read_manifest(folder)
    assert isinstance(manifest, NetworkManifest), "a network that looks at volumes"
    if arguments.measure == "operations":
        # Here, so that no process that is measured makes it, with torch in its memory.
        find_or_make_export(folder, manifest, arguments.exports)
        return _operations(folder, manifest)
    if arguments.measure == "peak":
        return _peaks(arguments.threads)
    if arguments.measure == "profile":
        return _profile(folder, manifest, arguments.exports)
    before = _peak_mib()
    model = _model(arguments.measure, folder, manifest, arguments)
    if model is None:
        return None
    assert isinstance(model, VolumeModel)
    volume = _volume(arguments.slices)
    network_s, network_cpu_s = _network_seconds(model, arguments.slices)
    clock = _Clock()
    labels = model.segment(volume).array
    whole_s, whole_cpu_s = clock.seconds()
    return {
        "engine": str(model.runtime.engine),
        "precision": model.runtime.engine.precision,
        "network_s": network_s,
        "network_cpu_s": network_cpu_s,
        "whole_s": whole_s,
        "whole_cpu_s": whole_cpu_s,
        "peak_mib": _peak_mib(),
        "before_mib": before,
        "labelled": int((labels > 0).sum()),
    }


def _model(
    way: str, folder: Path, manifest: NetworkManifest, arguments: argparse.Namespace
) -> NetworkModel | None:
    threads = arguments.threads
    if way == "eager":
        from node.runtimes.network import load_network

        return VolumeModel(manifest, Eager(load_network(folder, manifest), threads))
    if way == "torch":
        return on_torch(folder, manifest, threads)
    if way == "f32":
        export = find_or_make_export(folder, manifest, arguments.exports)
        return on_openvino(manifest, export, "f32", threads)
    if way == "gpu":
        return on_gpu(folder, manifest)
    return load_network_model(
        folder, manifest, threads=threads, exports=arguments.exports, engine="openvino"
    )


def _volume(slices: int) -> Volume:
    """The demo's chest CT, stacked upon itself."""
    demo = volume_from_series([dcmread(path) for path in sorted(DEMO.rglob("*.dcm"))])
    array = np.concatenate([demo.array] * (-(-slices // len(demo.array))))[:slices]
    uids = tuple(f"2.25.{number}" for number in range(1, slices + 1))
    return Volume(array, demo.affine, demo.spacing_mm, uids)


class _Clock:
    """Seconds since it was made: on the wall, and of the processor in all threads."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def seconds(self) -> tuple[float, float]:
        return time.perf_counter() - self._wall, time.process_time() - self._cpu


def _network_seconds(model: VolumeModel, slices: int) -> tuple[float, float]:
    """Slabs in, scores out: nothing else. A few go first, for what is made at the first use."""
    runtime = model.runtime
    shape = (runtime.batch_slices, *model.manifest.slab_shape)
    slab = np.random.default_rng(0).random(shape, dtype=np.float32)
    for _ in runtime.scores(slab for _ in range(8)):
        pass
    batches = -(-slices // runtime.batch_slices)
    clock = _Clock()
    for _ in runtime.scores(slab for _ in range(batches)):
        pass
    wall, cpu = clock.seconds()
    share = slices / (batches * runtime.batch_slices)
    return wall * share, cpu * share


def _operations(folder: Path, manifest: NetworkManifest) -> dict[str, float]:
    """Of one slice, by PyTorch's count, and how many of them are in depthwise convolutions."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from node.runtimes.network import load_network

    network = load_network(folder, manifest)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(torch.zeros((1, *manifest.slab_shape)))
    depthwise = 0.0

    def count(module: torch.nn.Conv2d, _: Any, output: torch.Tensor) -> None:
        nonlocal depthwise
        if module.groups > 1:
            kernel = module.kernel_size[0] * module.kernel_size[1]
            each = kernel * module.in_channels // module.groups
            depthwise += 2.0 * output.numel() * each

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    with torch.inference_mode():
        network(torch.zeros((1, *manifest.slab_shape)))
    return {"per_slice": float(counter.get_total_flops()), "depthwise": depthwise}


def _peaks(threads: int) -> dict[str, float]:
    """Best rate of a square matrix product, operations per second."""
    import torch

    torch.set_num_threads(threads)
    rates = {}
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.rand(MATRIX, MATRIX).to(dtype) for _ in range(2))
        best = 0.0
        for _ in range(30):
            start = time.perf_counter()
            a @ b
            best = max(best, 2 * MATRIX**3 / (time.perf_counter() - start))
        rates[name] = best
    if torch.cuda.is_available():
        a, b = (torch.rand(8192, 8192, device="cuda", dtype=torch.float16) for _ in range(2))
        for _ in range(12):
            torch.cuda.synchronize()
            start = time.perf_counter()
            a @ b
            torch.cuda.synchronize()
            rate = 2 * 8192**3 / (time.perf_counter() - start)
            rates["f16"] = max(rates.get("f16", 0.0), rate)
    return rates


def _profile(folder: Path, manifest: NetworkManifest, exports: Path) -> dict[str, float]:
    """Milliseconds of one slice on one thread by kind of layer, in what the node ships."""
    model = load_network_model(folder, manifest, threads=1, exports=exports, engine="openvino")
    export = find_or_make_export(folder, manifest, exports)
    precision = model.runtime.engine.precision
    times: dict[str, list[float]] = defaultdict(list)
    rounds = openvino_cpu.layer_times_ms(
        export.xml, export.weights, precision, manifest.slab_shape, runs=20
    )
    for layers in rounds:
        for kind, milliseconds in layers.items():
            times[kind].append(milliseconds)
    return {kind: statistics.median(found) for kind, found in times.items()}


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# -- all of them ----------------------------------------------------------------------------------


def _run(arguments: argparse.Namespace, measure: str) -> Any:
    command = [
        sys.executable, __file__, "--measure", measure, "--model", arguments.model,
        "--models", str(arguments.models), "--slices", str(arguments.slices),
        "--threads", str(arguments.threads), "--exports", str(arguments.exports),
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _report(
    arguments: argparse.Namespace,
    counted: dict[str, float],
    rows: dict[str, list[dict[str, Any]]],
    peaks: dict[str, list[float]],
    profile: dict[str, float],
) -> dict[str, Any]:
    slices = arguments.slices
    medians = {
        way: {key: statistics.median(row[key] for row in found) for key in _NUMBERS}
        | {"engine": found[0]["engine"], "precision": found[0]["precision"]}
        for way, found in rows.items()
    }
    peak = {name: max(rates) for name, rates in peaks.items()}
    lines = [
        f"{arguments.model}: {slices} slices of 512x512, {arguments.threads} threads, median of "
        f"{arguments.rounds} rounds, load average {os.getloadavg()[0]:.1f}",
        f"{counted['per_slice'] / 1e9:.2f} GFLOP per slice, of it "
        f"{counted['depthwise'] / 1e9:.2f} in depthwise convolutions; peak of a {MATRIX}x{MATRIX} "
        "product: " + ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in peak.items()),
        "",
        f"{'':8} {'network':>9} {'(CPU)':>9} {'whole':>8} {'(CPU)':>8} {'ms/slice':>9} "
        f"{'memory':>8} {'GFLOP/s':>8} {'of peak':>8} {'x eager':>8} {'(CPU)':>7}  engine",
    ]
    eager = medians["eager"]
    for way, row in medians.items():
        rate = counted["per_slice"] * slices / row["network_s"]
        row["times_eager_cpu"] = eager["network_cpu_s"] / row["network_cpu_s"]
        row["of_peak"] = rate / peak[row["precision"]] if row["precision"] in peak else None
        row["times_eager"] = eager["network_s"] / row["network_s"]
        row["ms_per_slice"] = row["whole_s"] / slices * 1e3
        share = f"{row['of_peak']:.0%}" if row["of_peak"] else "?"
        lines.append(
            f"{way:8} {row['network_s']:7.2f} s {row['network_cpu_s']:7.2f} s "
            f"{row['whole_s']:6.2f} s {row['whole_cpu_s']:6.2f} s {row['ms_per_slice']:9.1f} "
            f"{row['peak_mib']:4.0f} MiB {rate / 1e9:8.0f} {share:>8} "
            f"{row['times_eager']:7.1f}x {row['times_eager_cpu']:6.1f}x  {row['engine']}"
        )
    shipped = medians["shipped"]
    lines += [
        "",
        _verdict("at least 2 times torch eager float32", shipped["times_eager"] >= 2),
        _verdict(
            f"at most {TARGET_MS_PER_SLICE:g} ms per slice, all included",
            shipped["ms_per_slice"] <= TARGET_MS_PER_SLICE,
        ),
        _verdict("at least half of the measured peak", (shipped["of_peak"] or 0) >= 0.5),
        "",
        "where one slice's time goes in the shipped network, one thread:",
    ]
    total = sum(profile.values())
    for kind, milliseconds in sorted(profile.items(), key=lambda item: -item[1]):
        if milliseconds >= 0.005 * total:
            lines.append(f"  {kind:32} {milliseconds:7.3f} ms {milliseconds / total:6.1%}")
    return {
        "text": "\n".join(lines),
        "medians": medians,
        "rounds": rows,
        "peak": peak,
        "operations": counted,
        "profile_ms": profile,
    }


_NUMBERS: Sequence[str] = (
    "network_s", "network_cpu_s", "whole_s", "whole_cpu_s", "peak_mib", "labelled",
)  # fmt: skip


def _verdict(words: str, met: bool) -> str:
    return f"{'met' if met else 'NOT MET':8} {words}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ct_lungs")
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write everything as JSON")
    parser.add_argument(
        "--exports", type=Path, default=Path(tempfile.gettempdir()) / "segnode-bench-exports"
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
