"""What tests call in processes that they start: here nothing is imported that takes long."""

import os
import signal
import sys
import time

import torch

from utils.processes import together
from utils.settings import ConfigError


def add_up(number):
    with together(torch.device("cpu")) as processes:
        print(f"process {processes.number} sieht grün")
        total = processes.sum(torch.tensor(number + processes.number)).item()
        share = processes.share(5)
        rows = processes.gather(torch.tensor([[position, 10 * position] for position in share]), 5)
        return total, rows.tolist(), os.environ["OMP_NUM_THREADS"]


def fail_alone(kind):
    """In the last process; the others wait for it."""
    with together(torch.device("cpu")) as processes:
        if processes.number == processes.count - 1:
            if kind == "killed":
                os.kill(os.getpid(), signal.SIGTERM)
            raise ConfigError("a: wrong; delete it") if kind == "user" else ValueError("a bug")
        processes.sum(torch.tensor(1.0))


def wait():
    print("waiting", file=sys.stderr)
    time.sleep(60)


def hang_alone():
    """In the last process, when the first has its value."""
    if os.environ["RANK"] != "0":
        time.sleep(600)
    return "done"
