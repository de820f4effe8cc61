"""Training: the loop, its steps, the optimizer, averages of the weights, and non-finite steps."""
