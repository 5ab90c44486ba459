"""A server that has imported amex and torch and forks for each command, for tests that start many commands.

``serve`` imports once, listens on a Unix socket, and forks for each request. ``install`` writes the clients ``python``
and ``amex`` into a folder for PATH. A client sends its arguments, folder, environment and open files to the server,
forwards signals, and ends with the exit status of the fork. ``sys.executable`` of a fork is the client ``python``, so
that its workers and feeders are forks too. The client runs the real Python for anything but ``-m``, ``-c`` and a file.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

# Modules that many commands import. Forks import the others themselves.
PRELOADED = (
    *("torch", "torchvision", "zarr", "dask.array", "distributed", "h5py"),
    *("faiss", "matplotlib.figure", "transformers"),
    *("amex.cli", "amex.extract.run", "amex.extract.encoders", "amex.features", "amex.train", "amex.train.models"),
)
MOST_FILES = 250  # limit of one message on a Unix socket

CLIENT = """\
#!{python} -IS
import json, os, signal, socket, sys

arguments = [*{prefix!r}, *sys.argv[1:]]
while arguments[:1] in (["-B"], ["-u"]):
    del arguments[0]
if arguments[:1] not in (["-m"], ["-c"]) and not (arguments and os.path.isfile(arguments[0])):
    os.execv({python!r}, [{python!r}, *arguments])
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
files = []
for number in map(int, os.listdir("/dev/fd")):
    try:
        os.fstat(number)
    except OSError:
        continue
    if number != connection.fileno():
        files.append(number)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT):
    if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, lambda number, frame: connection.send(bytes([number])))
ignored = [int(s) for s in signal.valid_signals() if signal.getsignal(s) == signal.SIG_IGN and s != signal.SIGPIPE]
request = dict(arguments=arguments, folder=os.getcwd(), environment=dict(os.environ), files=files, ignored=ignored)
message = json.dumps(request).encode(errors="surrogateescape")
connection.sendall(len(message).to_bytes(8, "big") + message)
socket.send_fds(connection, [b"."], files)
for number in files:
    os.close(number)
status = connection.recv(2)
if len(status) < 2:
    os._exit(70)
if status[0]:  # ended by a signal: so does the client
    signal.signal(status[0], signal.SIG_DFL) if status[0] not in (9, 19) else None
    os.kill(os.getpid(), status[0])
os._exit(status[1])
"""


def install(folder: Path, address: str) -> None:
    """Write the clients ``python``, ``python3`` and ``amex`` into ``folder``."""
    folder.mkdir(parents=True)
    for name, prefix in {"python": [], "python3": [], "amex": ["-m", "amex"]}.items():
        path = folder / name
        path.write_text(CLIENT.format(python=sys.executable, prefix=prefix, address=address))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)


@contextlib.contextmanager
def warm_python(folder: Path, environment: dict[str, str], *prepared: str) -> Iterator[Path]:
    """Start the server; yield the folder of its clients, for PATH.

    Args:
        folder: where the clients are written; it must not exist.
        environment: of the server. Libraries read some variables when they are imported.
        prepared: further modules for the server to import.
    """
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # the address of a Unix socket has about 100 characters
        address = f"{short}/socket"
        install(folder, address)
        command = [sys.executable, __file__, address, str(folder / "python"), *prepared]
        server = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            while not os.path.exists(address):
                assert server.poll() is None, "the server of warm_python ended"
                time.sleep(0.05)
            yield folder
        finally:
            server.terminate()
            server.wait()


def serve(address: str) -> dict:
    """Serve until SIGTERM or the end of the parent process; return the request in each fork."""
    parent = os.getppid()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.new")
    listener.listen(64)
    listener.settimeout(5)
    os.rename(f"{address}.new", address)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the forks
    while True:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            if os.getppid() != parent:
                sys.exit()
            continue
        if os.fork():
            connection.close()
            continue
        listener.close()
        connection.settimeout(None)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        length = int.from_bytes(_receive(connection, 8), "big")
        request = json.loads(_receive(connection, length).decode(errors="surrogateescape"))
        _, received, _, _ = socket.recv_fds(connection, 1, MOST_FILES)
        command = os.fork()
        if command == 0:
            connection.close()
            _take_files(received, request["files"])
            return request
        for number in received:
            os.close(number)
        threading.Thread(target=_pass_signals, args=(connection, command), daemon=True).start()
        _, status = os.waitpid(command, 0)
        ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        with contextlib.suppress(OSError):  # the client was killed
            connection.send(bytes([ended_by, 0 if ended_by else os.WEXITSTATUS(status)]))
        os._exit(0)


def _receive(connection: socket.socket, length: int) -> bytes:
    received = b""
    while len(received) < length:
        if not (more := connection.recv(length - len(received))):
            os._exit(0)  # the client was killed
        received += more
    return received


def _pass_signals(connection: socket.socket, command: int) -> None:
    """Send the command the signals that its client received; kill it if the client is killed."""
    with contextlib.suppress(OSError):
        while numbers := connection.recv(16):
            for number in numbers:
                os.kill(command, number)
    with contextlib.suppress(OSError):
        os.kill(command, signal.SIGKILL)


def _take_files(received: list[int], wanted: list[int]) -> None:
    """Renumber the received files as in the client; close all others."""
    above = max([*received, *wanted]) + 1
    moved = [os.dup2(number, above + place) for place, number in enumerate(received)]
    os.closerange(0, above)
    for number, target in zip(moved, wanted, strict=True):
        os.dup2(number, target)
        os.close(number)


def run(request: dict) -> None:
    """Run the arguments of a request in this process, as Python does."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    tempfile.tempdir = None
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    kind, *rest = request["arguments"]
    below = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:0] = [path for path in below if path not in sys.path]
    if kind == "-m":
        sys.argv = [rest[0], *rest[1:]]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path.insert(0, "")
        exec(compile(rest[0], "<string>", "exec"), vars(sys.modules["__main__"]))
    else:
        sys.argv = [kind, *rest]
        runpy.run_path(kind, run_name="__main__")


def end(run: Callable[[dict], None], request: dict) -> None:
    """Run the request and exit as Python does, but without deleting objects, which takes half a second with torch."""
    status = 0
    try:
        run(request)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if not isinstance(error.code, int | None):
            print(error.code, file=sys.stderr)
    except BaseException:
        status = 130 if sys.exc_info()[0] is KeyboardInterrupt else 1
        traceback.print_exc()
    threading._shutdown()  # waits for threads
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status & 255)


if __name__ == "__main__":
    _, address, sys.executable, *prepared = sys.argv
    for module in (*PRELOADED, *prepared):
        importlib.import_module(module)
    assert threading.active_count() == 1, threading.enumerate()
    gc.collect()
    gc.freeze()
    end(run, serve(address))
