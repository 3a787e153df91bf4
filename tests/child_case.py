"""What a child process is asked to do in test_child.py."""

import os
import sys
import time


def answer(request):
    """Do what `request` names."""
    what, *rest = request
    if what == "echo":
        return rest[0]
    if what == "pid":
        return os.getpid()
    if what == "raise":
        raise RuntimeError("no\nway")
    if what == "exit":
        os._exit(rest[0])
    if what == "abort":
        os.abort()
    if what == "print":
        print("noise", flush=True)
        print("noise", file=sys.stderr, flush=True)
        os.write(1, b"noise")
        return "said"
    if what == "power":
        return (9 ** (9**9)) % 10  # in C, which holds Python's lock
    if what == "sleep":
        time.sleep(rest[0])
    if what == "memory":
        return len(bytearray(rest[0]))
    if what == "text":
        return "a" * rest[0]
    if what == "modules":
        return sorted(sys.modules)
    if what == "path":
        return sys.path
    return None
