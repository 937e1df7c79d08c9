"""Kernels timed against other people's code and against this machine's limits.

Data flows one way: ``workloads`` (what is measured) -> ``ops`` and ``models`` (how to call it, and whether
it is right) -> ``run`` (one row a workload) -> ``results`` (where rows are kept) -> ``table``.
"""
