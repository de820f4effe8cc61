"""Training: the loop, one step, the optimiser, averages of the weights, and what happens to bad steps."""
