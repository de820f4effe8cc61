"""Readers of published weights: a file of somebody else becomes a config and weights of ours."""
