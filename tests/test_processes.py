"""Also a script: `torchrun tests/test_processes.py CONFIG` trains as the test in this file compares."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from samples import colour_config

from utils import machine
from utils.config import load_config
from utils.dataset import prepare_split
from utils.images import augmentation
from utils.images.augmentation import changed_images
from utils.processes import Processes, together
from utils.Siamese import SiameseNetwork
from utils.training import Trainer, TrainingError, train

ROOT = Path(__file__).parents[1]


def train_in_float32(config):
    """bfloat16, which some machines compute in, rounds more than sums differ in another order."""
    with patch.object(machine.torch.cpu, "get_capabilities", dict, create=True):
        return train(config)


def torchrun(machines, processes, *command):
    """What a torchrun on each of some machines, which are all this one, has printed: out and err."""
    where = ["--standalone"]
    if machines > 1:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        where = [f"--nnodes={machines}", "--rdzv_backend=c10d", f"--rdzv_endpoint=localhost:{port}"]
        where += ["--local-addr=localhost"]
    run = [sys.executable, "-m", "torch.distributed.run", *where, f"--nproc_per_node={processes}", *command]
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "USE_LIBUV": "0", "PYTHONIOENCODING": "utf-8"}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")
    runs = [subprocess.Popen(run, cwd=ROOT, env=os.environ | own, **pipes) for _ in range(machines)]
    try:
        printed = [child.communicate(timeout=300) for child in runs]
    finally:
        for child in runs:
            child.kill()
    assert [child.returncode for child in runs] == [0] * machines, printed
    return ["".join(texts) for texts in zip(*printed)]


@pytest.fixture
def config(colour_folder, tmp_path):
    """A backbone that starts from weights, so that its batch statistics stay, and batches that do not divide by two."""
    torch.manual_seed(0)
    model = SiameseNetwork("Conv4", image_size=(16, 16))
    weights = model.backbone.state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    options = {"epochs": 2, "head_steps": 3, "batch_size": 5, "num_workers": 0, "additivity": 1.0}
    return colour_config(
        colour_folder,
        tmp_path,
        checkpoints_path=tmp_path / "one",
        weights=tmp_path / "weights.pth",
        image={"size": (16, 16), "RandomErasing": 0.5, "CutMix": 0.4},
        device="cpu",
        embedding_dim=4,
        hyperparameters=options | {"optimizer": "SGD", "learning_rate": 0.05},
    )


@pytest.mark.parametrize(
    "machines, processes",
    [(1, 2), pytest.param(2, 1, marks=pytest.mark.skipif(os.name == "nt", reason="a firewall would ask"))],
)
def test_two_processes_train_the_network_of_one(config, tmp_path, machines, processes):
    (config.data_path / "red" / "broken.png").write_bytes(b"")
    alone = train_in_float32(config)
    there = config.model_copy(update={"checkpoints_path": tmp_path / "two"})
    there.save(tmp_path / "config.yml")
    out, err = torchrun(machines, processes, str(Path(__file__)), str(tmp_path / "config.yml"))
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}
    history = pd.read_csv(tmp_path / "two" / "history.csv").drop(columns="seconds")
    pd.testing.assert_frame_equal(history, alone.drop(columns="seconds"), rtol=1e-4)
    for name in ("model.pth", "last.pth"):
        one, two = (torch.load(tmp_path / run / name, weights_only=True)["state_dict"] for run in ("one", "two"))
        torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-5)
    start = torch.load(tmp_path / "weights.pth", weights_only=True)
    assert not torch.equal(two["backbone.0.weight"], start["0.weight"])  # it has learnt something
    # One process shows its progress, and says what there is to say.
    assert err.count("Preparing explanations:   0%") == 1 and err.count("Training:   0%") == 1
    assert out.count("1 of 21 images cannot be read: left out") == 1


def test_a_process_augments_its_own_share_alone_as_one_process_would(config, monkeypatch):
    changed = []

    def counting(images, *args):
        changed.append(len(images))
        return changed_images(images, *args)

    monkeypatch.setattr(augmentation, "changed_images", counting)
    alone, second = (Trainer(config, prepare_split(config)[0]) for _ in range(2))
    second.processes = Processes(1, 2)
    positions = np.array([3, 0, 8, 5, 1])  # the second process's share is the last three
    for _ in range(2):  # batches
        expected, found = [], []
        for trainer, start, rows in ((alone, 0, expected), (second, 2, found)):
            changed.clear()
            trainer.start_all()
            some, embed = trainer.draw(positions)
            assert sum(changed) == 5 - start
            places, embeddings = embed(2, 5)
            rows += [some.tolist(), places.tolist(), embeddings.detach()]
        assert found[:2] == expected[:2]
        torch.testing.assert_close(found[2], expected[2], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_processes_that_would_each_train_a_network_of_their_own_are_an_error(config, monkeypatch, variable):
    monkeypatch.setenv(variable, "4")
    with pytest.raises(TrainingError, match=f"{variable}=4: each .* torchrun"):
        train(config)
    assert not config.checkpoints_path.exists()
    monkeypatch.setenv(variable, "1")
    with together(torch.device("cpu")) as processes:
        assert processes.first and processes.count == 1


def test_shares_cover_every_position_once():
    for count in (0, 1, 2, 7, 64):
        shares = [Processes(number, 3).share(count) for number in range(3)]
        assert [position for share in shares for position in share] == list(range(count))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


class Another(Processes):
    """The first of two processes, without a connection: `sum` adds what the other one is said to have."""

    def __init__(self, others):
        super().__init__(0, 2)
        self.others = others

    def sum(self, tensor):
        return tensor + self.others


def test_tensors_become_the_mean_of_all_processes():
    tensors = [torch.tensor([1.0, 5.0]), torch.tensor(2.0)]
    Another(3.0).average(tensors)
    assert [tensor.tolist() for tensor in tensors] == [[2.0, 4.0], 2.5]


def fail(message):
    raise RuntimeError(message)


def test_running_out_of_memory_in_one_process_is_an_error_in_all_and_so_is_an_interrupt():
    fine, full, stopped = map(torch.tensor, ([0.0, 0.0], [1.0, 0.0], [0.0, 1.0]))  # what the other process says
    for others, compute in ((full, lambda: 7), (fine, lambda: fail("CUDA out of memory"))):
        with pytest.raises(RuntimeError, match="out of memory in one of the processes"):
            Another(others).attempt(compute)
    assert Another(fine).attempt(lambda: 7) == 7
    with pytest.raises(RuntimeError, match="^broken$"):
        Another(fine).attempt(lambda: fail("broken"))
    with pytest.raises(KeyboardInterrupt):
        Another(stopped).attempt(lambda: 7)
    before, interrupted = signal.getsignal(signal.SIGINT), Another(fine)
    with interrupted.interrupts_together():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            interrupted.attempt(lambda: 7)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_process_with_other_images_than_the_first_says_so(monkeypatch):
    monkeypatch.setattr(Processes, "from_first", lambda self, value: 1)
    Processes(1, 2).check_same_images(1)
    with pytest.raises(TrainingError, match="process 1 has other images than the first; copy the data"):
        Processes(1, 2).check_same_images(2)


@pytest.mark.parametrize("device, backend", [("cuda:1", "nccl"), ("cpu", "gloo")])
def test_the_connection_is_that_of_the_device_and_only_the_first_process_prints(monkeypatch, capsys, device, backend):
    asked = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: asked.append(str(device)))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, timeout: asked.append(backend))
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: asked.append("left"))
    for rank in (0, 1):
        monkeypatch.setattr(dist, "get_rank", lambda: rank)
        with together(torch.device(device)) as processes:
            assert (processes.number, processes.count, str(processes.device)) == (rank, 2, device)
            print(f"process {rank}")
    assert asked == 2 * ([device] * (device != "cpu") + [backend, "left"])
    assert capsys.readouterr().out == "process 0\n"


if __name__ == "__main__":
    train_in_float32(load_config(sys.argv[1]))
