"""What users are owed when something breaks: one scenario for each promise of docs/reliability.md.

The same scenarios run against other servers, for comparison:

    python -m tests.faults --server ringhorn --io uring --full reload_hup worker_sigkill

pytest runs the short form of all of them against Ringhorn (test_faults.py).
"""
