"""The command of lm-evaluation-harness, with npllm as one of its models: python -m npllm.harness --model npllm ..."""

import importlib
import sys

from .adapter import INSTALLED

if __name__ == "__main__":
    if not INSTALLED:
        sys.exit("npllm.harness needs lm-evaluation-harness: pip install 'npllm-reference[eval]'")
    importlib.import_module("lm_eval.__main__").cli_evaluate()
