"""Command line: ``python -m benchmarks dispatch --threads 1,2``."""

from __future__ import annotations

import argparse
import importlib
import re
import sys

from benchmarks import distributed, elastic, harness, plot, startup
from benchmarks.distributed import scale

# Suites that do not fit the harness of one process a library.
WHOLE = {"startup": startup, "distributed": distributed, "elastic": elastic, "scale": scale}


def main() -> None:
    """Runs a suite and writes its JSON and PNG into benchmarks/results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suite", choices=["dispatch", "train", *WHOLE])
    parser.add_argument("--threads", default="1", help="comma list of thread counts")
    parser.add_argument("--peers", help="comma list; default: all the suite has")
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--only", default="", help="regular expression on case names")
    options = parser.parse_args()
    command = "python -m benchmarks " + " ".join(sys.argv[1:])
    if options.suite in WHOLE:
        WHOLE[options.suite].run(command, options.rounds)
        return
    suite = importlib.import_module(f"benchmarks.suites.{options.suite}")
    chosen = [c for c in suite.CASES if re.search(options.only, c)]
    libraries = list(suite.LIBRARIES)
    if options.peers is not None:
        libraries = [libraries[0], *(p for p in options.peers.split(",") if p)]
    for threads in map(int, options.threads.split(",")):
        print(f"-- {options.suite}, {threads} thread(s)")
        results, versions = harness.measure(
            options.suite, chosen, libraries, threads, options.rounds
        )
        if not options.only:
            path = harness.save(options.suite, command, threads, results, versions)
            print(f"wrote {path} and {plot.draw(path)}")


main()
