"""The commands that end in a report, one module each, and the judging and printing that they share (`finish`).

Exit codes: 0 within the budget, 1 drift beyond it (or verification failed), 2 bad input, 3 inconclusive. Everything
that can be refused is refused before the long work. Heavy modules are imported inside the commands, so that looking one
up costs nothing.
"""
