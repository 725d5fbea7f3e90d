"""Also a script: `torchrun test_processes.py CONFIG IMAGES` trains as the tests in this file compare."""

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from samples import colour_config
from torch import nn
from tqdm.auto import tqdm
from trainers import started

from utils.config import load_config
from utils.dataset import prepare_split
from utils.system import machine
from utils.system.errors import TrainingError
from utils.training import train
from utils.training.loop import Trainer
from utils.training.phases import FineTuning
from utils.training.processes import Processes, together

ROOT = Path(__file__).parents[2]


def train_in_float32(config):
    """Train in float32: bfloat16 rounds by more than the order of a sum changes it."""
    with patch.object(machine.torch.cpu, "get_capabilities", dict, create=True):
        return train(config)


def torchrun(*command):
    """Run two processes; returns what both printed to stdout and to stderr."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *command]
    own = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1", "USE_LIBUV": "0"}
    environment = os.environ | own | {"PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done
    return done.stdout, done.stderr


@pytest.fixture
def config(colour_folder, tmp_path, weights):
    """Weights are given, so batch statistics stay; half the batch size cannot be divided by two."""
    options = {"epochs": 2, "head_steps": 3, "batch_size": 10, "num_workers": 0, "additivity": 1.0}
    options |= {"optimizer": "SGD", "learning_rate": 0.05}
    image = {"size": (16, 16), "RandomErasing": 0.5, "CutMix": 0.4}
    paths = {"checkpoints_path": tmp_path / "one", "weights": weights}
    given = {"image": image, "device": "cpu", "embedding_dim": 4, "hyperparameters": options}
    return colour_config(colour_folder, tmp_path, **paths, **given)


def test_two_processes_train_the_network_of_one(config, tmp_path):
    """Memory runs out in the second process, for its share of 10 images; both halve their batches."""
    (config.data_path / "red" / "broken.png").write_bytes(b"")
    with small_memory(9):
        alone = train_in_float32(config)
    config.model_copy(update={"checkpoints_path": tmp_path / "two"}).save(tmp_path / "config.yml")
    out, err = torchrun(str(Path(__file__)), str(tmp_path / "config.yml"), "4")
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}
    history = pd.read_csv(tmp_path / "two" / "history.csv").drop(columns="seconds")
    pd.testing.assert_frame_equal(history, alone.drop(columns="seconds"), rtol=1e-4)
    for name in ("model.pth", "last.pth"):
        one, two = (torch.load(tmp_path / run / name, weights_only=True) for run in ("one", "two"))
        torch.testing.assert_close(two["state_dict"], one["state_dict"], rtol=1e-3, atol=1e-5)
    assert two["info"]["config"]["hyperparameters"]["batch_size"] == 5 and "run" not in two["info"]
    start = torch.load(config.weights, weights_only=True)
    assert not torch.equal(two["state_dict"]["backbone.0.weight"], start["0.weight"])  # it has learnt something
    # One process shows its progress, and says what there is to say.
    assert err.count("Computing features:   0%") == 2 and err.count("Training:   0%") == 1
    assert out.count("1 of 21 images cannot be read: left out") == 1
    assert out.count("out of memory with hyperparameters.batch_size 10; training goes on with 5") == 1


def test_shares_cover_every_position_once():
    for count in (0, 1, 2, 7, 64):
        shares = [range(count)[Processes(rank, 3).share(count)] for rank in range(3)]
        assert [position for share in shares for position in share] == list(range(count))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


class Another(Processes):
    """One of two processes that are not connected: `sum` adds the given tensor of the other one."""

    def __init__(self, others, rank=0):
        super().__init__(rank, 2)
        self.others = others

    def sum(self, tensor):
        return tensor + self.others


def test_rows_of_all_are_gathered_and_gradients_flow_to_ones_own():
    own = torch.tensor([[1.0], [2.0], [3.0]], requires_grad=True)
    rows = Another(torch.tensor([[7.0], [8.0], [0], [0], [0]]), rank=1).gather(own, 5)
    assert rows.flatten().tolist() == [7, 8, 1, 2, 3]
    (rows * torch.arange(5.0)[:, None]).sum().backward()
    assert own.grad.flatten().tolist() == [2, 3, 4]
    assert Processes().gather(own, 3).tolist() == own.tolist()


def test_gradients_are_summed_and_a_process_without_any_has_zeros():
    one, two = (nn.Parameter(torch.zeros(shape)) for shape in ((2, 2), (1,)))
    one.grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    Another(torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0])).sum_gradients([one, two])
    assert one.grad.tolist() == [[11, 22], [33, 44]] and two.grad.tolist() == [50]


def fail(message):
    raise RuntimeError(message)


def test_running_out_of_memory_in_one_process_is_an_error_in_all():
    fine, full = torch.tensor(0.0), torch.tensor(1.0)  # what the other process says
    with pytest.raises(RuntimeError, match="out of memory in one of the processes"):
        Another(full).attempt(lambda: 7)
    with pytest.raises(RuntimeError, match="out of memory in one of the processes"):
        Another(fine).attempt(lambda: fail("CUDA out of memory"))
    assert Another(fine).attempt(lambda: 7) == 7
    with pytest.raises(RuntimeError, match="^broken$"):
        Another(fine).attempt(lambda: fail("broken"))


def test_a_process_with_other_images_than_the_first_says_so(config, monkeypatch):
    table = prepare_split(config)[0]
    first = Trainer(config, table).data.fingerprints
    monkeypatch.setattr(Processes, "from_first", lambda self, value: first)
    file = config.data_path / table.file[table.split == "train"].iloc[0]
    Image.open(file).transpose(Image.Transpose.ROTATE_180).save(file)
    with pytest.raises(TrainingError, match="process 1 has other images or weights than the first; copy"):
        Trainer(config, table, Processes(1, 2))


def test_every_process_draws_its_own_in_every_epoch_and_the_same_again(config, monkeypatch):
    drawn = []
    monkeypatch.setattr(Trainer, "step", lambda self, *batch: drawn.append(torch.initial_seed()) or 1 / 0)
    trainer = started(config, epoch=2)
    with torch.random.fork_rng(devices=[]):
        for rank, epoch in ((0, 2), (1, 2), (0, 3), (1, 3), (0, 2)):
            trainer.processes = Processes(rank, 2)
            with pytest.raises(ZeroDivisionError):
                trainer.run_epoch(epoch, tqdm(disable=True))
    assert len(set(drawn)) == 4 and drawn[0] == drawn[4]


@pytest.mark.parametrize("device, backend, rank", [("cuda:1", "nccl", 0), ("cpu", "gloo", 1)])
def test_the_connection_is_that_of_the_device_and_only_the_first_process_prints(
    monkeypatch, capsys, device, backend, rank
):
    asked = []
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "as torchrun sets it")
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: asked.append(str(device)))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, timeout: asked.append(backend))
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: rank)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: asked.append("left"))
    with together(torch.device(device)) as processes:
        assert (processes.rank, processes.world_size, str(processes.device)) == (rank, 2, device)
        print(f"process {rank}")
    assert asked == [device] * (device != "cpu") + [backend, "left"]
    assert capsys.readouterr().out == "process 0\n" * (rank == 0)


def small_memory(images):
    """Limit the images of a training step in the last process."""
    embed = FineTuning.embed

    def limited(self, inputs, count, rng):
        if self.processes.rank == self.processes.world_size - 1 and len(inputs) > images:
            raise RuntimeError("CUDA out of memory")
        return embed(self, inputs, count, rng)

    return patch.object(FineTuning, "embed", limited)


if __name__ == "__main__":
    with small_memory(int(sys.argv[2])):
        train_in_float32(load_config(sys.argv[1]))
