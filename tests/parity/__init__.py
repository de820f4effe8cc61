"""Comparison with the reference implementations, from the same inputs, models and recorded noise."""
