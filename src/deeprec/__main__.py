"""The command ``deeprec``, also ``python -m deeprec``.

In a container it is often process 1, which the kernel spares every signal that it does not handle, and which inherits
processes whose parents have ended. So there, before anything that takes time is imported, a small parent steps in
front: it hands signals on to the command, which is then a process like any other, reaps what has ended, and ends as
the command does.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

HANDED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def main() -> None:
    """Entry point of the command."""
    if os.getpid() == 1:
        step_in_front()
    try:
        from deeprec.cli import main as command
    except ModuleNotFoundError as error:
        from deeprec.extras import missing

        cure = missing(error)
        if cure is None:
            raise
        print(f"error: {cure}", file=sys.stderr)
        raise SystemExit(2) from None
    command()


def step_in_front() -> None:
    """Return in a child of this process, which stays to hand signals on, and ends with the child's exit status.

    A child that a signal ended is told as a shell does: 128 and the signal's number.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDED_ON)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDED_ON)
        return

    def hand_on(number: int, _: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, number)

    for number in HANDED_ON:
        signal.signal(number, hand_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDED_ON)
    while True:
        ended, status = os.wait()
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
