"""Files: the only package that opens them, to read and to write. It imports nothing of ours."""
