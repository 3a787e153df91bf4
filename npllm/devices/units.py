"""Byte counts as readable text. It imports nothing, so that the command line starts quickly."""


def format_bytes(count: int) -> str:
    """A number of bytes as text: 15.3 GB, 500 MB. 1 GB is 10**9 bytes."""
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:.{0 if count >= 100 * size else 1}f} {unit}"
    return f"{count / 10**3:.1f} kB"
