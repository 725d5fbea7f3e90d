"""What tests let die half way, in a process of its own: where there is fork, of one that has imported what takes
long."""

import multiprocessing
import os
import signal
from contextlib import contextmanager

import torch

from benchmarks.kills import watched
from utils.images import cache
from utils.search import build, store
from utils.Siamese import SiameseNetwork
from utils.training import train

KILL = getattr(signal, "SIGKILL", signal.SIGTERM)
KILLED = -signal.SIGKILL if os.name == "posix" else signal.SIGTERM  # the exit code


def started(function, *arguments):
    context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    if os.name == "posix":
        context.set_forkserver_preload(["benchmarks.kills", "utils.search.build"])
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


def exit_code(function, *arguments):
    process = started(function, *arguments)
    process.join()
    return process.exitcode


def saving(checkpoint):
    SiameseNetwork.load(checkpoint).save(checkpoint, number=2)


def training(config, event, count):
    """Killed before the `count`-th step of the optimizer, or before so many files were put in their places."""
    torch.set_num_threads(1)
    with watched((event, count)):
        train(config)


def reading(config, files, chunk):
    """Killed when the pixels of the second chunk of images are in the cache, and nobody knows."""
    cache.CHUNK, synced = chunk, []
    os.fsync = lambda number: synced.append(number) or len(synced) == 2 and os.kill(os.getpid(), KILL)
    cache.read_fingerprints(config, files)


def indexing(checkpoint, folder, path):
    """Killed with two batches in the index of a folder and the third written, but not committed."""
    done, transaction = [], store.Index._transaction

    @contextmanager
    def dying(self, kind):
        with transaction(self, kind):
            yield
            done.append(kind)
            if len(done) == 6:  # made, listed (twice), two batches
                os.kill(os.getpid(), KILL)

    store.Index._transaction, build.EMBEDDED_AT_ONCE = dying, 2
    build.build_index(SiameseNetwork.load(checkpoint), folder, path, num_workers=0, verbose=False)
