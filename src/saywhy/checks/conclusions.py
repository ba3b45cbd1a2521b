"""Which label a reasoning concludes with, where its words say so."""

from __future__ import annotations

import re
from collections.abc import Sequence

from saywhy.checks.languages import FREQUENT
from saywhy.checks.names import Named, is_named, named, normalised, places, sentences, words

# Names that stand in many sentences without being meant: they count only where the words before them say so.
_EVERYDAY = (
    "yes none other others normal high low medium middle good bad true false big small new old open closed safe same "
    "different some any all right wrong left up down first last common possible never always maybe unknown mixed "
    "average fair poor great many few one two three four five world ja nein oui non sí"
)
EVERYDAY = frozenset(_EVERYDAY.split()) | FREQUENT["en"]

# Words that a conclusion is about, beside those of the task's instruction.
_SUBJECTS = (
    "label|answer|class|category|verdict|choice|option|classification|conclusion|prediction|rating|score|antwort|"
)
_SUBJECTS += "kategorie|klasse|réponse|étiquette|catégorie|respuesta|etiqueta|categoría"
_IS = (
    r"(?:(?: (?:should|must|has to|will|can only))?(?: be| is| are)| ist| est| es| =| →| ?:)"
    r"(?: therefore| thus| then| hence)?,?"
)
_FILLER = r"(?: an?| option| choice| of| one of| simply| clearly| eine?| une?| una)?[ \"'“‘«*(]*"
_HENCE = (
    r"(?:\b(?:therefore|thus|hence|consequently|accordingly|in conclusion|daher|deshalb|folglich|somit|donc|ainsi|"
    r"por (?:lo )?tanto|así que|quindi|portanto|dus)|(?:^|[,;:] ?)so|→|=>)[,:]?"
)
# Before a name: whatever it means otherwise, here it is the conclusion.
_PLAIN = (
    rf"{_HENCE}{_FILLER}$",
    rf"\b(?:makes?|making) (?:it|this|that|the \w+){_FILLER}$",
    rf"\b(?:classif(?:y|ied)|labell?ed|categori[sz]ed|tagged|rated|marked|counts?) (?:it )?(?:as|with)?{_FILLER}$",
    r"\bconcludes? (?:that )?(?:it is |this is |with |for )?[\"'“‘«*]*$",
)
# These too, unless the name is an everyday word: "so it is normal to wait".
_WITH_PRONOUN = rf"{_HENCE} (?:it|this|that|es|das|dies|c'|ce|esto)(?:'s|{_IS}){_FILLER}$"
# In the last sentence, for other names: a verb that says what something is or shows, and at most three words between.
_SHOWS = re.compile(
    r"(?:\b(?:is|are|be|signals?|suggests?|indicates?|shows?|expresses|express|conveys?|means|reflects?|reveals?|implies|"
    r"points? to(?:wards?)?|amounts? to|belongs? to|speaks? of|fits?|matches|as|but|pure|ist|zeigt|bedeutet|deutet auf|"
    r"sondern|est|exprime|indique|montre|mais|es|expresa|indica|muestra|sino) (?:[^\W\d]+ ){0,3}?|[是为為])[\"'“‘«*]*$"
)
_BETWEEN = re.compile(r"\b(?:the|his|her|their|its|my|your|in|on|at|for|with|from|by|about|and|or)\b")
_DOUBT = re.compile(
    r"\b(?:not|no|never|without|rather than|instead of|neither|nor|either|than|hardly|barely|unlike|if|whether|though|"
    r"although|despite|could|might|would|may|think|thought|seem(?:s|ed)?|kein\w*|nicht|statt|wenn|pas|ni|plutôt|si|sin|wäre|"
    r"serait|sería)\b|n't\b|n’t\b|[不没沒]"
)
_CLAUSE_END = re.compile(r"[,;—–]| but | sondern | mais | sino ")
# Behind a name that is a thing of its own, and not said of the next word: "sad" in "a sad ending" is not.
_TAIL = re.compile(
    r"[\"'”’»*]*(?:\s*$|\s*[.,;:!?。！)—–→]| (?:and|because|since|as|rather|not|but|instead|here|label|class|category|"
    r"about|of|at|in|for|over|with|towards?|from|by|to|that|und|weil|et|car|y|porque)\b)"
)
_END = re.compile(
    r"[\"'”’»*]*(?:\s*$|\s*[.,;:!?。！)—–→]| (?:and|because|since|rather|instead|label|class|category)\b)"
)
# As far back from a name as its conclusion is looked for, in characters.
REACH = 80


def concludes_with_another(
    labels: Sequence[str], own: str, reasoning: str, text: str, instruction: str, nouns: bool
) -> bool:
    """Whether the reasoning concludes with a label other than `own`.

    The last place that says so plainly ("the answer is X", "therefore X", "which makes it X") decides. Where there is
    none, the last sentence does, if it says of something that it is or shows another label and does not stand by `own`.
    That holds for labels that are no everyday words and are not named in the row's text, and only with `nouns`: not
    where the labels are things, such as the choices of a question, which are named in passing.
    """
    told, own_name = [normalised(sentence) for sentence in sentences(reasoning)], normalised(own)
    if (plain := _said_plainly(labels, told, instruction)) is not None:
        return normalised(plain) != own_name
    if not nouns or not told or _is_meant(own_name, told[-1]):
        return False
    return bool(_shown(labels, told[-1], text))


def conclusion(labels: Sequence[str], reasoning: str, text: str, instruction: str, nouns: bool) -> str | None:
    """The label that the reasoning concludes with, None where its words do not say so.

    It is read as `concludes_with_another` reads it; of a last sentence that shows several labels none is read.
    """
    told = [normalised(sentence) for sentence in sentences(reasoning)]
    if (plain := _said_plainly(labels, told, instruction)) is not None:
        return plain
    shown = set(_shown(labels, told[-1], text)) if nouns and told else set()
    return shown.pop() if len(shown) == 1 else None


def _said_plainly(labels: Sequence[str], told: Sequence[str], instruction: str) -> str | None:
    """Find the label of the last place in normalised sentences that says plainly what they conclude with."""
    asked = {re.escape(word) for word in {*words(instruction)} - FREQUENT["en"]}
    subject = re.compile(rf"\b(?:{'|'.join([_SUBJECTS, *sorted(asked)])}){_IS}{_FILLER}$")
    found = [
        place.label
        for sentence in told
        if not sentence.endswith("?")
        for place in named(labels, sentence)
        if _is_concluded(sentence, place, subject)
    ]
    return found[-1] if found else None


def _shown(labels: Sequence[str], sentence: str, text: str) -> list[str]:
    """List the labels that a normalised sentence says something is or shows; none that the row's text brought."""
    asked_of = normalised(text)
    return [
        place.label
        for place in named(labels, sentence)
        if not _is_everyday(place.label)
        and not is_named(normalised(place.label), asked_of)
        and _is_shown(sentence, place)
    ]


def _is_concluded(sentence: str, place: Named, subject: re.Pattern[str]) -> bool:
    before = sentence[max(0, place.start - REACH) : place.start]
    if not _END.match(sentence, place.end) or _is_doubted(before):
        return False
    if subject.search(before):
        return True
    # Letters and digits are counted, compared and listed: "so A, B and C meet".
    if place.end - place.start == 1:
        return False
    if any(re.search(pattern, before) for pattern in _PLAIN):
        return True
    return not _is_everyday(place.label) and re.search(_WITH_PRONOUN, before) is not None


def _is_shown(sentence: str, place: Named) -> bool:
    before = sentence[max(0, place.start - REACH) : place.start]
    verb = _SHOWS.search(before)
    if verb is None or not _TAIL.match(sentence, place.end) or sentence.endswith("?"):
        return False
    return not _is_doubted(before) and not _BETWEEN.search(verb.group())


def _is_meant(name: str, sentence: str) -> bool:
    """Whether `name` stands in the sentence and is not denied there."""
    return any(not _is_doubted(sentence[max(0, start - REACH) : start]) for start, _ in places(name, sentence))


def _is_doubted(before: str) -> bool:
    """Whether the clause that ends here denies what follows, or only supposes it."""
    clause = _CLAUSE_END.split(before)[-1]
    return _DOUBT.search(clause) is not None


def _is_everyday(label: str) -> bool:
    """Whether a name is words, digits or letters that stand in many sentences."""
    return all((len(word) < 3 and word.isascii()) or word in EVERYDAY for word in words(label))
