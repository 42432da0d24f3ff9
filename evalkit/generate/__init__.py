"""Answers to held-out prompts, for side-by-side comparison: one JSON line a prompt."""
