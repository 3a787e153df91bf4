"""What a mistyped name may have meant."""

from collections.abc import Iterable


def similar(word: str, known: Iterable[str], most: int = 1) -> list[str]:
    """The known names that are most like a mistyped one, at most `most`; upper and lower case count as the same.

    A name that begins with the word comes first: an abbreviation is like no other name.

    >>> similar("generat", ["generate", "evaluate"]), similar("--temp", ["--temperature", "--top-k"])
    (['generate'], ['--temperature'])
    >>> similar("xyz", ["generate", "evaluate"])
    []
    """
    import difflib  # here, because only a mistake needs it

    names = {name.lower(): name for name in known}
    begin = [name for name in names if len(word.lstrip("-/")) > 1 and name.startswith(word.lower())]
    near = difflib.get_close_matches(word.lower(), names, n=most, cutoff=0.65)
    return [names[name] for name in dict.fromkeys([*begin, *near])][:most]


def hint(word: str, known: Iterable[str]) -> str:
    """What to add to an error message: "; did you mean NAME?", or nothing if no known name is like the word."""
    return "".join(f"; did you mean {name}?" for name in similar(word, known))
