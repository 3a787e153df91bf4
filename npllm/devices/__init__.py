"""What depends on the machine: which device holds the arrays, and how much memory there is."""
