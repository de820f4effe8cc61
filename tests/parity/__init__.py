"""The same numbers as the reference implementations, from the same inputs, models and recorded noise."""
