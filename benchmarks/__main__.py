"""Run the benchmarks: all of them, or the ones named."""

import argparse

from benchmarks import (
    access,
    assessment,
    gate,
    gradients,
    sealing,
    server,
    throughput,
    training,
)

BENCHMARKS = {
    "sealing": sealing.run,
    "gate": gate.run,
    "assessment": assessment.run,
    "server": server.run,
    "access": access.run,
    "throughput": throughput.run,
    "gradients": gradients.run,
    "training": training.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", nargs="*", help=", ".join(BENCHMARKS))
    names = parser.parse_args().name or list(BENCHMARKS)
    for name in names:
        if name not in BENCHMARKS:
            parser.error(f"no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    for name in names:
        print(f"\n## {name}\n")
        BENCHMARKS[name]()


if __name__ == "__main__":
    main()
