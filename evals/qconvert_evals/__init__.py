"""Measure: run the lanes of a model over the same tokens, compare them number by number, write results.json.

`results` is the record, `data` brings the documents, `compare` runs the lanes, `metrics/` holds one metric per file
and `statistics` the intervals. Nothing is imported here, so that reading results costs no torch.
"""
