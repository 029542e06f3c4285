"""One library's process: prepares a case, then times a block of calls when asked.

Not run by hand: `benchmarks.harness` starts it and talks to it by lines of JSON.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
import timeit


def main() -> None:
    """Answers requests on standard input until it closes."""
    library, suite, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries that print must not break the talk
    module = importlib.import_module(library)
    threaded = importlib.import_module("eager") if library == "jit" else module
    if hasattr(threaded, "set_num_threads"):
        threaded.set_num_threads(threads)
    cases = importlib.import_module(f"benchmarks.suites.{suite}").cases(library, module)

    def answer(**fields: object) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    answer(version=threaded.__version__)
    timer, loops = None, 0
    for line in sys.stdin:
        request = json.loads(line)
        if "prepare" in request:
            case = cases.get(request["prepare"])
            if case is None:
                answer(present=False)
                continue
            gc.collect()
            # the statement is compiled into the timing loop: no call is measured with it
            timer = timeit.Timer(case.statement, globals=case.names())
            timer.timeit(3)
            loops = 1
            while (seconds := timer.timeit(loops)) < request["block"] / 4:
                loops *= 2
            loops = max(1, round(loops * request["block"] / seconds))
            timer.timeit(loops)
            answer(present=True)
        else:
            assert timer is not None
            answer(seconds=timer.timeit(loops) / loops)


if __name__ == "__main__":
    main()
