"""One file for each mode, named as ``--mode`` names it: settings, a call of the library, the result."""
