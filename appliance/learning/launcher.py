"""Starts one program for the daemon inside a unit of systemd, in the training slice: see `launch.py`.

systemd hands over the accepted connection as standard input. It carries one request with the files for
the program's output, and back its process id and then its exit code. When the connection closes, because the
daemon wants that or is gone, the program ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from typing import Any

MESSAGE_BYTES = 1 << 18
_CREDENTIALS = struct.Struct("3i")


def main() -> int:
    """Serve the connection to its end."""
    # When systemd stops the slice, the program gets the signal too: it may want to save what it has done.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    connection = socket.socket(fileno=0)
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    # The socket's mode says so too: whoever may use it runs what he likes as this user.
    if _CREDENTIALS.unpack(peer)[1] not in (os.getuid(), 0):
        print("Only the daemon's own user may have programs started.", file=sys.stderr)
        return 1
    message, files, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 2)
    if not message:
        return 0
    request = json.loads(message)
    output, errors = files
    try:
        program = subprocess.Popen(
            request["command"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            process_group=0,
            env=request["env"],
        )
    except OSError as error:
        _say(connection, error=str(error))
        return 0
    for file in files:
        os.close(file)
    try:
        _accompany(connection, program.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()
    return 0


def _accompany(connection: socket.socket, pid: int) -> None:
    """Until the daemon lets go: tell it what becomes of the program, but leave the id taken."""
    _say(connection, pid=pid)
    life = os.pidfd_open(pid)
    watched = [connection.fileno(), life]
    while True:
        readable = select.select(watched, [], [])[0]
        if connection.fileno() in readable and not _heard(connection):
            return
        if life in readable:
            watched.remove(life)
            end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            assert end is not None
            _say(connection, code=end.si_status if end.si_code == os.CLD_EXITED else -end.si_status)


def _heard(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1)
    except ConnectionError:
        return b""


def _say(connection: socket.socket, **fields: Any) -> None:
    with contextlib.suppress(OSError):  # nobody is there any more: the next look says so
        connection.send(json.dumps(fields).encode())


if __name__ == "__main__":
    sys.exit(main())
