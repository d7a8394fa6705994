"""What is measured, one metric per file.

Every metric is a state with `update(state, ...)` for one piece of the run and `result(state)` for its measurements. A
state keeps a few numbers per token or per document, never logits or hidden states, so a run of any length fits, and
updating piece by piece gives the same result as updating once. Intervals treat documents as the independent draws
(`qconvert_evals.statistics`).
"""
