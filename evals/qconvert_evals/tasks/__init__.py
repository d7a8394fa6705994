"""Benchmarks: lm-eval's tasks on every lane with the same samples, joined document by document, compared in pairs.

    settings       what to run                      tokenizing, chat   text to tokens, messages to text
    loading        finds tasks and their data       scoring, decoding  tokens to log-likelihoods, tokens to tokens
    language_model a lane as lm-eval's `LM`         reasoning          thought apart from answer
    lane_run       one lane through all tasks       pairing            two lanes, the same documents
    measure        scores, differences, flips       stage              all of it, as one stage of a comparison
    sharing        requests that begin alike

lm-eval is an optional extra: only `loading`, `language_model` and `lane_run` import it, and only `stage` imports those.
"""
