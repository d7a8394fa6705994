"""What the operating system refuses, said in one message like any other of the user's matters.

Permissions, full disks, read-only mounts, quotas, file systems that lack an operation, no memory, no threads: none of
them is a bug of ours, and all of them reach Python as OSError, MemoryError or a RuntimeError of the threading module.
`refusal` turns one into a UserError with the path, what the system said and the way out; the command line calls it for
whatever a command lets through, so no other place needs to know the numbers.

Some refusals need not stop the work: a folder that cannot be synced, a lock that the file system does not know.
`tolerated` says which, and the caller goes on with a warning.
"""

import errno
import os
import stat
from pathlib import Path

from qconvert.errors import UserError

# What the system says when it does not know an operation at all, in contrast to "not for you" or "not now".
UNKNOWN_OPERATION = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY})
# SMB, VirtualBox, DrvFs, FUSE: a folder can be opened and not synced, or not even opened for that.
UNSYNCED_FOLDER = UNKNOWN_OPERATION | {errno.EACCES, errno.EPERM, errno.EBADF, errno.EISDIR}
# NFS without a lock daemon answers ENOLCK.
UNLOCKED_FOLDER = UNKNOWN_OPERATION | {errno.ENOLCK, errno.EBADF}

FREE_SPACE = "free space, or give a destination on another disk"
ELSEWHERE = "give a destination on a local disk, and copy the finished folder"
WAYS_OUT = {
    errno.EACCES: "change its permissions, or run as a user who may",
    errno.EPERM: "change its permissions, or run as a user who may",
    errno.EROFS: "give a place on a file system that is not mounted read-only",
    errno.ENOSPC: FREE_SPACE,
    errno.EDQUOT: "free space in your quota, or give a destination elsewhere",
    errno.EFBIG: "no file may be this large here (ulimit -f, or the file system): --max-shard-size 1GB",
    errno.EIO: "the disk or its connection failed: look at the system's log, and run the command again",
    errno.ESTALE: "the network file system lost the file: mount it again, and run the command again",
    errno.EBUSY: "something holds this place (a mount point, another program): give another one",
    errno.EXDEV: "give a destination whose folder is on one file system",
    errno.EMFILE: "allow more open files (ulimit -n), or --workers 1",
    errno.ENFILE: "allow more open files on this machine, or --workers 1",
    errno.ENOMEM: "free memory, or --workers 1",
    errno.EAGAIN: "allow more processes and threads (ulimit -u), or --workers 1",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "the link leads to itself: mend it",
    errno.ENOENT: "see that it is there, and that no link on the way leads to nothing",
    errno.ENOTDIR: "a part of the path is a file: give another path",
    errno.EISDIR: "this is a folder where a file is needed",
    errno.EEXIST: "remove it, or give another place",
    errno.ENOTEMPTY: "empty it, or give another place",
    errno.ENOSYS: ELSEWHERE,
    errno.ENOTSUP: ELSEWHERE,
    errno.EOPNOTSUPP: ELSEWHERE,
    errno.EINVAL: ELSEWHERE,
}
NO_THREAD = "can't start new thread"  # how CPython's threading says EAGAIN


def refusal(error: BaseException) -> UserError | None:
    """The message of an exception in which the system speaks; None for any other exception, which is a bug."""
    if isinstance(error, OSError) and error.errno is not None:
        return _of_the_system(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error)):
        fix = "free memory, or ask for less at once (--workers 1, fewer --tokens)"
        return UserError("there is not enough memory", found=str(error) or type(error).__name__, fix=fix)
    if isinstance(error, RuntimeError) and NO_THREAD in str(error):
        return UserError("the system starts no more threads", found=str(error), fix=WAYS_OUT[errno.EAGAIN])
    return None


def is_full(error: OSError) -> bool:
    """Whether the system says that there is no room: of the disk, its inodes or a quota."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def tolerated(error: OSError, codes: frozenset[int]) -> bool:
    """Whether this refusal is one of those without which the work can go on."""
    return error.errno in codes


def _of_the_system(error: OSError) -> UserError:
    paths = [str(os.fsdecode(one)) for one in (error.filename, error.filename2) if isinstance(one, (str, bytes, Path))]
    number = error.errno or 0
    return UserError(
        f"the system refuses: {(error.strerror or str(error)).lower()}",
        where=" -> ".join(paths) or None,
        expected=_expected(number),
        found=", ".join([errno.errorcode.get(number, str(number)), *_state(paths[0] if paths else "", number)]),
        fix=WAYS_OUT.get(number, "see what holds this place back, and run the command again"),
    )


def _expected(number: int) -> str | None:
    if number in (errno.EACCES, errno.EPERM):
        return f"a place that user {os.geteuid()} may read, or write where it is the destination"
    return None


def _state(path: str, number: int) -> list[str]:
    """What of the file explains the refusal: mode and owner, or what is left of the file system."""
    if number in (errno.EACCES, errno.EPERM):
        return _mode(path)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return _room(path)
    return []


def _mode(path: str) -> list[str]:
    """Mode and owner of the file, or of the first folder above that can be looked at."""
    for one in (Path(path), *Path(path).parents) if path else ():
        try:
            state = one.stat()
        except OSError:
            continue
        return [f"{one} is {stat.filemode(state.st_mode)} of user {state.st_uid}"]
    return []


def _room(path: str) -> list[str]:
    """Free bytes and free inodes of the file system that the path lies in."""
    for one in (Path(path), *Path(path).parents) if path else ():
        try:
            state = os.statvfs(one)
        except OSError:
            continue
        found = [f"{state.f_bavail * state.f_frsize:,} bytes free"]
        # A file system without a table of inodes says that it has none at all.
        return found + ([f"{state.f_favail:,} inodes free"] if state.f_files else [])
    return []
