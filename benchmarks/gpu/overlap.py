"""What runs beside what on one GPU: exposed time with and without streams of their own.

    python -m benchmarks.gpu.overlap [--shape 8b-layer] [--cluster h100:1x1]

Branches of a parallel block, on one stream and on two; the inputs of recomputed blocks, kept on the
device and copied to the host and back. A copy that overlaps costs no step time; what it does cost
is its exposed time. On a CPU (`--shape tiny --cluster cpu`) nothing overlaps: a smoke test.
"""

import argparse

from benchmarks.gpu.one_device import SHAPES, run

PAIRS = {
    "branches on two streams": (
        ("model.parallel_blocks=true", "train.recompute=none"),
        ("train.streams=2",),
    ),
    "inputs copied to the host": (("train.recompute=full",), ("train.offload_activations=true",)),
    "moments on the host": (("train.recompute=full",), ("train.offload_optimizer=true",)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=list(SHAPES), default="8b-layer")
    parser.add_argument("--cluster", default="h100:1x1")
    options = parser.parse_args()
    print(f"{'what':<28}{'without ms':>12}{'with ms':>10}{'exposed ms':>12}{'GiB less':>10}")
    for what, (base, changed) in PAIRS.items():
        without = run(options.shape, cluster=options.cluster, overrides=base)
        with_it = run(options.shape, cluster=options.cluster, overrides=(*base, *changed))
        before, after = without.seconds * 1e3, with_it.seconds * 1e3
        freed = (without.peak_bytes - with_it.peak_bytes) / 2**30
        print(
            f"{what:<28}{before:>12.1f}{after:>10.1f}{after - before:>12.1f}{freed:>10.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
