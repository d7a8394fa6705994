"""Judge and render: a results.json becomes a verdict, a report folder and an exit code.

Everything here but `cli` reads `qconvert_evals.results` alone and knows no torch. Nothing is imported at this level, so
that the command line can look up one command without loading jinja2 or matplotlib.
"""
