"""What is built on the loop of `generate.steps`."""
