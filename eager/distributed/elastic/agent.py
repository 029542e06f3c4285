"""A node's agent: runs its workers as the rendezvous says, until the job is over."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import selectors
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from eager._C import comm
from eager.distributed.elastic.failures import WorkersFailed
from eager.distributed.elastic.leader import Leader
from eager.distributed.elastic.logs import Outputs, Streams
from eager.distributed.elastic.rendezvous import Member, NodeInfo, Round, Rules, Verdict
from eager.distributed.elastic.workers import Workers
from eager.distributed.errors import DistributedError
from eager.errors import ArgumentError, helpful

__all__ = ["Job", "run_agent"]

_log = logging.getLogger("eager.distributed.elastic")


@dataclass(frozen=True, slots=True)
class Job:
    """What to run, and how; what the launcher's options come to.

    Attributes:
        command: of every worker.
        name: of the script, for reports.
        workers: how many this node starts.
        run_id: the job's name.
        host: where the store is.
        port: its port; 0, for the one node of a job: any free one.
        serves: this node hosts the store; None: it does if the address is its own and free.
        secret: what processes of the job prove to know.
        rules: of the rendezvous.
        role: of the workers.
        node_rank: this node's fixed number; None: by order of arrival.
        address: this node's name, for reports.
        log_dir: for log and error files; None: a temporary folder.
        redirects: streams that go to files.
        tee: streams that go to files and to the console.
        shown: local ranks whose output may appear on the console; None: all.
        poll_interval: seconds after which workers are looked at even without a signal.
        grace: seconds between asking workers to stop and killing them.
        signals: that are passed on to the workers and end the job on this node.
    """

    command: list[str]
    name: str
    workers: int
    run_id: str
    host: str
    port: int
    secret: str
    rules: Rules
    serves: bool | None = None
    role: str = "default"
    node_rank: int | None = None
    address: str = field(default_factory=socket.gethostname)
    log_dir: Path | None = None
    redirects: Streams = field(default_factory=Streams)
    tee: Streams = field(default_factory=Streams)
    shown: frozenset[int] | None = None
    poll_interval: float = 0.1
    grace: float = 30.0
    signals: tuple[int, ...] = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def is_local(host: str) -> bool:
    """Whether a name is one of this machine's addresses."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, protocol, _, address in found:
        with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
            return True
    return False


def _serve(job: Job) -> comm.StoreServer | None:
    """The job's store, if it is this node's task to host it."""
    if job.serves is False or (job.serves is None and not is_local(job.host)):
        return None
    loopback = job.host in ("localhost", "127.0.0.1", "::1")
    try:
        return comm.StoreServer(job.host if loopback else "", job.port, job.secret)
    except DistributedError:
        if job.serves:
            raise
        return None  # another agent on this machine was first


def run_agent(job: Job) -> int:
    """Runs this node's part of a job; to be called from the main thread.

    Returns:
        The exit code for the launcher: 0, or 128 + the number of the signal that ended it.

    Raises:
        WorkersFailed: a worker failed and no restart is left.
        DistributedError: too few nodes came, or the store cannot be reached or served.
    """
    server = _serve(job)
    port = server.port if server else job.port
    prefix = f"agent/{job.run_id}/"

    def connect() -> comm.Store:
        store = comm.Store(job.host, port, job.secret, job.rules.join_timeout)
        store.timeout = job.rules.beat_limit  # a server that is silent for longer is lost
        return store

    if job.rules.max_nodes > 1:
        _log.info("job %s: nodes meet at %s:%d", job.run_id, job.host, port)
    leader = None
    if server:
        leader = Leader(connect(), prefix, job.rules)
        leader.start()
    # signals have their usual effect until there are workers to be told
    store, watched = connect(), connect()
    to_files = job.redirects.any() or job.tee.any() or job.shown is not None
    kept = job.log_dir is not None or to_files
    if job.log_dir is not None:
        job.log_dir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{_file_name(job.run_id)}_", dir=job.log_dir))
    if kept:
        _log.info("log files are in %s", folder)
    try:
        with _wakeups(job.signals) as wake:
            agent = _Agent(job, port, folder, wake, leader)
            leads = server is not None
            info = NodeInfo(job.address, job.workers, job.role, job.node_rank, leads)
            agent.member = Member(store, watched, prefix, info, job.rules, agent.notify)
            return agent.run()
    finally:
        if leader:  # other nodes still have to learn how it ended
            leader.join(2 * job.rules.beat_limit)
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)


def _file_name(run_id: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "_" for c in run_id)[:64] or "run"


@contextlib.contextmanager
def _wakeups(signals: tuple[int, ...]) -> Iterator[socket.socket]:
    """A socket that gets a byte for each signal: deaths of workers, and requests to stop."""
    reading, writing = socket.socketpair()
    reading.setblocking(False)
    writing.setblocking(False)
    with reading, writing:
        heard = {signal.SIGCHLD, *signals}
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup
            heard.discard(signal.SIGHUP)
        old = {n: signal.signal(n, lambda *_: None) for n in heard}
        previous = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        try:
            yield reading
        finally:
            signal.set_wakeup_fd(previous)
            for number, handler in old.items():
                signal.signal(number, handler)


class _Agent:
    """The loop that waits for signals and for news of the rendezvous."""

    member: Member

    def __init__(
        self, job: Job, port: int, folder: Path, wake: socket.socket, leader: Leader | None
    ) -> None:
        self._job, self._port, self._folder, self._leader = job, port, folder, leader
        self._outputs = Outputs(job.redirects, job.tee, job.shown, job.role)
        self._workers: Workers | None = None
        self._round: Round | None = None
        self._reported = False
        self._news: queue.SimpleQueue[Round | Verdict | Exception] = queue.SimpleQueue()
        self._wake = wake
        self._told, self._teller = socket.socketpair()
        self._told.setblocking(False)
        self._teller.setblocking(False)
        self._stop_signal = 0
        self._selector = selectors.DefaultSelector()
        self._selector.register(wake, selectors.EVENT_READ)
        self._selector.register(self._told, selectors.EVENT_READ)

    def notify(self, news: Round | Verdict | Exception) -> None:
        """Called from the rendezvous' thread."""
        self._news.put(news)
        with contextlib.suppress(BlockingIOError, OSError):  # full: it will wake up anyway
            self._teller.send(b"\0")

    def run(self) -> int:
        """Runs rounds until the job is over."""
        try:
            while True:
                if not self._stop_signal:
                    self._sleep(self._job.poll_interval if self._workers else None)
                if self._stop_signal:
                    return self._interrupted()
                self._look_at_workers()
                while not self._news.empty():
                    news = self._news.get()
                    if isinstance(news, Exception):
                        raise self._lost(news)
                    if isinstance(news, Round):
                        self._start(news)
                    elif self._ended(news):
                        return 0
        except ArgumentError as error:
            self.member.fatal(f"{self._job.address}: {str(error).partition(chr(10))[0]}")
            raise
        finally:
            self._stop(signal.SIGTERM)
            if self._leader:
                self._leader.abandon(f"the agent on {self._job.address} has ended")
            self.member.leave()
            self._outputs.drain(5.0)
            self._selector.close()
            self._told.close()
            self._teller.close()

    def _sleep(self, timeout: float | None) -> None:
        """Until something happens; notes requests to stop."""
        self._selector.select(timeout)
        with contextlib.suppress(BlockingIOError):
            while self._told.recv(4096):
                pass
        with contextlib.suppress(BlockingIOError):
            while numbers := self._wake.recv(4096):
                self._stop_signal = next(
                    (n for n in numbers if n in self._job.signals), self._stop_signal
                )

    def _look_at_workers(self) -> None:
        """Reports what became of the workers."""
        if self._workers is None or self._round is None or self._reported:
            return
        self._workers.poll()
        failures = self._workers.failures()
        if failures:
            for failure in failures:
                _log.warning("round %d: %s", self._round.number, failure)
            self._reported = True
            self.member.failed(self._round.number)
            self._stop(signal.SIGTERM, close=False)
        elif not self._workers.running():
            self._reported = True
            self.member.succeeded(self._round.number)

    def _start(self, place: Round) -> None:
        job, self._round, self._reported = self._job, place, False
        if place.number:
            _log.info(
                "round %d: %d workers on %d nodes, restart %d of %d",
                *(place.number, place.world_size, place.group_size),
                *(place.restarts, job.rules.max_restarts),
            )
        environments = [self._variables(place, i) for i in range(job.workers)]
        folder = self._folder / f"attempt_{place.number}"
        try:
            self._workers = Workers(job.command, environments, self._outputs, folder, job.address)
        except OSError as error:
            raise helpful(
                ArgumentError,
                "run",
                f"the workers cannot be started: {error}",
                "a program that can be executed, and a place for log files",
                " ".join(job.command),
            ) from error

    def _variables(self, place: Round, local_rank: int) -> Mapping[str, str]:
        job, rank = self._job, place.first_rank + local_rank
        return {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(local_rank),
            "WORLD_SIZE": str(place.world_size),
            "LOCAL_WORLD_SIZE": str(job.workers),
            "GROUP_RANK": str(place.group_rank),
            "GROUP_WORLD_SIZE": str(place.group_size),
            "ROLE_NAME": job.role,
            "ROLE_RANK": str(place.role_rank + local_rank),
            "ROLE_WORLD_SIZE": str(place.role_size),
            "MASTER_ADDR": job.host,
            "MASTER_PORT": str(self._port),
            "TORCHELASTIC_RUN_ID": job.run_id,
            "TORCHELASTIC_RESTART_COUNT": str(place.restarts),
            "TORCHELASTIC_MAX_RESTARTS": str(job.rules.max_restarts),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "EAGER_COMM_PREFIX": f"worker/{job.run_id}/{place.number}",
            "EAGER_COMM_SECRET": job.secret,
        }

    def _ended(self, verdict: Verdict) -> bool:
        """Handles the end of a round; whether the job has ended well."""
        if self._workers:
            self._workers.poll()
        failures = self._workers.failures() if self._workers else []
        if verdict.why == "finished":
            self._stop(signal.SIGTERM)
            return True
        if verdict.why == "failed":
            self._stop(signal.SIGTERM)
            if verdict.failures:
                raise WorkersFailed(self._job.name, verdict.failures, verdict.problem)
            raise helpful(
                DistributedError,
                "run",
                verdict.problem,
                f"at least {self._job.rules.min_nodes} nodes until the job is done",
                f"run id {self._job.run_id} at {self._job.host}:{self._port}",
                "the same --rdzv-id and --rdzv-endpoint, or --master-addr, on all nodes",
            )
        if verdict.why == "membership":
            _log.info("%s: the workers start again", verdict.problem)
        self._stop(signal.SIGTERM)
        self.member.ready(failures)
        return False

    def _interrupted(self) -> int:
        _log.warning("%s: the workers are told", signal.Signals(self._stop_signal).name)
        self._stop(self._stop_signal)
        return 128 + self._stop_signal

    def _stop(self, number: int, close: bool = True) -> None:
        """Stops the workers of this node: `number` first, after the grace period SIGKILL.

        Args:
            number: the signal.
            close: forget them; otherwise their failures can still be asked for.
        """
        workers = self._workers
        if workers is None:
            return
        workers.poll()
        if workers.running():
            workers.signal(number)
            deadline = time.monotonic() + self._job.grace
            self._stop_signal, before = 0, self._stop_signal
            # a second request to stop is taken for impatience
            while workers.running() and not (before and self._stop_signal):
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._sleep(min(left, 1.0))
                workers.poll()
            self._stop_signal = self._stop_signal or before
        workers.kill()
        if close:
            workers.close()
            self._workers = None

    def _lost(self, error: Exception) -> Exception:
        if isinstance(error, DistributedError | OSError):
            return helpful(
                DistributedError,
                "run",
                "the rendezvous store cannot be reached any more",
                f"the node that hosts {self._job.host}:{self._port} to stay",
                str(error).partition("\n")[0],
            )
        return error
