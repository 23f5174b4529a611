"""
Captions into words as COCO's caption evaluation does it, without Java: what Stanford's PTBTokenizer 3.4.1 gives with
-preserveLines -lowerCase, less pycocoevalcap's list of punctuation. Written from the tool's observed behaviour.

    "A man's well-known dog, isn't it?" -> a man 's well-known dog is n't it
"""

import gc
import re
from itertools import chain


# what ends with a period that belongs to it, in any case ...
_ABBREVIATIONS = """
    adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bancorp bhd bldg blvd brig bros calif capt cf cie cmdr co
    col colo comdr conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla fri ft ga gen gov govs hon inc
    ind insp intl invt jan jos jr jul jun kan kans ky lieut lt ltd maj mar md messrs mfg mich minn mlle mme mo mon mont mr mrs ms
    msgr mt mtg natl neb nev nov oct okla penn pfc ph plc ppte ppty pres prof profs pte ptes pty ptys pvt rd rep reps rev rt sen
    sens sep sept seq sfc sgt spc sq sr st ste supt sys tel tenn thu thurs treas tue tues univ va vs vt wed wis wisc wm wyo
"""
# ... only with a capital, as names ...
_CAPITALISED = "ark az del ill la mass miss ore pa tex wash"
# ... and only before a number
_NUMBERED = "art ca fig figs no nos op pp prop"


def _any(words: str) -> str:
    return "|".join(sorted(words.split(), key=len, reverse=True))


_TITLES = "|".join(f"{word.capitalize()}|{word.upper()}" for word in _CAPITALISED.split())
# a capital letter with a period before one of these ends a sentence; before anything else it is an initial
_STARTERS = """
    a an as at he if in it so we but her now one our she the yet you here last many more once some such that then they this what
    when there these their while after about however since other earlier
"""
_C = r"[^\W_¹²³¼½¾⅐-⅞⁰-₉]"  # letters and digits, but not what is raised, lowered or a fraction
_MARK = "\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0dff\u0e31-\u0e4e"  # marks that belong to the letter before
_W = rf"(?:{_C}|[{_MARK}\u00ad])"
_L = rf"(?:(?!\d){_C})"
_END = rf"(?!{_W})"
_WORD = rf"{_C}(?:(?:{_W}|_)*{_W})?"
_LINKED = rf"{_WORD}(?:[-/\u2010\u2011]{_WORD})*"
_NUMBER = r"\d++(?:[.,:]\d++)++"  # never given back: in "2.0.0b1" it is 2.0.0, not 2.0
_ATTRIBUTE = r"""\s+[a-z][a-z0-9_.:-]*(?:\s*=\s*(?:"[^"<>]*"|'[^'<>]*'))?"""
_ENTITY = r"&[aeiou](?:acute|grave|uml);"  # an accented letter; the other letters' entities are not known
_SUFFIX = rf"'(?:s|m|d|re|ve|ll){_END}"

# the first alternative that matches wins: exceptions come before words, and words before single characters
_TOKEN = re.compile(
    rf"""
    [<>]?[:;=]['*o-]?(?:[][()}}{{dp|\\@]|(?-i:O)){_END} | [-^=~<>']_[-^=~<>']         # emoticons
    | <[a-z][a-z0-9_.:-]*(?:{_ATTRIBUTE})*\s*/?> | </[a-z][a-z0-9_.:-]*> | <[!?][a-z-][^<>]*> | <[\w.-]+@[\w.-]+>  # tags
    | https?://[^\s"<>()]+\.[^\s"<>()]*[^\s"<>().,;:?!']                             # addresses: the web's, mail's
    | www\.[^\s"<>()]+\.[^\s"<>()]*[^\s"<>().,;:?!']
    | [\w.+-]*\w@\w[\w-]*(?:\.\w[\w-]*)*
    | @[a-z]\w* | \#[a-z]\w*
    | '' | &(?:amp|lt|gt|quot|nbsp|[mn]dash); | &\#\d+; | {_L}*(?:{_ENTITY}{_L}*)+
    | -[lr][rcs]b- | (?:anti|pro)-(?!{_C})
    | can(?=not{_END}(?!'\w)) | gon(?=na{_END}) | got(?=ta{_END}) | wan(?=na{_END}) | gim(?=me{_END}) | lem(?=me{_END})
    | '?t(?=(?:is|was){_END})(?<='t) | y'(?=(?!d{_END}){_L}) | j'(?={_L}) | [dl]'(?={_L}{_END})
    | {_L}+?(?<!n)(?=n't) | n't{_L}*
    | (?:ma'am|o'o|o'clock|e'er|hallowe'ens?){_END} | cap'n | c'(?:est|mon) | ev'ry | li'l | nat'l | s'mores
    | (?:ne|qu|wi)'{_L}+
    | (?!.'(?:re|ve|ll|tis){_END})(?:[dlno]|(?-i:[A-HJ-XZ]))'{_L}{{2,}}
    | {_SUFFIX} | '[1-9]0s{_END} | '\d\d(?=\s|$) | 'em | '(?:cause|till?){_END} | 'n(?:'|{_END})
    | [djl]'(?=\s|$) | ol'(?=\s|$|{_L})
    | \(\d{{3}}\)[ ]?\d{{3}}[- ]\d{{4}}{_END}                                        # telephones
    | \d+[- ]\d+/\d+(?!\w) | \d+\\?/\d+(?:/\d+)*(?:-{_WORD})*{_END} | \d+\u2044\d+{_END}        # fractions, dates
    | (?-i:[A-Z]{{1,2}})\$ | c\+\+ | [cf]\#
    | (?-i:[A-Z]+(?:&[A-Z]+)+)
    | (?:[a-z0-9]+-)*{_L}(?:\.{_L})+\.(?:-(?:{_L}(?:\.{_L})+\.|{_WORD}))*{_END} | ph\.?d\.          # U.S., a.m.
    | (?:{_any(_ABBREVIATIONS)}|(?-i:{_TITLES}))\.{_END}
    | (?:{_any(_NUMBERED)})\.(?=\s*\d)
    | {_L}{_W}*(?:\.{_L}{_W}*)+                                                      # node.js, end.Next
    | {_L}\.(?!{_L}|\s+(?=(?-i:[A-Z]))(?:{_any(_STARTERS)}){_END})                     # initials
    | \d+(?:\.\d+)*\.x(?:-{_WORD})*{_END}                                               # versions
    | (?:[-+]?[.,:]\d+(?:[.,:]\d+)*|{_NUMBER}(?:-{_WORD})*{_END}|{_NUMBER}|[-+]\d+(?:[.,:]\d+)*)
    | {_LINKED}(?:[!?]{_LINKED})* (?:\.(?=[,;:]))?
    | -{{5,}} | [!?]{{2,}} | \*+ | _+ | \#+ | @+ | << | >>
    | [¹²³¼½¾⅐-⅞⁰-₉]
    | [^\s\w'"`.,:;!?\-\x00-\x1f\x7f\x81-\x9f\u00ad\u061c\u2010-\u2015\u2018\u2019\u201b-\u201d\u2024-\u2027
        \u202a-\u202e\u203c\u203d\u2043\u2045-\u206f\u20a1-\u20a3\u20a5-\u20ab\u20ad-\u20ff«»‹›〝〞\u200b-\u200f\ufe00-\ufe0f\ufeff\U00010000-\U0010ffff]
    """,
    re.IGNORECASE | re.VERBOSE,
)
_SPELLED = str.maketrans("’", "'")
_NAMES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "", "''": "", "&nbsp;": "", "&mdash;": "", "&ndash;": ""}
_NAMES |= {"£": "#", "€": "$", "\x80": "$", "¤": "$", "₠": "$", "¢": "cents"}
_NAMES |= {"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
# words that may share a token with a neighbour, or are read by it: a fraction after a number, "no." before one, initials, tags
_SHARED = re.compile(rf"^\d+\\?/\d|^\W*(?:{_any(_NUMBERED)}|{_L})\.\W*$|\(\d{{3}}\)|<[a-z/!?]", re.IGNORECASE)


def _tokens(text: str) -> list[str]:
    found = []
    for token in _TOKEN.findall(text.replace("&apos;", "'")):
        token = token.lower()
        if not (token.isascii() and token.isalnum()):
            token = _NAMES.get(token, token).replace(" ", "\xa0").replace("\u00ad", "")
            if token in _BRACKETS:
                token = _BRACKETS[token]
            elif "(" in token or ")" in token:
                token = token.replace("(", "-lrb-").replace(")", "-rrb-")
        found += [token] * (token != "")
    return found


class _SharedToken(Exception):
    """A word that cannot be taken apart without the words around it."""


class _Words(dict):
    """The tokens of what stands between two spaces, found once."""

    def __missing__(self, word: str) -> list[str]:
        if _SHARED.search(word):
            raise _SharedToken
        self[word] = found = _tokens(word)
        return found


def tokenize(captions: list[str]) -> list[list[str]]:
    """The tokens of each caption, in lower case and without punctuation marks; none for an empty caption."""
    words = _Words()  # captions say few different words: most are looked up, and the expression above hardly costs
    lookup, result = words.__getitem__, []
    # lists of strings cannot form cycles, but making thousands has the collector walk everything there is, again and again
    collecting = gc.isenabled()
    gc.disable()
    try:
        for caption in captions:
            if not caption.isascii():
                caption = caption.translate(_SPELLED)
            try:
                tokens = list(chain.from_iterable(map(lookup, caption.split())))
            except _SharedToken:
                tokens = _tokens(caption.replace("\n", " "))
            result.append(tokens)
    finally:
        if collecting:
            gc.enable()
    return result
