"""Names of files as text for a terminal."""


def printable(text: str) -> str:
    """A text as one line: newlines, other control characters and escape sequences are escaped as Python writes them.

    Names of files may hold any of them, and bytes that are no text.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
