"""What writers leave that is no reasoning: refusals, and the texts of control tokens."""

from __future__ import annotations

import re

from saywhy.checks.names import normalised

_BEGIN = r"(?:^|[.!?…:;¡]\s*(?:(?:however|unfortunately|leider|malheureusement|lamentablemente),? )?|^unfortunately,? )"
_SELF = (
    r"(?:ai|a\.i\.|artificial intelligence|(?:ai |large |neural )*(?:language|chat) model|chatbot"
    r"|(?:ai|virtual)(?: language)? (?:model|assistant|system))"
)
# Of a refusal only what its writer says of itself counts: "the customer is sorry that nobody can help" is a reasoning.
# Hyphens are spaces here, as in everything normalised.
_REFUSALS = (
    # English
    rf"\bas an? {_SELF},? (?:i\b|my\b|it is (?:not|im))",
    rf"{_BEGIN}i(?:'m| am) (?:just |only |merely )?an? {_SELF}\b",
    rf"{_BEGIN}(?:i'm|i am|my apologies|apologies|sorry|i apologi[sz]e)\b[^.!?]{{0,40}}?,? (?:but |however )?"
    r"i(?:'m| am)? (?:can't|cannot|can not|won't|will not|unable|not able|not allowed)\b(?! help (?:but|feel))",
    rf"{_BEGIN}(?:i'm|i am) (?:sorry|afraid),? (?:but )?(?:this|that|your|the) (?:request|question|prompt|content)\b",
    rf"{_BEGIN}i (?:can't|cannot|can not|won't|will not|am unable to|am not able to|must decline to) (?:\w+ )?"
    r"(?:help with|help you|assist|comply|fulfill?|provide|answer|continue|complete|generate|create|write|respond"
    r"|engage|classify|label|process|access|do that|do this|offer)\b",
    rf"{_BEGIN}i'm (?:unable|not able) to \w+",
    rf"{_BEGIN}i (?:can't|cannot|can not|am unable to) (?:determine|identify|decide on|choose|tell) "
    r"(?:the|a|any|which) (?:\w+ )?(?:label|answer|class|category)\b",
    rf"{_BEGIN}i (?:don't|do not) have (?:personal |real )?(?:opinions|emotions|beliefs|access|the ability|enough "
    r"(?:information|context))\b",
    r"\bagainst my (?:guidelines|programming|policy|policies)\b",
    # German
    r"\bals (?:eine? )?(?:ki|künstliche intelligenz|(?:großes )?sprachmodell"
    r"|ki (?:sprachmodell|modell|assistent|system)),? (?:kann|habe|bin|darf|ist es|besitze) (?:ich|mir)\b",
    rf"{_BEGIN}(?:(?:es )?tut mir (?:sehr )?leid|entschuldigung|leider),? (?:aber )?"
    r"(?:ich (?:kann|darf)|kann ich|darf ich)\b[^.!?]{0,60}\bnicht\b",
    rf"{_BEGIN}ich (?:kann|darf) [^.!?]{{0,60}}\bnicht "
    r"(?:helfen|weiterhelfen|beantworten|erfüllen|bearbeiten|fortfahren|erstellen)\b",
    # French
    r"\ben tant qu(?:e |')(?:ia|intelligence artificielle|modèle de lang(?:ue|age)|assistant (?:ia|virtuel))"
    r"[^.!?]{0,30}?\bje ",
    rf"{_BEGIN}(?:je suis (?:vraiment )?)?désolée?,? (?:mais )?je ne (?:peux|puis|suis)\b",
    rf"{_BEGIN}je ne (?:peux|puis) (?:malheureusement )?(?:pas )?(?:vous )?"
    r"(?:aider|répondre|fournir|accéder|traiter|satisfaire|continuer|générer)\b",
    rf"{_BEGIN}je ne suis pas en mesure d",
    # Spanish
    r"\bcomo (?:una? )?(?:ia|inteligencia artificial|modelo de lenguaje|asistente (?:de ia|virtual))\b[^.!?]{0,40}?"
    r"\bno (?:puedo|tengo)\b",
    rf"{_BEGIN}(?:lo siento|lo lamento),? (?:pero )?(?:no puedo|no me es|no estoy)\b",
    rf"{_BEGIN}no puedo (?:ayudar|responder|proporcionar|cumplir|completar|generar|continuar)",
)
REFUSAL = re.compile("|".join(f"(?:{one})" for one in _REFUSALS))

CONTROL_TOKEN = re.compile(
    r"<[|｜][^<>\n]{1,60}[|｜]>"  # <|im_start|>, <|endoftext|>, <｜begin▁of▁sentence｜>
    r"|</?s>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|CLS|SEP|PAD|MASK|UNK|BOS|EOS)\]"
    r"|<</?SYS>>"
    r"|</?(?:think|thinking|thought|scratchpad|answer|bos|eos|pad|unk|mask|cls|sep|eod|eot|unused\d+|extra_id_\d+)>"
    r"|</?[A-Za-z]+(?:_[A-Za-z0-9]+)+>"  # <start_of_turn>, <tool_call>, <reserved_special_token_1>
    r"|<0x[0-9A-Fa-f]{2}>"
)


def refuses(reasoning: str, text: str) -> bool:
    """Whether the writer says that it cannot, in words that are not those of the row's text."""
    quoted = _straight(text)
    return any(match.group().lstrip(" .!?…:;¡") not in quoted for match in REFUSAL.finditer(_straight(reasoning)))


def holds_control_tokens(reasoning: str, text: str) -> bool:
    """Whether the texts of control tokens stand in the reasoning that do not stand in the row's text."""
    return any(match.group() not in text for match in CONTROL_TOKEN.finditer(reasoning))


def _straight(text: str) -> str:
    return normalised(text).replace("’", "'")
