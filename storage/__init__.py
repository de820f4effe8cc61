"""Files: the only package that opens them, to read and to write. It imports nothing of ours."""

if __name__ != "score_sde.storage":  # a second copy would have tables of its own
    raise ImportError("import score_sde.storage: storage is a part of the package score_sde")
