"""Checkpoints: whole or refused, resharded, and enough for a bit-identical resume."""

import json
import shutil
import threading

import local_ranks
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import eager
from eager import nn
from eager.distributed import checkpoint
from eager.distributed.checkpoint import PerRank
from eager.distributed.checkpoint.manifest import FORMAT
from eager.distributed.checkpoint.shard import Shard
from eager.distributed.errors import PeerLost, Timeout
from eager.distributed.optim import ZeroRedundancyOptimizer
from eager.errors import ArgumentError, SerializationError
from eager.optim import AdamW


def sample(rank: int = 0) -> dict:
    return {
        "model": {"w": eager.arange(12, dtype=eager.float32).reshape(3, 4), "b": eager.ones(2)},
        "state": {0: {"step": eager.tensor(3)}, 1: {}},
        "list": [1, (2.5, None, "text"), True],
        "a/b": {"c": eager.zeros(1)}, "a": {"b/c": eager.ones(1)},
        "mine": PerRank({"random": eager.full((2,), rank), "name": f"r{rank}"}),
    }  # fmt: skip


def test_what_is_saved_comes_back(tmp_path):
    checkpoint.save(sample(), tmp_path / "one")
    found = checkpoint.load(tmp_path / "one")
    assert list(found) == list(sample())
    assert found["model"]["w"].tolist() == sample()["model"]["w"].tolist()
    assert found["state"][0]["step"].item() == 3 and found["state"][1] == {}
    assert found["list"] == [1, (2.5, None, "text"), True]
    assert found["a/b"]["c"].item() == 0 and found["a"]["b/c"].item() == 1
    assert found["mine"]["name"] == "r0"
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == [
        "manifest.json", "shard-00000-of-00001.safetensors",
    ]  # fmt: skip


def test_shards_hold_each_entry_once(tmp_path):
    def body(group):
        checkpoint.save(sample(group.rank()), tmp_path / "two", process_group=group)
        return checkpoint.load(tmp_path / "two", process_group=group)

    first, second = local_ranks.run(2, body)
    assert first["model"]["w"].tolist() == second["model"]["w"].tolist()
    assert [first["mine"]["name"], second["mine"]["name"]] == ["r0", "r1"]
    assert second["mine"]["random"].tolist() == [1, 1]
    shards = list((tmp_path / "two").glob("*.safetensors"))
    names = [n for s in shards for n in eager.serialization.load_file(s)]
    assert len(shards) == 2 and len(names) == len(set(names)) == 7

    def three(group):
        return checkpoint.load(tmp_path / "two", process_group=group)["mine"]["name"]

    assert local_ranks.run(3, three) == ["r0", "r1", "r0"]


def test_an_asynchronous_save_holds_what_was(tmp_path):
    w = eager.ones(1000)
    handle = checkpoint.async_save({"w": w}, tmp_path / "a")
    with eager.no_grad():
        w.fill_(2)
    assert handle.wait(60) == tmp_path / "a" and handle.done() and handle.exception() is None
    assert checkpoint.load(tmp_path / "a")["w"].tolist() == [1] * 1000


def test_the_newest_whole_one_is_found(tmp_path):
    assert checkpoint.latest(tmp_path) is None and checkpoint.latest(tmp_path / "none") is None
    for step in (1, 2, 10):
        checkpoint.save({"step": step, "w": eager.ones(50)}, tmp_path / f"step-{step}")
    (tmp_path / ".writing-step-11-xyz").mkdir()
    (tmp_path / "other").mkdir()
    assert checkpoint.latest(tmp_path) == tmp_path / "step-10"
    shard = next((tmp_path / "step-10").glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(SerializationError, match="checksum"):
        checkpoint.load(tmp_path / "step-10")
    assert checkpoint.latest(tmp_path) == tmp_path / "step-2"
    next((tmp_path / "step-2").glob("*.safetensors")).unlink()
    with pytest.raises(SerializationError, match="shard-00000"):
        checkpoint.verify(tmp_path / "step-2")
    assert checkpoint.latest(tmp_path) == tmp_path / "step-1"
    checkpoint.save({"step": 10}, tmp_path / "step-10")  # replaces the damaged one
    assert checkpoint.load(checkpoint.latest(tmp_path)) == {"step": 10}
    assert not list(tmp_path.glob(".writing-*"))


def test_old_ones_go(tmp_path):
    for step in range(5):
        checkpoint.save({"step": step}, tmp_path / str(step), keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "4"]
    with pytest.raises(ArgumentError, match="keep"):
        checkpoint.save({}, tmp_path / "x", keep=0)


@pytest.mark.parametrize("atomic", [True, False])
def test_a_checkpoint_of_the_same_name_is_replaced(tmp_path, monkeypatch, atomic):
    """There is one at every instant, where the file system can swap names."""
    target, gone, over = tmp_path / "last", [], threading.Event()
    if not atomic:
        monkeypatch.setattr("eager.distributed.checkpoint.shard._exchange", lambda a, b: False)
    checkpoint.save({"step": -1}, target)

    def watch():
        while not over.is_set():
            if not (target / "manifest.json").exists():
                gone.append(1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for step in range(30):
        checkpoint.save({"step": step}, target)
        assert checkpoint.load(target) == {"step": step}
    over.set()
    watcher.join()
    assert not (atomic and gone)
    assert [p.name for p in tmp_path.iterdir()] == ["last"]


def test_a_directory_that_cannot_be_read_is_not_replaced(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(path)

    (tmp_path / "mine").mkdir()
    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    with pytest.raises(ArgumentError, match="something else has this name"):
        checkpoint.save({"x": 1}, tmp_path / "mine")


def test_other_files_are_not_replaced(tmp_path):
    for name in ("file", "folder/file"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("precious")
    for name in ("file", "folder"):
        with pytest.raises(ArgumentError, match="something else has this name"):
            checkpoint.save({"x": 1}, tmp_path / name)
    assert (tmp_path / "file").read_text() == (tmp_path / "folder/file").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    checkpoint.save({"x": 1}, tmp_path / "empty")
    assert checkpoint.load(tmp_path / "empty") == {"x": 1}


def test_a_rank_that_does_not_report_leaves_the_previous_one(tmp_path):
    checkpoint.save({"step": 1}, tmp_path / "1")
    shard = Shard(tmp_path / ".writing-2-n", 0, 2, tmp_path / "2", None)
    shard.write({"w": eager.ones(2)}, {"dict": []})
    with pytest.raises(Timeout, match=r"ranks \[1\]"):
        shard.publish(0.05)
    assert checkpoint.latest(tmp_path) == tmp_path / "1"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1"]


def test_a_lost_rank_ends_the_waiting_at_once(tmp_path):
    shard = Shard(tmp_path / ".writing-1-n", 0, 2, tmp_path / "1", lambda: 1)
    shard.write({"w": eager.ones(2)}, {"dict": []})
    with pytest.raises(PeerLost, match="rank 1 is lost") as caught:
        shard.publish(timeout=600)
    assert caught.value.rank == 1
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(ArgumentError, match="/x/0"):
        checkpoint.save({"x": [object()]}, tmp_path / "a")
    with pytest.raises(ArgumentError, match="given: float"):
        checkpoint.save({1.5: 0}, tmp_path / "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(SerializationError, match="cannot write"):
        checkpoint.save({"x": 1}, tmp_path / "file" / "a")


@pytest.mark.parametrize("async_", [False, True])
def test_what_one_rank_cannot_save_none_waits_for(tmp_path, async_):
    def entry(group):
        content = {"x": object() if group.rank() == 1 else 1}
        with pytest.raises(ArgumentError) as caught:
            checkpoint.save(content, tmp_path / "a", async_=async_, process_group=group)
        return str(caught.value)

    first, second = local_ranks.run(2, entry)
    assert "rank 1 cannot save" in first and "/x cannot be saved" in first
    assert second.startswith("checkpoint.save: /x cannot be saved")

    def name(group):
        with pytest.raises(ArgumentError, match="ranks gave different names"):
            checkpoint.save({}, tmp_path / str(group.rank()), process_group=group)

    local_ranks.run(2, name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("async_", [False, True])
def test_a_shard_that_cannot_be_written_ends_the_waiting(tmp_path, monkeypatch, async_):
    def full(tensors, file, metadata):
        if "00001-of" in file.name:
            raise OSError("no space left")
        save_file(tensors, file, metadata)

    save_file = eager.serialization.save_file
    monkeypatch.setattr("eager.distributed.checkpoint.shard.save_file", full)

    def body(group):
        with pytest.raises(SerializationError, match="no space left") as caught:
            checkpoint.save(
                {"x": eager.ones(3)}, tmp_path / "a", async_=async_, process_group=group
            ).wait(60)
        return str(caught.value)

    assert "rank 1" in local_ranks.run(2, body)[0]
    assert not list(tmp_path.iterdir())


MANIFESTS = [
    b"", b"[]", b"{", b"null", b"\xff\xfe", b"[" * 100_000,
    json.dumps({"format": FORMAT, "number": 1, "shards": []}).encode(),
    json.dumps({"format": FORMAT, "number": True, "shards": [{}]}).encode(),
    json.dumps({"format": FORMAT, "number": 1, "shards": [
        {"name": "../../etc/passwd", "bytes": 1, "sha256": ""}]}).encode(),
    json.dumps({"format": "x", "number": 1, "shards": [
        {"name": "shard-00000-of-00001.safetensors", "bytes": 1, "sha256": ""}]}).encode(),
]  # fmt: skip


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_bad_manifests_are_refused(tmp_path, manifest):
    checkpoint.save({"x": 1}, tmp_path / "a")
    (tmp_path / "a" / "manifest.json").write_bytes(manifest)
    with pytest.raises(SerializationError):
        checkpoint.load(tmp_path / "a")
    assert checkpoint.latest(tmp_path) is None


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_damage_is_found(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("damage")
    checkpoint.save({"x": eager.arange(4), "y": [1, 2]}, root / "a")
    files = sorted((root / "a").iterdir())
    file = data.draw(st.sampled_from(files))
    content = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[at] ^= data.draw(st.integers(1, 255))
    else:
        del content[at:]
    file.write_bytes(content)
    try:
        found = checkpoint.load(root / "a")
    except SerializationError:
        pass
    else:  # a number in the manifest may change without harm
        assert file.name == "manifest.json"
        assert found["x"].tolist() == [0, 1, 2, 3] and found["y"] == [1, 2]
    shutil.rmtree(root)


def training(group, root, first, last, load=False):
    eager.manual_seed(group.rank())
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))
    with eager.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(eager.tensor(np.random.default_rng(i).standard_normal(tuple(p.shape))))
    optimizer = ZeroRedundancyOptimizer(model.parameters(), AdamW, group, lr=0.01)
    random = eager.random.Generator()
    random.manual_seed(group.rank())
    if load:
        found = checkpoint.latest(root, process_group=group)
        state = checkpoint.load(found, process_group=group)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        random.set_state(state["random"])
        assert state["step"] == first
    for step in range(first, last):
        if step == 3 and not load:
            state = {
                "model": model.state_dict(), "optimizer": optimizer.local_state_dict(),
                "step": step, "random": PerRank(random.get_state()),
            }  # fmt: skip
            checkpoint.async_save(state, root / f"step-{step}", process_group=group).wait(60)
        x = eager.randn(4, 6, generator=random)
        optimizer.zero_grad()
        (model.eval()(x) ** 2).mean().backward()
        with eager.no_grad():
            for p in model.parameters():
                group.backend.all_reduce(p.grad, local_ranks.ReduceOp.AVG)
        optimizer.step()
    return [p.detach().numpy().copy() for p in model.parameters()]


def test_a_resumed_run_is_bit_identical(tmp_path):
    right = local_ranks.run(2, lambda group: training(group, tmp_path, 0, 6))
    again = local_ranks.run(2, lambda group: training(group, tmp_path, 3, 6, load=True))
    for mine, expected in zip(again, right, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(mine, expected, strict=True))
    # and a job of another size can go on from it
    alone = local_ranks.run(1, lambda group: training(group, tmp_path, 3, 4, load=True))
    assert all(np.isfinite(p).all() for p in alone[0])
