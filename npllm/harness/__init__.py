"""lm-evaluation-harness with npllm's models (extra `eval`).

adapter   npllm's models as the harness's `LM`
options   the harness's generation options as npllm's
__main__  the harness's own command, with npllm as one more model: python -m npllm.harness

Source: Gao et al. 2021, "A framework for few-shot language model evaluation".
"""

from .adapter import NpllmLM

__all__ = ["NpllmLM"]
