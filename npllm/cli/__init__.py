"""The command line: `main` reads the arguments and runs a command, one module for each.

options    the flags that commands share, and what they name
report     all output: results to stdout, everything else to stderr
"""
