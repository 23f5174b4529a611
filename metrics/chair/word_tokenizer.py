"""
Captions into words as nltk.word_tokenize does it to text in lower case, without nltk and its data.

    "A man's dog, two wine glasses. It isn't 3:30!" -> a man 's dog , two wine glasses . it is n't 3:30 !

Written from observed behaviour. Unusual: nltk first looks for sentences, because only the period that ends one is a token of its
own. Here it is one before a space, unless a number or an abbreviation is before it and more text after it.
"""

import re


_CLITIC = r"(?:s|m|d|ll|re|ve)?(?![\w'.]|:\d)"  # after the mark: man|'s, dogs|'
_NOT = r"n't(?![\w'.]|:\d)"
_OPENING = r"(?<!\w)'(?=(?:s|t|m|d|n|ll|re|ve)\b)"  # stays with its word: 't
_ALONE = r"][(){}<>;@\#$%&?!*\"«»“”‘’„\u2012-\u2015"
_PERIOD = re.compile(r"(?<![.\s])\.(?=[])}>\"'»”’]*(?:(\s*$)|\s))")
_ABBREVIATED = re.compile(
    r"""
    (?:^|[\s"(\[“‘]|(?<!\w)') (?: [a-z](?:\.[a-z])* | [\d.,:-]*\d
    | dr|mr|mrs|ms|st|jr|sr|prof|vs|ft|ave|ltd|inc|co|corp|lt|sgt|col|gen|sen|rep|gov|maj )$
    """,
    re.VERBOSE,
)
_TOKEN = re.compile(
    rf"""
    \.{{2,}} | -- | ``? | '' | [{_ALONE}] | [:,](?!\d)
  | can(?=not\b) | gon(?=na\b) | got(?=ta\b) | wan(?=na\b) | gim(?=me\b) | lem(?=me\b)
  | {_NOT} | (?<=\w)'{_CLITIC} | (?<!\w)'(?!(?:s|t|m|d|n|ll|re|ve)\b)
  | (?: (?!{_NOT}|''|--|\.\.)[^{_ALONE}`:,\s'] | [:,](?=\d) | (?<=\w)'(?!{_CLITIC}|') | {_OPENING} )+
  | '
    """,
    re.VERBOSE,
)


def tokenize(caption: str) -> list[str]:
    """The words and marks of a caption, in lower case; none for an empty one."""
    text, pieces, start = caption.lower(), [], 0
    for period in _PERIOD.finditer(text):
        if period[1] is None and _ABBREVIATED.search(text, max(0, period.start() - 30), period.start()):
            continue
        pieces += [text[start : period.start()], " . "]
        start = period.end()
    return _TOKEN.findall("".join([*pieces, text[start:]]))
