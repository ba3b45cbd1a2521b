"""Which script and which language a text is written in, where it says so clearly; no model is asked."""

from __future__ import annotations

import unicodedata
from collections import Counter

from saywhy.checks.names import words

# Chinese and Japanese mix these, so they count as one script.
EAST_ASIAN = ("CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO")

# Frequent words of languages in Latin letters. A word that several share votes for each of them.
_FREQUENT = {
    "en": "the of and to in is that it was for with as his on be at by this had not are but from or have an they which "
    "you were her she there would their we him been has when who will more no if out so what up its about than "
    "does he i my me because how your",
    "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an er hat aus sie "
    "nach wird bei einer um am sind noch wie einem über einen so zum war haben nur oder aber ich ihr sein durch "
    "wenn weil dass kann welche welcher",
    "fr": "de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se ce il sont avec son ou "
    "mais comme on lui nous sa elle cette être ses aux je quelle quel parce ces leur très",
    "es": "de la que el en y a los se del las un por con no una su para es al lo como más o pero sus le ha me si sin "
    "sobre este ya entre cuando todo esta ser son muy era porque qué cuál está",
    "it": "di e il la che in a per un è del non una si le con i da al della sono come anche più dei nel alla lo gli ma "
    "ha delle suo questo sua se nella o era essere quale perché molto",
    "pt": "de a o que e do da em um para é com não uma os no se na por mais as dos como mas foi ao ele das tem à seu "
    "sua ou ser quando muito há nos já está eu também só pelo pela isso qual porque são",
    "nl": "de en van ik te dat die in een hij het niet zijn is was op aan met als voor had er maar om hem dan zou of "
    "wat mijn men dit zo door over ze zich bij ook tot je uit der daar haar naar heb heeft welke omdat deze wordt",
    "da": "og i at det er en til på som af for med der de ikke den har et han om var fra sig men hvad jeg kan vi blev "
    "også skal eller være meget efter hvilken fordi når hun sin hvor",
    "sv": "och i att det som en på är av för med den till inte har de ett han om var jag men sig från vi så kan när "
    "också hon eller vad mycket efter vilken eftersom vid mot nu blir finns",
}
FREQUENT = {name: frozenset(frequent.split()) for name, frequent in _FREQUENT.items()}
FEWEST_VOTES, SHARE_OF_VOTES, LEAD = 3, 0.15, 2.0


def script(text: str) -> str:
    """The script of more than half of a text's letters, "" where there is none or it is unclear."""
    counts: Counter[str] = Counter()
    for character, count in Counter(filter(str.isalpha, text)).items():
        counts["LATIN" if character.isascii() else _script_of(character)] += count
    if not counts:
        return ""
    name, count = counts.most_common(1)[0]
    return name if 2 * count > counts.total() else ""


def _script_of(letter: str) -> str:
    name = unicodedata.name(unicodedata.normalize("NFKC", letter)[0], "").split("-")[0].split(" ")[0]
    return "CJK" if name in EAST_ASIAN else name


def language(text: str) -> str:
    """The language in Latin letters whose frequent words a text holds, "" where no language leads clearly.

    The leader has three votes or more, 15% of the words, and twice as many as the next; one of en, de, fr, es, it, pt,
    nl, da and sv. Other languages are not known and are now and then taken for a neighbour.
    """
    counts = Counter(words(text))
    votes = {name: sum(counts[word] for word in frequent & counts.keys()) for name, frequent in FREQUENT.items()}
    (best, most), (_, next_most) = sorted(votes.items(), key=lambda vote: -vote[1])[:2]
    clear = most >= max(FEWEST_VOTES, SHARE_OF_VOTES * counts.total(), LEAD * next_most)
    return best if clear else ""


def differs(text: str, others: tuple[str, ...]) -> bool:
    """Whether `text` is clearly in another script, or in another language of Latin letters, than each of `others`.

    Scripts are compared with those of `others` that have a clear one; languages only where all of them have.
    """
    own = script(text)
    scripts = {script(other) for other in others} - {""}
    if own and scripts and own not in scripts:
        return True
    if own != "LATIN" or scripts != {"LATIN"}:
        return False
    spoken = language(text)
    return bool(spoken) and all(language(other) not in ("", spoken) for other in others)
