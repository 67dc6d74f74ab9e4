"""Text from strangers, made fit to print."""


def printable(text: str) -> str:
    """`text` without control characters, which a terminal would obey, and without line ends."""
    return "".join(c for c in text if c.isprintable())
