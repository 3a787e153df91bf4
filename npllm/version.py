"""The version, in a file of its own: setup.cfg and `npllm --version` read it without importing the rest."""

__version__ = "0.1.0"
