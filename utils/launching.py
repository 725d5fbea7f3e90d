"""Several processes on this machine, started from a program or a notebook (`num_processes`).

torchrun does the same from a terminal. Here, what the processes print appears where they were started, an error of one
of them is raised as what it was, and an interrupt lets them keep what they have finished. Each is a new Python, not a
fork, so this works on Windows, in Jupyter and beside CUDA; as no port is opened, no firewall asks.
"""

from __future__ import annotations

import _thread
import codecs
import os
import pickle
import pkgutil
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

from utils.files import replacing
from utils.machine import TrainingError
from utils.processes import MEETING, refuse_other_launchers
from utils.settings import Config, UserError

GRACE = 10.0  # seconds for the other processes to end, after one has failed or the first has returned


class Outcome(NamedTuple):
    """What became of a process's function: its `value`, or an `error` of the user's, or the `bug` that ended it."""

    value: Any = None
    error: UserError | None = None
    bug: str = ""


def starts_processes(config: Config) -> bool:
    """Whether this process is to start those of `num_processes`, and is none of them itself.

    Raises:
        TrainingError: torchrun has started another number, or another launcher several.
    """
    if "WORLD_SIZE" in os.environ:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if config.num_processes not in (1, here):
            raise TrainingError(
                f"num_processes: {config.num_processes}, but torchrun has started {here} on this machine; "
                "delete the key, or start without torchrun"
            )
        return False
    refuse_other_launchers()
    return config.num_processes > 1


def run_together(count: int, function: str, *arguments: Any) -> Any:
    """Call a function in `count` new processes that can form a group (`processes.together`).

    What the first one prints is passed on. An interrupt is passed to all of them, which may take it as a request to
    finish; a second one ends them at once.

    Args:
        function: its place, `module:name`; called with the same arguments in each.

    Returns:
        What it returns in the first process.

    Raises:
        UserError: what one of them has raised.
        TrainingError: one was ended from outside.
        RuntimeError: another error in one of them, with its traceback.
        KeyboardInterrupt: the interrupt, where the first one did not return.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        given = pickle.dumps((function, arguments))
        children = [_start(number, count, Path(folder)) for number in range(count)]
        try:
            for child in children:
                with suppress(OSError):  # it has ended already
                    child.stdin.write(given)
                    child.stdin.flush()
            interrupted, failed = _follow(children)
        finally:
            _end(children)
        outcomes = [_outcome(Path(folder), number) for number in range(count)]
    return _judge(children, outcomes, failed, interrupted)


def _start(number: int, count: int, folder: Path) -> subprocess.Popen:
    threads = max(1, torch.get_num_threads() // count)
    environment = {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"} | os.environ
    environment |= {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        MEETING: str(folder / "meeting"),
        "PYTHONPATH": os.pathsep.join(place or os.getcwd() for place in sys.path),
        "PYTHONIOENCODING": f"{_encoding()}:backslashreplace",
    }
    shown = subprocess.PIPE if number == 0 else subprocess.DEVNULL
    # Ctrl-C in a terminal reaches all of its group: these are to hear of it from us, once.
    apart = {"creationflags": 0x200} if sys.platform == "win32" else {"start_new_session": True}
    command = [sys.executable, "-m", "utils.launching", str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=shown, stderr=shown, env=environment, **apart)


def _encoding() -> str:
    """That of what this process prints, which it is passed on to."""
    return getattr(sys.stderr, "encoding", None) or "utf-8"


def _follow(children: Sequence[subprocess.Popen]) -> tuple[bool, list[int]]:
    """Pass on what the first process prints until all have ended; an interrupt reaches them as the end of their input.

    Returns:
        Whether there was one; and the numbers of the processes that have failed, but not those that were ended here.
    """
    printed: queue.Queue[tuple[IO[str], str]] = queue.Queue()
    readers = [
        threading.Thread(target=_read, args=(pipe, stream, printed), daemon=True)
        for pipe, stream in ((children[0].stdout, sys.stdout), (children[0].stderr, sys.stderr))
    ]
    for reader in readers:
        reader.start()
    interrupted, failed, deadline = False, [], float("inf")
    while any(child.poll() is None for child in children) or any(map(threading.Thread.is_alive, readers)):
        try:
            with suppress(queue.Empty):
                stream, text = printed.get(timeout=0.1)  # on Windows a wait without end cannot be interrupted
                stream.write(text)
                stream.flush()
            if time.monotonic() > deadline:
                _end(children)
                break
            failed = [number for number, child in enumerate(children) if child.poll()]
            over = failed or children[0].poll() == 0  # only the first one's value is wanted
            deadline = min(deadline, time.monotonic() + GRACE) if over else deadline
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
            for child in children:
                child.stdin.close()
    while not printed.empty():
        stream, text = printed.get()
        stream.write(text)
    return interrupted, failed


def _read(pipe: IO[bytes], stream: IO[str], printed: queue.Queue) -> None:
    decoder = codecs.getincrementaldecoder(_encoding())("replace")
    while some := pipe.read1(4096):
        printed.put((stream, decoder.decode(some)))


def _end(children: Sequence[subprocess.Popen]) -> None:
    for child in children:
        child.kill()  # nothing happens to one that has ended
    for child in children:
        child.wait()
        for pipe in filter(None, (child.stdin, child.stdout, child.stderr)):
            with suppress(OSError):
                pipe.close()


def _outcome(folder: Path, number: int) -> Outcome | None:
    with suppress(OSError):
        return Outcome(*pickle.loads((folder / str(number)).read_bytes()))
    return None


def _judge(
    children: Sequence[subprocess.Popen],
    outcomes: Sequence[Outcome | None],
    failed: Sequence[int],
    interrupted: bool,
) -> Any:
    """The first process's value, or the error that says most: others have lost their connection to one that failed."""
    for outcome in filter(None, outcomes):
        if outcome.error:
            raise outcome.error
    if outcomes[0] and not outcomes[0].bug:
        return outcomes[0].value
    if interrupted:
        raise KeyboardInterrupt
    for number in failed:
        if outcomes[number] is None:
            raise TrainingError(
                f"num_processes: process {number} of {len(children)} was ended from outside (exit code "
                f"{children[number].returncode}), as happens when memory runs out; lower num_processes, or "
                "hyperparameters.batch_size, and train again to go on"
            )
    bugs = "\n".join(f"process {number}: {outcomes[number].bug}" for number in failed)
    raise RuntimeError(f"{len(failed)} of {len(children)} processes failed\n{bugs}")


def main() -> None:
    """One of the processes: what to call comes on the standard input, whose end is an interrupt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    function, arguments = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_interrupt_at_the_end, daemon=True).start()
    try:
        value = pkgutil.resolve_name(function)(*arguments)
        outcome = Outcome(value if os.environ["RANK"] == "0" else None)
    except KeyboardInterrupt:
        sys.exit(130)  # a shell's code for it
    except UserError as error:
        outcome = Outcome(error=error)
    except Exception:
        outcome = Outcome(bug=traceback.format_exc())
    with replacing(Path(sys.argv[1]) / os.environ["RANK"]) as file:
        file.write_bytes(pickle.dumps(tuple(outcome)))  # here, its class is one of __main__
    sys.exit(bool(outcome.error or outcome.bug))


def _interrupt_at_the_end() -> None:
    with suppress(OSError):
        os.read(0, 1)  # not through sys.stdin, whose lock the interpreter wants when it ends
    if hasattr(signal, "pthread_kill"):  # wakes a main thread that waits, too
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    else:  # Windows
        _thread.interrupt_main()


if __name__ == "__main__":
    main()
