"""Reading and writing of files; no other package opens files. It imports no other package of the project."""

if __name__ != "score_sde.storage":  # a second copy would have its own tables
    raise ImportError("import score_sde.storage: storage is a part of the package score_sde")
