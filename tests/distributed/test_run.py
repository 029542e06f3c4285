"""`python -m eager.distributed.run`: its options, and what it does with processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from eager.distributed.elastic import record
from eager.distributed.elastic.agent import Job
from eager.distributed.elastic.failures import Failure, WorkersFailed, root_cause
from eager.distributed.run import make_job
from eager.errors import ArgumentError

LIMIT = 120.0  # seconds until a test that hangs fails
SECRET = {"EAGER_COMM_SECRET": "of the job"}


# --- the command line -----------------------------------------------------------------------------


def job(line: str, **environ: str) -> Job:
    return make_job(line.split(), environ)


def test_defaults() -> None:
    made = job("train.py --lr 0.1 -m x")
    assert made.command == [sys.executable, "-u", "train.py", "--lr", "0.1", "-m", "x"]
    assert (made.host, made.port, made.serves, made.workers) == ("127.0.0.1", 0, True, 1)
    assert (made.rules.max_restarts, made.grace) == (0, 30.0)
    assert len(made.secret) == 64 and made.secret != job("train.py").secret


@pytest.mark.parametrize("dash", ["-", "_"])
def test_both_spellings(dash: str) -> None:
    line = "--nproc-per-node=3 --max-restarts 2 --node-rank 1 --master-addr h --master-port 5"
    made = job(re.sub(r"(?<=\w)-(?=\w)", dash, line) + " --nnodes 2 t", **SECRET)
    assert (made.workers, made.node_rank, made.host, made.port) == (3, 1, "h", 5)


def test_kubeflow_s_variables_are_the_defaults() -> None:
    pet = {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "4",
        "PET_NODE_RANK": "1",
        "PET_MASTER_ADDR": "job-node-0-0.job",
        "PET_MASTER_PORT": "29400",
    }
    made = job("train.py", **pet, **SECRET)
    assert (made.workers, made.node_rank, made.serves) == (4, 1, False)
    assert (made.host, made.port) == ("job-node-0-0.job", 29400)
    assert (made.rules.min_nodes, made.rules.max_nodes) == (2, 2)
    assert job("--nproc-per-node 1 train.py", **pet, **SECRET).workers == 1
    assert job("--node-rank 0 train.py", **pet, **SECRET).serves


def test_switches_from_the_environment() -> None:
    assert job("pkg", PET_MODULE="1").command[2] == "-m"
    assert job("pkg", PET_MODULE="0").command[2] == "pkg"
    with pytest.raises(ArgumentError, match="PET_MODULE"):
        job("pkg", PET_MODULE="yes")


def test_elastic_nodes() -> None:
    line = "--nnodes 2:4 --rdzv-backend c10d --rdzv-endpoint host:77 --rdzv-id j --rdzv-conf"
    conf = "join_timeout=5,last_call_timeout=1.5,keep_alive_interval=2,keep_alive_max_attempt=3"
    made = job(f"{line} {conf} --secret-file /dev/stdin train.py".replace(
        "--secret-file /dev/stdin ", ""), **SECRET)  # fmt: skip
    rules = made.rules
    assert (rules.min_nodes, rules.max_nodes) == (2, 4)
    assert (rules.join_timeout, rules.last_call) == (5.0, 1.5)
    assert (rules.beat_interval, rules.beat_limit) == (2.0, 6.0)
    assert (made.host, made.port, made.run_id, made.serves) == ("host", 77, "j", None)
    assert job(f"{line} is_host=true t", **SECRET).serves is True


@pytest.mark.parametrize(
    ("endpoint", "host", "port"),
    [("h", "h", 29400), ("h:1", "h", 1), ("[::1]:2", "::1", 2), ("[fe80::1]", "fe80::1", 29400)],
)
def test_endpoints(endpoint: str, host: str, port: int) -> None:
    made = job(f"--nnodes 2 --rdzv-backend c10d --rdzv-endpoint {endpoint} t", **SECRET)
    assert (made.host, made.port) == (host, port)


def test_the_kind_of_program() -> None:
    python = [sys.executable, "-u"]
    assert job("-m pkg.train a").command == [*python, "-m", "pkg.train", "a"]
    assert job("--no-python ./train a").command == ["./train", "a"]
    assert job("--run-path /x/train.py a").command[-2:] == ["/x/train.py", "a"]
    assert job("train.py", PYTHON_EXEC="/opt/python").command[0] == "/opt/python"


def test_numbers_of_workers() -> None:
    cpus = len(os.sched_getaffinity(0))
    assert job("--nproc-per-node cpu t").workers == cpus
    assert job("--nproc-per-node auto t", CUDA_VISIBLE_DEVICES="").workers == cpus
    assert job("--nproc-per-node auto t", CUDA_VISIBLE_DEVICES="0,2,5").workers == 3
    assert job("--nproc-per-node gpu t", CUDA_VISIBLE_DEVICES="1").workers == 1
    with pytest.raises(ArgumentError, match="no GPU"):
        job("--nproc-per-node gpu t", CUDA_VISIBLE_DEVICES="")


def test_secret_file(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("abc\n")
    assert job(f"--nnodes 2 --secret-file {path} t").secret == "abc"
    path.write_text("\n")
    with pytest.raises(ArgumentError, match="--secret-file: is empty"):
        job(f"--secret-file {path} t")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("--nnodes 2 t", "needs a secret"),
        ("--nnodes 0 t", "--nnodes: not usable"),
        ("--nnodes 3:2 t", "minimum is larger"),
        ("--nnodes 1:2:3 t", "--nnodes: not usable"),
        ("--nnodes 1:2 t", "static rendezvous has fixed nodes"),
        ("--nnodes 2 --node-rank 2 t", "--node-rank: too large"),
        ("--nnodes 2 --rdzv-backend c10d t", "--rdzv-endpoint: is missing"),
        ("--nnodes 2 --rdzv-backend c10d --rdzv-endpoint a:b t", "--rdzv-endpoint: not an address"),
        ("--nnodes 2 --rdzv-backend c10d --rdzv-endpoint a:99999 t", "--rdzv-endpoint: not usable"),
        ("--nnodes 2 --rdzv-backend etcd-v2 --rdzv-endpoint a t", "--rdzv-backend: not supported"),
        ("--rdzv-conf speed=3 t", "--rdzv-conf: not a setting"),
        ("--rdzv-conf join_timeout=soon t", "--rdzv-conf join_timeout: not usable"),
        ("--rdzv-conf is_host=maybe t", "is_host is not a switch"),
        ("--nproc-per-node 0 t", "--nproc-per-node"),
        ("--nproc-per-node many t", "--nproc-per-node"),
        ("--max-restarts -1 t", "--max-restarts"),
        ("--shutdown-timeout nan t", "--shutdown-timeout"),
        ("--master-port 0 t", "--master-port"),
        ("-r 4 t", "--redirects"),
        ("-t 0:1,1 t", "--tee"),
        ("--local-ranks-filter a t", "--local-ranks-filter"),
        ("--signals-to-handle SIGKILL t", "--signals-to-handle"),
        ("--signals-to-handle SIGFOO t", "--signals-to-handle"),
        ("--no-python -m t", "--no-python: contradicts"),
        ("--standalone --nnodes 2 t", "--standalone"),
        ("--virtual-local-rank 1 t", "--virtual-local-rank: has no meaning"),
        ("--event-log-handler console t", "--event-log-handler: has no meaning"),
        ("--secret-file /does/not/exist t", "--secret-file: cannot be read"),
    ],
)
def test_wrong_options_are_named(line: str, problem: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(problem)):
        job(line)


def test_options_are_never_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        job("--max-rest 1 t")
    assert "max-rest" in capsys.readouterr().err


# --- failures -------------------------------------------------------------------------------------


def failure(rank: int, when: float, error: str = "", code: int = 1) -> Failure:
    return Failure(rank, rank, "host", 100 + rank, code, when, error)


def test_lost_peers_are_not_the_root_cause() -> None:
    failures = [failure(0, 1.0, "PeerLost"), failure(1, 2.0, code=-9), failure(2, 3.0, "KeyError")]
    assert root_cause(failures).rank == 1
    table = str(WorkersFailed("train.py", failures))
    assert table.index("rank 1") < table.index("other failures") < table.index("rank 0")
    assert "killed by SIGKILL" in table


def test_record_writes_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))

    @record
    def fails(code: object) -> None:
        raise SystemExit(code) if code != "oops" else KeyError(code)

    for code in (0, None):
        with pytest.raises(SystemExit):
            fails(code)
        assert not path.exists()
    with pytest.raises(KeyError):
        fails("oops")
    message = json.loads(path.read_text())["message"]
    assert message["message"] == "KeyError: 'oops'"
    assert "in fails" in message["extraInfo"]["py_callstack"]


# --- processes ------------------------------------------------------------------------------------


class Launcher:
    """One launcher process in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, line: str, script: str | None = None, **environ: str) -> subprocess.Popen[str]:
        if script is not None:
            (self.folder / "script.py").write_text("import json, os, signal, sys, time\n" + script)
        ours = ("PET_", "OMP_NUM", "EAGER_NUM", "EAGER_COMM")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        process = subprocess.Popen(
            [sys.executable, "-m", "eager.distributed.run", *line.split()],
            cwd=self.folder,
            env={**clean, "PYTHONPATH": os.pathsep.join(sys.path), **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def run(self, line: str, script: str | None = None, **environ: str) -> tuple[int, str, str]:
        process = self.start(line, script, **environ)
        out, err = process.communicate(timeout=LIMIT)
        return process.returncode, out, err


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    made = Launcher(tmp_path)
    yield made
    for process in made.processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def gone(pid: int) -> bool:
    """Whether a process has ended; zombies nobody waits for count."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


DUMP = """
names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE",
         "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "TORCHELASTIC_RESTART_COUNT",
         "TORCHELASTIC_MAX_RESTARTS", "TORCHELASTIC_USE_AGENT_STORE", "OMP_NUM_THREADS",
         "EAGER_NUM_THREADS"]
open(f"rank{os.environ['RANK']}.json", "w").write(json.dumps([os.environ.get(n) for n in names]))
from eager.distributed.env import read_env
from eager._C import comm
env = read_env()
store = comm.Store(env.master_addr, env.master_port, os.environ["EAGER_COMM_SECRET"], 60.0)
store.add("count", 1)
"""


def test_workers_find_their_variables_and_the_store(launcher: Launcher) -> None:
    code, _, err = launcher.run("--nproc-per-node 2 --max-restarts 3 script.py", DUMP)
    assert code == 0, err
    seen = [json.loads((launcher.folder / f"rank{r}.json").read_text()) for r in range(2)]
    for rank in range(2):
        r = str(rank)
        threads = str(max(1, len(os.sched_getaffinity(0)) // 2))
        same = ["default", "127.0.0.1", "0", "3", "True", "1", threads]
        assert seen[rank] == [r, r, "2", "2", "0", "1", r, "2", *same]


def test_one_worker_keeps_its_threads(launcher: Launcher) -> None:
    assert launcher.run("script.py", DUMP)[0] == 0
    assert json.loads((launcher.folder / "rank0.json").read_text())[-2:] == [None, None]


def test_modules_paths_and_programs(launcher: Launcher) -> None:
    script = "print(__name__, sys.argv[1:], os.path.basename(sys.argv[0]))"
    for line in ("script.py a b", "-m script a b", f"--run-path {launcher.folder}/script.py a b"):
        code, out, err = launcher.run(line, script)
        assert (code, out) == (0, "__main__ ['a', 'b'] script.py\n"), err
    assert launcher.run("--no-python echo hello")[1] == "hello\n"


def test_exceptions_are_shown_with_rank_and_traceback(launcher: Launcher) -> None:
    code, _, err = launcher.run(
        "--nproc-per-node 2 script.py",
        """
from eager.distributed.elastic import record

@record
def main():
    if os.environ["RANK"] == "1":
        raise ValueError("the loss is not finite")
    time.sleep(600)

main()
""",
    )
    assert code == 1
    table = err[err.index("script.py FAILED") :]
    assert re.search(r"first failure:\n .*rank 1 \(local rank 1.*exit code 1, ValueError", table)
    assert "in main" in table and "ValueError: the loss is not finite" in table
    assert "rank 0" not in table  # it was stopped, and did not fail


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("os.abort()", "killed by SIGABRT"),
        ("sys.exit(7)", "exit code 7"),
        ("os._exit(3)", "exit code 3"),
    ],
)
def test_endings(launcher: Launcher, end: str, words: str) -> None:
    code, _, err = launcher.run("script.py", end)
    assert code == 1 and re.search(rf"rank 0 .*: {words}", err)


def test_a_program_that_does_not_exist(launcher: Launcher) -> None:
    code, _, err = launcher.run("--max-restarts 3 --no-python ./nothing")
    assert code == 1 and "cannot be started" in err and "./nothing" in err


def test_a_wrong_command_line(launcher: Launcher) -> None:
    code, _, err = launcher.run("--nnodes 2 script.py", "")
    assert code == 2 and "needs a secret" in err and "try:" in err


ROUNDS = """
turn = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
rank = os.environ["RANK"]
open(f"{turn}.{rank}.start", "w").write(f"{time.monotonic()} {os.environ['EAGER_COMM_PREFIX']}")
if turn < 2:
    if rank == "1":
        while not os.path.exists(f"{turn}.0.start"):
            time.sleep(0.01)
        open(f"{turn}.end", "w").write(str(time.monotonic()))
        os.kill(os.getpid(), 9)
    time.sleep(600)
"""


def test_restarts(launcher: Launcher) -> None:
    code, _, err = launcher.run("--nproc-per-node 2 --max-restarts 2 script.py", ROUNDS)
    assert code == 0, err
    read = lambda name: (launcher.folder / name).read_text().split()  # noqa: E731
    prefixes = {read(f"{turn}.{rank}.start")[1] for turn in range(3) for rank in range(2)}
    assert len(prefixes) == 3
    for turn in range(2):
        ended = float(read(f"{turn}.end")[0])
        started = [float(read(f"{turn + 1}.{r}.start")[0]) for r in range(2)]
        print(f"death to script start: {max(started) - ended:.3f} s")
        assert min(started) > ended
    assert err.count("killed by SIGKILL") == 2


def test_restarts_run_out(launcher: Launcher) -> None:
    code, _, err = launcher.run("--nproc-per-node 2 --max-restarts 1 script.py", ROUNDS)
    assert code == 1
    assert not (launcher.folder / "2.0.start").exists()
    assert "1 restarts are used up" in err


STUBBORN = """
import subprocess
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(f"pids{os.environ['RANK']}.tmp", "w").write(f"{os.getpid()} {child.pid}")
os.rename(f"pids{os.environ['RANK']}.tmp", f"pids{os.environ['RANK']}")
if os.environ["RANK"] == "0":
    while not os.path.exists("pids1"):
        time.sleep(0.01)
    if sys.argv[1] == "fail":
        sys.exit(1)
time.sleep(600)
"""


def pids(folder: Path, ranks: int = 2) -> list[int]:
    files = [folder / f"pids{r}" for r in range(ranks)]
    wait_for(lambda: all(f.exists() for f in files))
    return [int(p) for f in files for p in f.read_text().split()]


def test_workers_that_ignore_sigterm_are_killed_with_their_children(launcher: Launcher) -> None:
    line = "--nproc-per-node 2 --shutdown-timeout 0.2 script.py fail"
    code, _, _ = launcher.run(line, STUBBORN)
    assert code == 1
    for pid in pids(launcher.folder):
        wait_for(lambda: gone(pid))


def test_workers_die_with_the_launcher(launcher: Launcher) -> None:
    process = launcher.start("--nproc-per-node 2 script.py stay", STUBBORN)
    workers = pids(launcher.folder)[::2]
    children = pids(launcher.folder)[1::2]
    process.kill()
    for pid in workers:
        wait_for(lambda: gone(pid))
    for pid in children:  # of workers that had no time to stop them
        os.kill(pid, signal.SIGKILL)


POLITE = """
def stop(number, frame):
    open(f"got{os.environ['RANK']}", "w").write(signal.Signals(number).name)
    sys.exit(0)

for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, stop)
open(f"pids{os.environ['RANK']}.tmp", "w").write(str(os.getpid()))
os.rename(f"pids{os.environ['RANK']}.tmp", f"pids{os.environ['RANK']}")
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_are_passed_on(launcher: Launcher, number: signal.Signals) -> None:
    line = "--nproc-per-node 2 --signals-to-handle SIGTERM,SIGINT,SIGUSR1 script.py"
    process = launcher.start(line, POLITE)
    pids(launcher.folder)
    process.send_signal(number)
    process.communicate(timeout=LIMIT)
    assert process.returncode == 128 + number
    for rank in range(2):
        assert (launcher.folder / f"got{rank}").read_text() == number.name


def test_a_second_signal_does_not_wait(launcher: Launcher) -> None:
    process = launcher.start("--nproc-per-node 2 --shutdown-timeout 1000 script.py x", STUBBORN)
    workers = pids(launcher.folder)
    process.send_signal(signal.SIGTERM)
    assert process.stderr
    while "the workers are told" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=LIMIT)
    assert process.returncode == 128 + signal.SIGTERM
    for pid in workers:
        wait_for(lambda: gone(pid))


def test_a_stopped_worker_is_still_ended(launcher: Launcher) -> None:
    process = launcher.start("--nproc-per-node 2 script.py", POLITE)
    workers = pids(launcher.folder)
    os.kill(workers[1], signal.SIGSTOP)
    process.terminate()
    process.communicate(timeout=LIMIT)
    assert (launcher.folder / "got1").read_text() == "SIGTERM"


SPEAK = """
print("out of", os.environ["RANK"])
print("err of", os.environ["RANK"], file=sys.stderr)
"""


def test_output_to_files_and_console(launcher: Launcher) -> None:
    code, out, err = launcher.run(
        "--nproc-per-node 2 --log-dir logs -r 0:3 -t 1:1 --role trainer script.py", SPEAK
    )
    assert code == 0
    assert out == "[trainer1]:out of 1\n"
    assert "err of 1" in err and "err of 0" not in err
    logs = {p.relative_to(launcher.folder / "logs").parts[1:]: p.read_text()
            for p in (launcher.folder / "logs").rglob("*.log")}  # fmt: skip
    assert logs == {
        ("attempt_0", "0", "stdout.log"): "out of 0\n",
        ("attempt_0", "0", "stderr.log"): "err of 0\n",
        ("attempt_0", "1", "stdout.log"): "out of 1\n",
    }


def test_local_ranks_filter(launcher: Launcher) -> None:
    code, out, err = launcher.run("--nproc-per-node 2 --local-ranks-filter 1 script.py", SPEAK)
    assert (code, out) == (0, "out of 1\n") and "err of 0" not in err


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_two_static_nodes(launcher: Launcher) -> None:
    port = free_port()
    (launcher.folder / "secret").write_text("of the job")
    line = f"--nnodes 2 --nproc-per-node 1 --master-port {port} --secret-file secret script.py"
    second = launcher.start(f"--node-rank 1 {line}", DUMP)  # before the store is there
    code, _, err = launcher.run(f"--node-rank 0 {line}")
    assert code == 0, err
    assert second.wait(LIMIT) == 0
    seen = [json.loads((launcher.folder / f"rank{r}.json").read_text()) for r in range(2)]
    assert [s[:6] for s in seen] == [["0", "0", "2", "1", "0", "2"], ["1", "0", "2", "1", "1", "2"]]


def test_nodes_with_different_secrets_do_not_meet(launcher: Launcher) -> None:
    line = f"--nnodes 2 --master-port {free_port()} script.py"
    first = launcher.start(f"--node-rank 0 {line}", "", EAGER_COMM_SECRET="a")
    code, _, err = launcher.run(f"--node-rank 1 {line}", EAGER_COMM_SECRET="b")
    assert code == 1 and "secret" in err
    assert first.poll() is None  # it waits for the right one
    first.terminate()
    first.communicate(timeout=LIMIT)
    assert first.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)


ELASTIC = """
name = f"world{os.environ['WORLD_SIZE']}.{os.environ['RANK']}.{os.environ['EAGER_COMM_PREFIX'][-1]}"
open(name, "w").close()
while not os.path.exists("finish"):
    time.sleep(0.01)
"""


def test_nodes_come_and_go(launcher: Launcher) -> None:
    line = (
        f"--nnodes 1:2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-id job "
        f"--rdzv-endpoint 127.0.0.1:{free_port()} --rdzv-conf "
        "last_call_timeout=0,keep_alive_interval=0.1,keep_alive_max_attempt=20 script.py"
    )
    secret = {"EAGER_COMM_SECRET": "of the job"}
    first = launcher.start(line, ELASTIC, **secret)
    wait_for(lambda: (launcher.folder / "world1.0.0").exists())
    second = launcher.start(line, **secret)
    wait_for(lambda: all((launcher.folder / f"world2.{r}.1").exists() for r in range(2)))
    second.kill()  # its worker dies with it; the first node notices the silence
    wait_for(lambda: (launcher.folder / "world1.0.2").exists())
    (launcher.folder / "finish").touch()
    _, err = first.communicate(timeout=LIMIT)
    assert first.returncode == 0, err
    assert "joined: the workers start again" in err and "was not heard of" in err


def test_a_failure_on_one_node_concerns_all(launcher: Launcher) -> None:
    line = f"--nnodes 2 --master-port {free_port()} --max-restarts 1 script.py"
    first = launcher.start(f"--node-rank 0 --local-addr one {line}", ROUNDS, **SECRET)
    code, _, err = launcher.run(f"--node-rank 1 --local-addr two {line}", **SECRET)
    _, other = first.communicate(timeout=LIMIT)
    assert code == first.returncode == 1
    starts = {p.name for p in launcher.folder.glob("*.start")}
    assert starts == {f"{turn}.{rank}.start" for turn in range(2) for rank in range(2)}
    for report in (err, other):  # each node's launcher names the rank and the node to blame
        assert re.search(
            r"FAILED: 1 restarts.*\n.*\n.*\n.*rank 1 .* on two\): killed by SIG", report
        )
