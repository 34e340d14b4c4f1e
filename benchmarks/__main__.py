"""Run the benchmarks: all of them, or the ones named.

`assessment`, `batch`, `calls`, `history`, `memory`, `models`, `peers`, `server` and
`soak` take options of their own: `python -m benchmarks peers --help`.
"""

import argparse
import sys

from benchmarks import (
    access,
    assessment,
    assessment_commands,
    batch,
    calls,
    certified,
    confidential,
    conformal,
    explanations,
    gate,
    gradients,
    history,
    memory,
    models,
    monitoring,
    policies,
    proxying,
    recipes,
    sealing,
    server,
    soak,
    throughput,
    traces,
    training,
)
from benchmarks.peers import run as peers

BENCHMARKS = {
    "sealing": sealing.run,
    "gate": gate.run,
    "confidential": confidential.run,
    "assessment": assessment.run,
    "server": server.run,
    "access": access.run,
    "policies": policies.run,
    "explanations": explanations.run,
    "conformal": conformal.run,
    "throughput": throughput.run,
    "monitoring": monitoring.run,
    "gradients": gradients.run,
    "training": training.run,
    "calls": lambda: calls.main([]),
    "recipes": recipes.run,
    "certified": certified.run,
    "batch": lambda: batch.main([]),
    "peers": lambda: peers.main([]),
    "proxying": proxying.run,
    "traces": traces.run,
    "soak": lambda: soak.main([]),
    "history": lambda: history.main([]),
    "memory": lambda: memory.main([]),
    "models": models.run,
}
WITH_OPTIONS = {
    "assessment": assessment_commands.main,
    "batch": batch.main,
    "calls": calls.main,
    "history": history.main,
    "memory": memory.main,
    "models": models.main,
    "peers": peers.main,
    "server": server.main,
    "soak": soak.main,
}


def main() -> None:
    own = WITH_OPTIONS.get(sys.argv[1]) if len(sys.argv) > 2 else None
    if own is not None and sys.argv[2].startswith("-"):
        own(sys.argv[2:])
        return
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
