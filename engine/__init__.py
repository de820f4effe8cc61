"""The parts put together: the only code beside run.py that reads a config."""

if __name__ != "score_sde.engine":  # a second copy would have tables of its own
    raise ImportError("import score_sde.engine: engine is a part of the package score_sde")
