"""python -m npllm: the same as the command npllm."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
