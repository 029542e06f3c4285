"""Starts the processes of a job: ``python -m eager.distributed.run --nproc-per-node 2 train.py``.

The options are those of ``torchrun``, with dashes or underscores; each takes its default from the
environment variable ``PET_<OPTION>``, which is how Kubeflow's Trainer sets them.  Workers find
``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR``, ``MASTER_PORT`` and the rest of
torchrun's variables, which `eager.distributed.init_process_group` reads.  Several workers on one
node get ``OMP_NUM_THREADS=1`` and share the CPUs by ``EAGER_NUM_THREADS``, unless these are set.

One node::

    python -m eager.distributed.run --nproc-per-node 2 train.py --epochs 3

Two nodes, the same line on both but for the rank; they share a secret::

    python -m eager.distributed.run --nnodes 2 --node-rank 0 --master-addr host0 \\
        --nproc-per-node 8 --secret-file job.secret train.py

Two to four nodes that may come and go, with three restarts::

    python -m eager.distributed.run --nnodes 2:4 --max-restarts 3 --rdzv-backend c10d \\
        --rdzv-endpoint host0:29400 --rdzv-id job7 --secret-file job.secret train.py
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import re
import secrets
import signal
import socket
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from eager.distributed.elastic.agent import Job, run_agent
from eager.distributed.elastic.logs import parse_streams
from eager.distributed.elastic.rendezvous import Rules
from eager.errors import ArgumentError, EagerError, helpful

__all__ = ["main", "make_job", "parser"]

DEFAULT_PORT = 29500  # of a static rendezvous
ELASTIC_PORT = 29400  # of c10d
_CONF = (  # torchrun's names
    "timeout",
    "join_timeout",
    "last_call_timeout",
    "keep_alive_interval",
    "keep_alive_max_attempt",
    "is_host",
)
_NO_MEANING = {
    "event_log_handler": "null",
    "logs_specs": None,
    "numa_binding": None,
    "duplicate_stdout_filters": None,
    "duplicate_stderr_filters": None,
    "virtual_local_rank": None,
}


def _fail(option: str, problem: str, expected: str, given: object, hint: str = "") -> NoReturn:
    raise helpful(ArgumentError, option, problem, expected, str(given), hint)


def parser(environ: Mapping[str, str] | None = None) -> argparse.ArgumentParser:
    """The command line's parser; defaults come from the ``PET_*`` variables of ``environ``."""
    environ = os.environ if environ is None else environ
    result = argparse.ArgumentParser(
        prog="python -m eager.distributed.run",
        description="Starts the processes of a job, and starts them again when one fails.",
        epilog="Each option's default can be set by the variable PET_<OPTION>.",
        allow_abbrev=False,
    )

    def add(group: Any, flag: str, *short: str, default: Any = None, **more: Any) -> None:
        dest = flag.lstrip("-").replace("-", "_")
        default = environ.get(f"PET_{dest.upper()}") or default
        spellings = dict.fromkeys([*short, flag, f"--{dest}"])
        group.add_argument(*spellings, dest=dest, default=default, **more)

    def switch(group: Any, flag: str, *short: str, help: str) -> None:
        name = f"PET_{flag.lstrip('-').replace('-', '_').upper()}"
        if environ.get(name, "0") not in ("0", "1", ""):
            _fail(name, "not a switch", "0 or 1", repr(environ[name]))
        on = environ.get(name) == "1"
        dest = flag.lstrip("-").replace("-", "_")
        spellings = dict.fromkeys([*short, flag, f"--{dest}"])
        group.add_argument(*spellings, dest=dest, default=on, action="store_true", help=help)

    size = result.add_argument_group("size")
    add(size, "--nnodes", default="1", help="number of nodes, or MIN:MAX")
    add(
        size,
        "--nproc-per-node",
        default="1",
        help="workers per node: a number, cpu (one per CPU), gpu, or auto (GPUs if any, else CPUs)",
    )
    meeting = result.add_argument_group("rendezvous")
    add(
        meeting,
        "--rdzv-backend",
        default="static",
        help="static: fixed nodes with --node-rank; c10d: by order of arrival (default: static)",
    )
    add(meeting, "--rdzv-endpoint", default="", help="HOST[:PORT] where the nodes meet")
    add(meeting, "--rdzv-id", default="none", help="the job's name, the same on all nodes")
    add(
        meeting,
        "--rdzv-conf",
        default="",
        help="KEY=VALUE,...: join_timeout, last_call_timeout, keep_alive_interval (seconds), "
        "keep_alive_max_attempt, is_host",
    )
    switch(meeting, "--standalone", help="one node, any free port; ignores the options above")
    add(meeting, "--node-rank", default="0", help="static: this node's number")
    add(meeting, "--master-addr", default="127.0.0.1", help="static: the host of node 0")
    add(meeting, "--master-port", help=f"static: its port ({DEFAULT_PORT})")
    add(meeting, "--local-addr", help="this node's name in reports")
    add(
        meeting,
        "--secret-file",
        help="file with the job's secret; else EAGER_COMM_SECRET; one node makes up its own",
    )
    failing = result.add_argument_group("failures")
    add(failing, "--max-restarts", default="0", help="how often failed workers are started again")
    add(
        failing,
        "--monitor-interval",
        default="0.1",
        help="seconds between looks at the workers; deaths are noticed at once whatever it is",
    )
    add(
        failing,
        "--shutdown-timeout",
        default="30",
        help="seconds between asking workers to stop and killing them",
    )
    add(
        failing,
        "--signals-to-handle",
        default="SIGTERM,SIGINT,SIGHUP,SIGQUIT",
        help="signals that are passed on to the workers and end the job",
    )
    output = result.add_argument_group("output")
    add(output, "--role", default="default", help="role of the workers")
    add(output, "--log-dir", help="folder for log files")
    add(
        output,
        "--redirects",
        "-r",
        default="0",
        help="streams that go to files: 1 stdout, 2 stderr, 3 both; or per local rank: 0:1,1:3",
    )
    add(output, "--tee", "-t", default="0", help="streams that go to files and to the console")
    add(output, "--local-ranks-filter", default="", help="local ranks shown on the console")
    what = result.add_argument_group("what to run")
    switch(what, "--module", "-m", help="the script is a module, as with python -m")
    switch(what, "--no-python", help="the script is a program of its own")
    switch(what, "--run-path", help="run the script by runpy.run_path")
    none = result.add_argument_group("accepted for torchrun's sake")
    add(
        none,
        "--start-method",
        default="spawn",
        choices=["spawn", "fork", "forkserver"],
        help="without effect: workers are programs, always started afresh",
    )
    for name, default in _NO_MEANING.items():
        add(none, f"--{name.replace('_', '-')}", default=default, help="refused: not supported")
    result.add_argument("training_script", help="what every worker runs")
    result.add_argument("training_script_args", nargs=argparse.REMAINDER, help="its arguments")
    return result


def _whole(option: str, text: str, low: int, high: int = 2**31 - 1) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", text) or not low <= int(text) <= high:
        _fail(option, "not usable", f"a whole number from {low} to {high}", repr(text))
    return int(text)


def _seconds(option: str, text: str, low: float = 0.0) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value < math.inf:
        _fail(option, "not usable", f"seconds, at least {low:g}", repr(text))
    return value


def _nodes(text: str) -> tuple[int, int]:
    low, colon, high = text.partition(":")
    least = _whole("--nnodes", low, 1)
    most = _whole("--nnodes", high, 1) if colon else least
    if least > most:
        _fail("--nnodes", "the minimum is larger than the maximum", "MIN:MAX", text)
    return least, most


def _gpus(environ: Mapping[str, str]) -> int:
    """GPUs this process may use: those of CUDA_VISIBLE_DEVICES, or all the driver knows."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([d for d in visible.split(",") if d.strip() not in ("", "-1")])
    folder = Path("/proc/driver/nvidia/gpus")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def _workers(text: str, environ: Mapping[str, str]) -> int:
    if text in ("gpu", "auto"):
        count = _gpus(environ)
        if count:
            return count
        if text == "gpu":
            _fail("--nproc-per-node", "there is no GPU", "a GPU", "gpu", "auto, cpu or a number")
    if text in ("cpu", "auto"):
        return len(os.sched_getaffinity(0))
    if not text.isdecimal():
        _fail("--nproc-per-node", "not usable", "a number, auto, cpu or gpu", repr(text))
    return _whole("--nproc-per-node", text, 1, 4096)


def _settings(text: str) -> dict[str, str]:
    """Reads --rdzv-conf."""
    settings = {}
    for item in filter(None, (i.strip() for i in text.split(","))):
        key, equals, value = item.partition("=")
        if not equals or key not in _CONF:
            _fail("--rdzv-conf", "not a setting", "KEY=VALUE with " + ", ".join(_CONF), repr(item))
        settings[key] = value
    return settings


def _rules(options: argparse.Namespace, settings: Mapping[str, str]) -> Rules:
    def seconds(name: str, default: float, low: float = 0.0) -> float:
        text = settings.get(name)
        return default if text is None else _seconds(f"--rdzv-conf {name}", text, low)

    low, high = _nodes(options.nnodes)
    interval = seconds("keep_alive_interval", 1.0, 0.01)
    attempts = _whole("--rdzv-conf", settings.get("keep_alive_max_attempt", "10"), 1)
    return Rules(
        min_nodes=low,
        max_nodes=high,
        max_restarts=_whole("--max-restarts", options.max_restarts, 0),
        join_timeout=seconds("join_timeout", seconds("timeout", 600.0)),
        last_call=seconds("last_call_timeout", 30.0),
        beat_interval=interval,
        beat_limit=max(1.0, interval * attempts),
    )


def _endpoint(text: str, port: int) -> tuple[str, int]:
    """Host and port of HOST, HOST:PORT or [IPv6]:PORT."""
    found = re.fullmatch(r"\[([0-9a-fA-F:.%\w]+)\](?::(\d+))?|([^:\s]+)(?::(\d+))?", text.strip())
    if not found:
        _fail("--rdzv-endpoint", "not an address", "HOST, HOST:PORT or [IPv6]:PORT", repr(text))
    number = found[2] or found[4]
    return found[1] or found[3], _whole("--rdzv-endpoint", number, 0, 65535) if number else port


def _secret(options: argparse.Namespace, nodes: int, environ: Mapping[str, str]) -> str:
    if options.secret_file:
        try:
            secret = Path(options.secret_file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            _fail("--secret-file", "cannot be read", "a text file", f"{error}")
        if not secret:
            _fail("--secret-file", "is empty", "the job's secret", options.secret_file)
        return secret
    given = environ.get("EAGER_COMM_SECRET", "")
    if not given and nodes > 1:
        _fail(
            "run",
            "a job on several nodes needs a secret by which its processes know each other",
            "--secret-file FILE or EAGER_COMM_SECRET, the same on all nodes",
            "neither",
            "python -c 'import secrets; print(secrets.token_hex(32))' > job.secret; chmod 600",
        )
    return given or secrets.token_hex(32)


def _command(options: argparse.Namespace, environ: Mapping[str, str]) -> list[str]:
    script, arguments = options.training_script, options.training_script_args
    if options.no_python:
        if options.module or options.run_path:
            other = "--module" if options.module else "--run-path"
            _fail("--no-python", "contradicts another option", f"--no-python or {other}", "both")
        return [script, *arguments]
    python = [environ.get("PYTHON_EXEC") or sys.executable, "-u"]
    if options.run_path:
        code = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], None, '__main__')"
        return [*python, "-c", code, script, *arguments]
    return [*python, *(["-m"] if options.module else []), script, *arguments]


def _signals(text: str) -> tuple[int, ...]:
    found = []
    for name in filter(None, (n.strip() for n in text.split(","))):
        number = getattr(signal, name, None)
        fixed = (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD)
        if not isinstance(number, signal.Signals) or number in fixed:
            _fail("--signals-to-handle", "not a signal that can be handled", "SIGTERM,...", name)
        found.append(int(number))
    return tuple(found)


def _filter(text: str) -> frozenset[int] | None:
    if not text:
        return None
    return frozenset(_whole("--local-ranks-filter", t.strip(), 0) for t in text.split(","))


def make_job(
    arguments: Sequence[str] | None = None, environ: Mapping[str, str] | None = None
) -> Job:
    """What a command line asks for.

    Args:
        arguments: the words after ``python -m eager.distributed.run``; default: this process's.
        environ: the variables; default: this process's.

    Raises:
        ArgumentError: an option makes no sense or has no meaning here; the text says which.
        SystemExit: the command line is not one, or asked for help.
    """
    environ = os.environ if environ is None else environ
    options = parser(environ).parse_args(arguments)
    for name, default in _NO_MEANING.items():
        if getattr(options, name) != default:
            flag = f"--{name.replace('_', '-')}"
            _fail(
                flag, "has no meaning for this launcher", "not to be given", getattr(options, name)
            )
    settings = _settings(options.rdzv_conf)
    rules = _rules(options, settings)
    run_id, node_rank, serves = options.rdzv_id, None, _serves(settings)
    single = options.standalone or (
        rules.max_nodes == 1 and not options.rdzv_endpoint and options.master_port is None
    )
    if single:
        if rules.max_nodes > 1:
            _fail("--standalone", "is for one node", "--nnodes 1", f"--nnodes {options.nnodes}")
        host, port, serves = "127.0.0.1", 0, True
        run_id = str(uuid.uuid4()) if run_id == "none" or options.standalone else run_id
    elif options.rdzv_backend == "c10d":
        if not options.rdzv_endpoint:
            _fail("--rdzv-endpoint", "is missing", "HOST[:PORT] where the nodes meet", "nothing")
        host, port = _endpoint(options.rdzv_endpoint, ELASTIC_PORT)
    elif options.rdzv_backend == "static":
        host, port = _static(options)
        if rules.min_nodes != rules.max_nodes:
            hint = "--rdzv-backend c10d --rdzv-endpoint HOST:PORT"
            _fail("--nnodes", "a static rendezvous has fixed nodes", "N", options.nnodes, hint)
        node_rank = _whole("--node-rank", options.node_rank, 0)
        if node_rank >= rules.max_nodes:
            _fail("--node-rank", "too large", f"below {rules.max_nodes} (--nnodes)", node_rank)
        serves = node_rank == 0
    else:
        _fail("--rdzv-backend", "not supported", "c10d or static", repr(options.rdzv_backend))
    return Job(
        command=_command(options, environ),
        name=options.training_script,
        workers=_workers(options.nproc_per_node, environ),
        run_id=run_id,
        host=host,
        port=port,
        secret=_secret(options, rules.max_nodes, environ),
        rules=rules,
        serves=serves,
        role=options.role,
        node_rank=node_rank,
        address=options.local_addr or socket.gethostname(),
        log_dir=Path(options.log_dir) if options.log_dir else None,
        redirects=parse_streams(options.redirects, "--redirects"),
        tee=parse_streams(options.tee, "--tee"),
        shown=_filter(options.local_ranks_filter),
        poll_interval=_seconds("--monitor-interval", options.monitor_interval, 0.001),
        grace=_seconds("--shutdown-timeout", options.shutdown_timeout),
        signals=_signals(options.signals_to_handle),
    )


def _serves(settings: Mapping[str, str]) -> bool | None:
    text = settings.get("is_host", "").lower()
    if text in ("", "true", "1", "false", "0"):
        return None if not text else text in ("true", "1")
    _fail("--rdzv-conf", "is_host is not a switch", "true or false", repr(text))


def _static(options: argparse.Namespace) -> tuple[str, int]:
    """The meeting place of a static rendezvous."""
    port = DEFAULT_PORT
    if options.master_port is not None:
        port = _whole("--master-port", options.master_port, 1, 65535)
    if options.rdzv_endpoint:
        return _endpoint(options.rdzv_endpoint, port)
    return options.master_addr.strip("[]"), port


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a job and returns the exit code: 0, 1 after a failure, 2 for a wrong command line."""
    logging.basicConfig(
        format="[launcher %(asctime)s.%(msecs)03d] %(message)s", datefmt="%H:%M:%S", level="INFO"
    )
    try:
        job = make_job(arguments)
    except ArgumentError as error:
        print(error, file=sys.stderr)
        return 2
    if job.workers > 1:
        # many workers with a thread per CPU each would only hinder each other
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun
        share = len(os.sched_getaffinity(0)) // job.workers
        os.environ.setdefault("EAGER_NUM_THREADS", str(max(1, share)))
    try:
        return run_agent(job)
    except EagerError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # while it was still looking for the store
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
