"""The parts put together: the only code beside run.py that reads a config."""
