"""Becomes the server of the embedded store, after tying its life to the daemon's.

Run as `python -I -S exec_shim.py PARENT_PID LOCK_FILE BINARY ARGS…`. It stands between fork and exec
so that the daemon needs no `preexec_fn`, which is unsafe beside threads. It is a script of its own
and deliberately imports nothing of registryd.
"""

import fcntl
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: str, lock_file: str, *command: str) -> None:
    os.umask(0o077)
    if sys.platform == "linux":
        import ctypes

        # The kernel stops the server when the daemon dies, by whatever death. The setting outlives exec.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        sys.exit("the daemon died while it was starting the server")

    # The server inherits this lock and never knows: it is held exactly as long as the server lives.
    # Taking it may wait a moment for the last fork of a crashed server to notice and leave.
    lock = os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.pwrite(lock, b"%10d" % os.getpid(), 0)
    os.set_inheritable(lock, True)
    os.execv(command[0], command)  # noqa: S606  no shell is the point


if __name__ == "__main__":
    main(*sys.argv[1:])
