"""Runs a command under a seccomp filter that answers EPERM to io_uring_setup, as containers do.

    python without_io_uring.py COMMAND [ARGUMENT ...]

The filter is a classic BPF program, installed with prctl(2); it holds for the command and its children.
"""

import ctypes
import os
import platform
import struct
import sys

IO_URING_SETUP = 425  # on every architecture
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "riscv64": 0xC00000F3}

PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
RET_ALLOW = 0x7FFF0000
RET_ERRNO = 0x00050000
EPERM = 1

# Opcodes of classic BPF.
LOAD_WORD = 0x20
JUMP_IF_EQUAL = 0x15
RETURN = 0x06

# Offsets in struct seccomp_data.
NUMBER = 0
ARCHITECTURE = 4


class Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = [("count", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def install() -> None:
    code = b"".join(
        [
            instruction(LOAD_WORD, ARCHITECTURE),
            instruction(JUMP_IF_EQUAL, AUDIT_ARCH[platform.machine()], if_true=0, if_false=3),
            instruction(LOAD_WORD, NUMBER),
            instruction(JUMP_IF_EQUAL, IO_URING_SETUP, if_true=0, if_false=1),
            instruction(RETURN, RET_ERRNO | EPERM),
            instruction(RETURN, RET_ALLOW),
        ]
    )
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    program = Program(len(code) // 8, code)
    calls = [
        (PR_SET_NO_NEW_PRIVS, 1, 0),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program)),
    ]
    for option, first, second in calls:
        if libc.prctl(option, first, second, 0, 0) != 0:
            number = ctypes.get_errno()
            sys.exit(f"prctl({option}): {os.strerror(number)}")


if __name__ == "__main__":
    install()
    os.execvp(sys.argv[1], sys.argv[1:])
