"""EleutherAI's evaluation harness: its tasks under keep rules, and a model class for it."""

INSTALL = "pip install -r requirements-harness.txt"
"""How to get lm-eval, which is an extra."""
