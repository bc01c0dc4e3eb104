"""Head-to-head benchmarks (``python -m fastnn bench``) and self-verification (``python -m fastnn verify``).

cases.py says what is measured, peers/ against whom, runner.py how, report.py what is shown; verify.py checks the
installed build on this machine. Nothing here is imported by the rest of fastnn.
"""
