"""`eager.distributed.env`: launchers' variables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eager.distributed.env import Env, first_host, master_address, read_env
from eager.errors import ArgumentError

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "host0",
    "MASTER_PORT": "1234",
    "TORCHELASTIC_RESTART_COUNT": "3",
    "TORCHELASTIC_RUN_ID": "job",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_RANK": "1",
    "PMIX_NAMESPACE": "prterun-host-4242@1",
}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "7",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_TASKS_PER_NODE": "2(x3),1",
    "SLURM_JOB_NODELIST": "gpu[08-09,12],head",
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
}


def test_torchrun() -> None:
    assert read_env(TORCHRUN) == Env(
        rank=5,
        world_size=8,
        local_rank=1,
        local_world_size=4,
        master_addr="host0",
        master_port=1234,
        restart_count=3,
        run_id="job",
        use_agent_store=True,
        source="torchrun",
        prefix="job/3",
    )


def test_the_process_s_own_variables_are_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert read_env().rank == 5
    assert master_address() == ("host0", 1234)


def test_a_launcher_names_the_prefix_of_each_start() -> None:
    assert read_env({**TORCHRUN, "EAGER_COMM_PREFIX": "job/round7"}).prefix == "job/round7"


def test_rank_and_world_size_suffice_for_one_process() -> None:
    env = read_env({"RANK": "0", "WORLD_SIZE": "1"})
    assert (env.local_rank, env.master_addr, env.master_port) == (0, "127.0.0.1", 29500)
    assert not env.use_agent_store and env.local_world_size is None


def test_openmpi_on_one_host_meets_on_loopback() -> None:
    env = read_env(OPENMPI)
    assert (env.source, env.rank, env.world_size, env.local_rank) == ("openmpi", 1, 2, 1)
    assert env.master_addr == "127.0.0.1" and 15000 <= env.master_port < 29000
    # the port is the job's: the same for all ranks, another for another mpirun
    other_rank = {**OPENMPI, "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
    assert read_env(other_rank).master_port == env.master_port
    other_job = {**OPENMPI, "PMIX_NAMESPACE": "prterun-host-4243@1"}
    assert read_env(other_job).master_port != env.master_port


def test_openmpi_on_several_hosts_needs_an_address() -> None:
    two_hosts = {**OPENMPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
    with pytest.raises(ArgumentError, match=r"MASTER_ADDR is not set(.|\n)*mpirun .* -x"):
        read_env(two_hosts)
    assert read_env({**two_hosts, "MASTER_ADDR": "a"}).master_addr == "a"
    # inside a Slurm job the hosts are known
    assert read_env({**two_hosts, "SLURM_JOB_NODELIST": "n[3-4]"}).master_addr == "n3"


def test_mpich() -> None:
    given = {"PMI_RANK": "2", "PMI_SIZE": "3", "MPI_LOCALRANKID": "2", "MPI_LOCALNRANKS": "3"}
    env = read_env(given)
    assert (env.source, env.rank, env.world_size) == ("pmi", 2, 3)
    assert (env.local_rank, env.local_world_size) == (2, 3)
    assert (env.master_addr, env.master_port) == ("127.0.0.1", 29500)


def test_pmix_without_a_size_says_what_is_missing() -> None:
    with pytest.raises(ArgumentError, match=r"PMIX_RANK is set but PMI_SIZE is not"):
        read_env({"PMIX_RANK": "0"})


def test_slurm() -> None:
    env = read_env(SLURM)
    assert (env.source, env.rank, env.world_size) == ("slurm", 5, 7)
    assert (env.local_rank, env.local_world_size) == (1, 2)
    assert env.master_addr == "gpu08"
    assert env.run_id == "77.0"
    assert read_env({**SLURM, "SLURM_NODEID": "3", "SLURM_LOCALID": "0"}).local_world_size == 1


def test_a_slurm_step_is_not_the_whole_allocation() -> None:
    step = {"SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_NODELIST": "gpu12,head"}
    env = read_env({**SLURM, **step})
    assert (env.world_size, env.master_addr) == (6, "gpu12")


def test_slurm_with_pmix_takes_the_size_from_slurm() -> None:
    assert read_env({**SLURM, "PMIX_RANK": "5"}).source == "slurm"


def test_precedence_torchrun_openmpi_pmi_slurm() -> None:
    pet = {"PET_NODE_RANK": "0", "PET_NNODES": "1"}
    everything = {**TORCHRUN, **OPENMPI, "PMI_RANK": "0", "PMI_SIZE": "1", **SLURM, **pet}
    seen = []
    for name in ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID", "PET_NODE_RANK"):
        seen.append(read_env(everything).source)
        del everything[name]
        everything.pop("PMIX_RANK", None)
    assert seen == ["torchrun", "openmpi", "pmi", "slurm", "kubeflow"]


def test_a_kubeflow_pod_with_one_process() -> None:
    pod = {
        "PET_NODE_RANK": "1",
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "1",
        "PET_MASTER_ADDR": "job-node-0-0.job",
        "PET_MASTER_PORT": "29400",
    }
    env = read_env(pod)
    assert (env.rank, env.world_size, env.local_rank) == (1, 2, 0)
    assert (env.master_addr, env.master_port) == ("job-node-0-0.job", 29400)
    with pytest.raises(ArgumentError, match=r"PET_NPROC_PER_NODE(.|\n)*eager\.distributed\.run"):
        read_env({**pod, "PET_NPROC_PER_NODE": "auto"})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"RANK": "x"}, "RANK"),
        ({"RANK": "-1"}, "RANK"),
        ({"RANK": "1_0"}, "RANK"),
        ({"RANK": "٣"}, "RANK"),
        ({"RANK": "9" * 30}, "RANK"),
        ({"RANK": "8"}, "RANK and WORLD_SIZE contradict"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": ""}, "RANK is set but WORLD_SIZE is not"),
        ({"LOCAL_RANK": "4"}, "LOCAL_RANK"),
        ({"LOCAL_RANK": "1.0"}, "LOCAL_RANK"),
        ({"LOCAL_WORLD_SIZE": "9"}, "LOCAL_WORLD_SIZE"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT"),
        ({"MASTER_ADDR": " "}, "MASTER_ADDR"),
        ({"TORCHELASTIC_RESTART_COUNT": "many"}, "TORCHELASTIC_RESTART_COUNT"),
    ],
)
def test_errors_name_the_variable(change: dict[str, str], named: str) -> None:
    with pytest.raises(ArgumentError, match=f"environment: {named}"):
        read_env({**TORCHRUN, **change})


def test_without_a_launcher() -> None:
    with pytest.raises(ArgumentError, match=r"python -m eager\.distributed\.run"):
        read_env({})
    with pytest.raises(ArgumentError, match="WORLD_SIZE is set but RANK is not"):
        read_env({"WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    ("hostlist", "first"),
    [
        ("a", "a"),
        ("a,b", "a"),
        ("node[1-3]", "node1"),
        ("node[001-100,7],x", "node001"),
        ("node[7,9]", "node7"),
        ("r[2,5]n[10-20].cluster", "r2n10.cluster"),
        ("10.0.0.1,10.0.0.2", "10.0.0.1"),
    ],
)
def test_first_host(hostlist: str, first: str) -> None:
    assert first_host(hostlist) == first


@pytest.mark.parametrize("bad", ["", ",", "n[", "n[]", "n[a-b]", "n]1[", "n[1-2", "n[1--2]", "a b"])
def test_unreadable_hostlists(bad: str) -> None:
    with pytest.raises(ArgumentError, match="list of hosts"):
        first_host(bad)


@given(st.text(alphabet="ab01[]-,. \n", max_size=20))
def test_hostlists_never_give_anything_but_a_name(text: str) -> None:
    try:
        host = first_host(text)
    except ArgumentError:
        return
    assert host and not set(host) & set("[], \n")


@given(st.dictionaries(st.sampled_from([*TORCHRUN, *OPENMPI, *SLURM]), st.text(max_size=5)))
def test_any_values_give_an_answer_or_an_error(environ: dict[str, str]) -> None:
    try:
        env = read_env(environ)
    except ArgumentError:
        return
    assert 0 <= env.rank < env.world_size and 0 < env.master_port < 65536


@pytest.mark.parametrize("counts", ["x", "2(x", "2(3)", "-1"])
def test_unreadable_task_counts(counts: str) -> None:
    with pytest.raises(ArgumentError, match="TASKS_PER_NODE"):
        read_env({**SLURM, "SLURM_TASKS_PER_NODE": counts})
