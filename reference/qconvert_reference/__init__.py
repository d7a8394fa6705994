"""Qwen3-Next in plain torch: the specification of the architecture that every precision is measured with."""
