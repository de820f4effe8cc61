"""One file for each value of ``--mode``: settings, a call of the library, the result."""
