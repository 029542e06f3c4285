"""Who this process is: rank, world size and meeting place, from the launcher's variables.

`read_env` knows four families.  The first whose rank variable is set wins, and no other family
is looked at, since launchers nest: ``mpirun`` inside a Slurm job sees Slurm's variables too, and
a launcher that Slurm started gives its workers ranks of its own.

===============  ==========================  =======================  =========================
family           rank                        world size               rank on the host
===============  ==========================  =======================  =========================
``torchrun``     ``RANK``                    ``WORLD_SIZE``           ``LOCAL_RANK``
``openmpi``      ``OMPI_COMM_WORLD_RANK``    ``…_SIZE``               ``…_LOCAL_RANK``
``pmi``          ``PMI_RANK``, ``PMIX_RANK`` ``PMI_SIZE``             ``MPI_LOCALRANKID``
``slurm``        ``SLURM_PROCID``            ``SLURM_STEP_NUM_TASKS`` ``SLURM_LOCALID``
                                             or ``SLURM_NTASKS``
``kubeflow``     ``PET_NODE_RANK``           ``PET_NNODES``           0
===============  ==========================  =======================  =========================

``PET_*`` are settings of the launcher (`eager.distributed.run` reads them as defaults of its
flags, as torchrun does).  They name a rank only in a pod that runs one process and no launcher.

The meeting place is ``MASTER_ADDR`` and ``MASTER_PORT`` in every family.  Without them it is, for
a job on one host, the loopback interface; under Slurm, the first host of the step; and the port
follows from the job's id, so that all ranks arrive at the same one.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from eager.errors import ArgumentError, helpful

__all__ = ["Env", "first_host", "master_address", "read_env"]

DEFAULT_PORT = 29500
"""The port of the meeting place when nothing says otherwise; that of torch.distributed."""


@dataclass(frozen=True, slots=True)
class Env:
    """What a launcher told this process.

    Attributes:
        rank: of this process, 0 to ``world_size - 1``.
        world_size: number of processes of the job.
        local_rank: of this process among those of its host.
        local_world_size: number of processes on this host; None if the launcher does not say.
        master_addr: host of the store where ranks meet.
        master_port: its port.
        restart_count: how many times failed workers were restarted.
        run_id: the job's name; empty if the launcher gives none.
        use_agent_store: the launcher serves the store; otherwise rank 0 has to.
        source: the family the values come from, such as ``"torchrun"``.
        prefix: of all keys in the store, different for each start of the workers, so that keys
            of an earlier one never matter.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int | None
    master_addr: str
    master_port: int
    restart_count: int
    run_id: str
    use_agent_store: bool
    source: str
    prefix: str


@dataclass(frozen=True, slots=True)
class _Place:
    """What one family of variables says; empty where it says nothing."""

    source: str
    rank: int
    size: int
    local_rank: int
    local_size: int | None
    host: str = ""
    port: str = ""
    job: str = ""


def _fail(problem: str, expected: str, given: str, hint: str = "") -> NoReturn:
    raise helpful(ArgumentError, "environment", problem, expected, given, hint)


def _integer(environ: Mapping[str, str], name: str, low: int, high: int = 2**31 - 1) -> int:
    """The variable's value, a decimal number from ``low`` to ``high``."""
    text = environ[name].strip()
    # ASCII digits only: int() would also accept "1_0", "+1" and digits of other scripts
    if not re.fullmatch(r"[0-9]{1,10}", text) or not low <= int(text) <= high:
        _fail(f"{name} is not usable", f"a whole number from {low} to {high}", repr(environ[name]))
    return int(text)


def _optional(
    environ: Mapping[str, str], name: str, low: int = 0, high: int = 2**31 - 1
) -> int | None:
    """The variable's value, None if it is not set or empty."""
    return _integer(environ, name, low, high) if environ.get(name) else None


def _world(
    environ: Mapping[str, str], rank_name: str, *size_names: str, hint: str = ""
) -> tuple[int, int]:
    """Rank and world size, which have to fit each other."""
    size_name = next((n for n in size_names if environ.get(n)), None)
    if size_name is None:
        _fail(
            f"{rank_name} is set but {size_names[0]} is not",
            " or ".join(size_names) + ", the number of processes of the job",
            f"{rank_name}={environ[rank_name]}",
            hint,
        )
    rank, size = _integer(environ, rank_name, 0), _integer(environ, size_name, 1)
    if rank >= size:
        _fail(
            f"{rank_name} and {size_name} contradict each other",
            f"{rank_name} below {size_name}",
            f"{rank_name}={rank}, {size_name}={size}",
        )
    return rank, size


def _local(
    environ: Mapping[str, str], rank_name: str, size_name: str, size: int
) -> tuple[int, int | None]:
    """Rank on the host and number of processes there, in a job of ``size``."""
    local_rank = _optional(environ, rank_name) or 0
    local_size = _optional(environ, size_name, low=1)
    if local_size is not None and local_size > size:
        expected = f"at most {size}, the world size"
        _fail(f"{size_name} is larger than the job", expected, f"{size_name}={local_size}")
    if local_rank >= (local_size or size):
        expected = f"below {local_size or size}, " + (size_name if local_size else "the world size")
        _fail(f"{rank_name} is too large", expected, f"{rank_name}={local_rank}")
    return local_rank, local_size


def first_host(hostlist: str) -> str:
    """The first host of a list as Slurm writes it.

    >>> first_host("node[001-003,7],login")
    'node001'
    >>> first_host("rack[2,5]-n[10-20]")
    'rack2-n10'
    """
    # names and bracketed ranges alternate until a comma outside brackets
    found = re.match(r"\s*((?:[^\[\],\s]+|\[[^\[\]]*\])+)\s*(?:,|$)", hostlist)
    ranges = r"\[(\d+)(?:-\d+)?(?:,\d+(?:-\d+)?)*\]"
    name = re.sub(ranges, r"\1", found[1]) if found else ""
    if not name or not re.fullmatch(r"[\w.:-]+", name):
        _fail(
            "the list of hosts cannot be read",
            "names separated by commas, with numbers in brackets, such as node[1-4,7],login",
            repr(hostlist),
        )
    return name


def _job_port(job: str) -> int:
    """A port that all ranks of a job agree on; below those the kernel hands out."""
    return 15000 + zlib.crc32(job.encode()) % 14000 if job else DEFAULT_PORT


def _tasks_on_node(environ: Mapping[str, str]) -> int | None:
    """Slurm's number of tasks on this node, from the run-length form "4(x2),1"."""
    counts = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE")
    node = _optional(environ, "SLURM_NODEID")
    if not counts or node is None:
        return None
    for item in counts.split(","):
        found = re.fullmatch(r"(\d{1,9})(?:\(x(\d{1,9})\))?", item.strip())
        if not found:
            _fail("SLURM_TASKS_PER_NODE cannot be read", "such as 4(x2),1", repr(counts))
        node -= int(found[2] or 1)
        if node < 0:
            return int(found[1])
    return None


def master_address(
    environ: Mapping[str, str] | None = None, host: str = "", job: str = ""
) -> tuple[str, int]:
    """Host and port of the meeting place.

    Args:
        environ: the variables; default: those of this process.
        host: to use when ``MASTER_ADDR`` is not set.
        job: the job's id, which decides the port when ``MASTER_PORT`` is not set.

    Raises:
        ArgumentError: there is no host, or the port is not a port.
    """
    environ = os.environ if environ is None else environ
    address = environ.get("MASTER_ADDR", "").strip() or host
    if not address:
        _fail(
            "MASTER_ADDR is not set",
            "the host name or address of rank 0, where the ranks meet",
            "nothing, and processes on several hosts",
            "MASTER_ADDR=<host of rank 0> MASTER_PORT=29500; mpirun passes them on with -x",
        )
    if environ.get("MASTER_PORT"):
        return address, _integer(environ, "MASTER_PORT", 1, 65535)
    return address, _job_port(job)


def _torchrun(environ: Mapping[str, str]) -> _Place:
    rank, size = _world(environ, "RANK", "WORLD_SIZE")
    return _Place("torchrun", rank, size, *_local(environ, "LOCAL_RANK", "LOCAL_WORLD_SIZE", size))


def _openmpi(environ: Mapping[str, str]) -> _Place:
    rank, size = _world(environ, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")
    names = "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"
    # the namespace names one mpirun; older releases have it in the runtime's own parameter
    job = environ.get("PMIX_NAMESPACE") or environ.get("OMPI_MCA_ess_base_jobid", "")
    return _Place("openmpi", rank, size, *_local(environ, *names, size), job=job)


def _pmi(environ: Mapping[str, str]) -> _Place:
    name = "PMI_RANK" if environ.get("PMI_RANK") else "PMIX_RANK"
    hint = "a launcher that sets PMIX_RANK alone does not tell the world size: set PMI_SIZE"
    rank, size = _world(environ, name, "PMI_SIZE", "PMIX_SIZE", hint=hint)
    local = _local(environ, "MPI_LOCALRANKID", "MPI_LOCALNRANKS", size)
    job = environ.get("PMIX_NAMESPACE") or environ.get("PMI_JOBID", "")
    return _Place("pmi", rank, size, *local, job=job)


def _slurm(environ: Mapping[str, str]) -> _Place:
    rank, size = _world(environ, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    local = _local(environ, "SLURM_LOCALID", "", size)
    return _Place("slurm", rank, size, local[0], _tasks_on_node(environ))


def _kubeflow(environ: Mapping[str, str]) -> _Place:
    each = environ.get("PET_NPROC_PER_NODE", "1").strip()
    if each != "1":
        _fail(
            f"PET_NPROC_PER_NODE asks for {each} processes, and this one has no RANK",
            "one process per pod, or the launcher that starts several",
            f"PET_NPROC_PER_NODE={each}",
            "python -m eager.distributed.run script.py",
        )
    rank, size = _world(environ, "PET_NODE_RANK", "PET_NNODES")
    port = str(_optional(environ, "PET_MASTER_PORT", low=1, high=65535) or "")
    return _Place("kubeflow", rank, size, 0, 1, host=environ.get("PET_MASTER_ADDR", ""), port=port)


_FAMILIES: dict[str, Callable[[Mapping[str, str]], _Place]] = {
    "RANK": _torchrun,
    "OMPI_COMM_WORLD_RANK": _openmpi,
    "PMI_RANK": _pmi,
    "SLURM_PROCID": _slurm,  # before PMIX_RANK, beside which srun gives no PMI_SIZE
    "PMIX_RANK": _pmi,
    "PET_NODE_RANK": _kubeflow,
}


def _find(environ: Mapping[str, str]) -> _Place:
    for name, family in _FAMILIES.items():
        if environ.get(name):
            return family(environ)
    start = "python -m eager.distributed.run --nproc-per-node N script.py"
    if environ.get("WORLD_SIZE"):
        given = f"WORLD_SIZE={environ['WORLD_SIZE']}"
        _fail("WORLD_SIZE is set but RANK is not", "RANK, this process's number", given, start)
    _fail(
        "RANK is not set, and no other launcher's variables are",
        "RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, or the variables of mpirun or srun",
        "none of them",
        start,
    )


def read_env(environ: Mapping[str, str] | None = None) -> Env:
    """Reads who this process is from the variables its launcher set.

    Args:
        environ: the variables; default: those of this process.

    Raises:
        ArgumentError: no launcher's variables are there, one is not a number, or two contradict
            each other; the text names them.
    """
    environ = os.environ if environ is None else environ
    place = _find(environ)
    host, job = place.host, place.job
    if place.size in (1, place.local_size):
        host = host or "127.0.0.1"
    if place.source in ("openmpi", "pmi", "slurm"):
        hosts = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST")
        host = host or (first_host(hosts) if hosts else "")
        step = environ.get("SLURM_JOB_ID", ""), environ.get("SLURM_STEP_ID", "")
        job = job or ".".join(filter(None, step))
    if place.port and not environ.get("MASTER_PORT"):
        environ = {**environ, "MASTER_PORT": place.port}
    address, port = master_address(environ, host, job)
    run_id = environ.get("TORCHELASTIC_RUN_ID") or job
    restarts = _optional(environ, "TORCHELASTIC_RESTART_COUNT") or 0
    return Env(
        rank=place.rank,
        world_size=place.size,
        local_rank=place.local_rank,
        local_world_size=place.local_size,
        master_addr=address,
        master_port=port,
        restart_count=restarts,
        run_id=run_id,
        use_agent_store=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        source=place.source,
        prefix=environ.get("EAGER_COMM_PREFIX") or f"{run_id or 'run'}/{restarts}",
    )
