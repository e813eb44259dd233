"""Bytes that a training step sends between devices, read from the compiled program; needs only a CPU.

    python -m benchmarks.scaling [--models dala_resnet50,ldcsf] [--devices 2,8,64,256]

Each case is compiled in its own process with that many virtual devices and one image of 64 × 64 pixels per device. The
traffic depends on parameters and statistics, not on images. Each output line has the number of collectives, the bytes
of their results, and the bytes that a device sends in a ring: 2 (n - 1) / n of an all-reduce, (n - 1) / n of an
all-gather's result and of a reduce-scatter's operand. The CPU's compiler has no reduce-scatter. With FSDP it reduces
all gradients on every device and keeps its part, so GPUs and TPUs send less than the line says.
"""

import argparse
import json
import re
import subprocess
import sys
from collections import Counter

CONFIGS = {"dala_resnet50": "configs/dala_resnet50_breakhis.py", "ldcsf": "configs/ldcsf_liver.py"}
_BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "f64": 8, "pred": 1, "u8": 1}
_COLLECTIVE = re.compile(r" = (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
_SHAPE = re.compile(r"(f32|bf16|s32|u32|f64|pred|u8)\[([\d,]*)\]")


def collectives(hlo: str) -> tuple[Counter[str], Counter[str]]:
    """Count the collectives in the text of a compiled program and sum the bytes of their results, by kind."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for shapes, kind in _COLLECTIVE.findall(hlo):
        counts[kind] += 1
        for dtype, dims in _SHAPE.findall(shapes):
            size = _BYTES[dtype]
            for dim in filter(None, dims.split(",")):
                size *= int(dim)
            sizes[kind] += size
    return counts, sizes


def sent(sizes: Counter[str], devices: int) -> float:
    """Return the bytes that one device sends if every collective is a ring."""
    fraction = (devices - 1) / devices
    reduced, scattered = sizes["all-reduce"], sizes["reduce-scatter"] * devices
    return (
        fraction * (2 * reduced + sizes["all-gather"] + scattered) + sizes["all-to-all"] + sizes["collective-permute"]
    )


def measure(model: str, devices: int, fsdp: int, batch_norm: str) -> dict[str, object]:
    """Compile one case in this process and return its line."""
    import jax

    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_platforms", "cpu")
    from histojax.distributed.sharding import Layout
    from histojax.training import build, experiments
    from histojax.training.tasks import Multiclass, Multilabel

    config = experiments.read(CONFIGS[model])
    config.data.image_size, config.train.batch_norm = 64, batch_norm
    layout = Layout(fsdp)
    several = config.data.task == "multilabel"
    task = Multilabel(tuple("abcd"), (1.0,) * 4) if several else Multiclass(("a", "b"), (1.0, 1.0))
    transform, _ = build.optimizer(config, 10)
    program = build.program(config, task, layout, transform)
    shapes = {"image": ((devices, 64, 64, 3), "uint8"), "mask": ((devices,), "bool")}
    shapes |= {"labels": ((devices, 4), "float32")} if several else {"label": ((devices,), "int32")}
    batch = {key: jax.ShapeDtypeStruct(shape, dtype, sharding=layout.batch) for key, (shape, dtype) in shapes.items()}
    lowered = jax.jit(program.train).lower(program.abstract, batch)
    text = lowered.compile({"xla_backend_optimization_level": 0}).as_text()
    counts, sizes = collectives(text)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(program.abstract.model.params))
    return {
        "model": model, "devices": devices, "fsdp": fsdp, "batch_norm": batch_norm, "parameter_bytes": 4 * parameters,
        "collectives": dict(counts), "result_bytes": dict(sizes), "sent_bytes": round(sent(sizes, devices)),
    }  # fmt: skip


def main() -> None:
    """Print one line of JSON per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(CONFIGS))
    parser.add_argument("--devices", default="2,8,64,256")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        model, devices, fsdp, batch_norm = given.one.split(",")
        print(json.dumps(measure(model, int(devices), int(fsdp), batch_norm)))
        return
    for model in given.models.split(","):
        for devices in map(int, given.devices.split(",")):
            for fsdp, batch_norm in ((1, "global"), (1, "device"), (devices, "global")):
                words = [sys.executable, "-m", "benchmarks.scaling", "--one", f"{model},{devices},{fsdp},{batch_norm}"]
                done = subprocess.run(words, capture_output=True, text=True)
                print(done.stdout.strip() or f"{words[-1]} failed: {done.stderr.strip()[-400:]}", flush=True)


if __name__ == "__main__":
    main()
