"""What depends on the machine: which device holds the arrays, its memory, its threads. In reading order:

blas       how long BLAS's threads spin; to be set before NumPy is imported
units      byte counts as readable text
address_space  the address space that is left, checked before NumPy is imported
memory     how much memory is available, and refusing what does not fit
device     choosing a device by name; moving arrays to the host
dtypes     the dtypes of a KV cache by name
finite     logits that are not finite: what is to blame
threads    how many threads compute: the setting for loops and BLAS
workers    the threads that share a product with a packed weight
transfer   copying weights to a GPU
"""
