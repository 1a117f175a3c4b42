"""Errors a person can cause, and the one way a command ends."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

ERROR_FILE_VARIABLE = "FOUNDRY_ERROR_FILE"
"""Environment variable naming the file in which training leaves the one line of an error a person can mend."""


class UserError(Exception):
    """Something the caller can put right: names the thing, what is wrong with it and what to do.

    Command lines print it as one plain line and exit with status 2; no traceback unless ``--debug``.
    """


_DISK_PROBLEMS = {
    errno.ENOSPC: "the disk is full; free some space or set FOUNDRY_HOME to another disk",
    errno.EDQUOT: "the disk quota is used up; free some space or set FOUNDRY_HOME to another disk",
    errno.EROFS: "the file system is read-only; set FOUNDRY_HOME (and --output) to a writable folder",
    errno.EACCES: "permission denied; check the owner and mode, or choose another folder",
}


def explain_os_error(error: OSError) -> str | None:
    """One line for an operating-system error that a person can mend, or None for any other."""
    reason = _DISK_PROBLEMS.get(error.errno or 0)
    if reason is None:
        return None
    name = error.filename2 or error.filename
    # opened by number, an error carries that number
    return f"{os.fsdecode(name)}: {reason}" if isinstance(name, (str, bytes, os.PathLike)) and name else reason


def run_command(main: Callable[[list[str]], int | None], argv: list[str] | None = None) -> int:
    """Run ``main(argv)`` as a command and return its exit status.

    0 on success, 2 with one plain line on stderr for a :class:`UserError` (or a disk that is full or read-only),
    130 after Ctrl-C. Any other exception is an error of the program: it propagates with its traceback (status 1).
    ``--debug`` in ``argv`` is taken out; with it, errors of people propagate too.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [argument for argument in argv if argument != "--debug"]
    try:
        return main(argv) or 0
    except (UserError, OSError) as error:
        line = str(error) if isinstance(error, UserError) else explain_os_error(error)
        if debug or line is None:
            raise
        print(f"error: {' '.join(line.split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
