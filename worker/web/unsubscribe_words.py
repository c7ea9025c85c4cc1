"""The words of the public pages, in English and in Hindi."""

import re
from dataclasses import dataclass
from types import MappingProxyType

ENGLISH, HINDI = "en", "hi"


@dataclass(frozen=True, slots=True)
class PageWords:
    """One page: what it says, and its button. ``{sender}`` and ``{messages}`` are filled in."""

    title: str
    text: str
    button: str = ""
    action: str = ""  # what the button sends


@dataclass(frozen=True, slots=True)
class Words:
    """All pages in one language."""

    ask: PageWords
    done: PageWords
    undone: PageWords
    not_found: PageWords
    try_again: PageWords
    bad_request: PageWords
    sender: str  # where the name is not known
    messages: MappingProxyType[str, str]  # by channel


UNSUBSCRIBE, UNDO = "unsubscribe", "undo"

WORDS = MappingProxyType(
    {
        ENGLISH: Words(
            ask=PageWords(
                "Unsubscribe?",
                "Press the button, and {sender} sends no more campaign {messages} to you.",
                "Unsubscribe",
                UNSUBSCRIBE,
            ),
            done=PageWords(
                "You are unsubscribed",
                "{sender} sends no more campaign {messages} to you. One that is already on its way may still arrive.",
                "Undo",
                UNDO,
            ),
            undone=PageWords(
                "You are subscribed again",
                "{sender} may send campaign {messages} to you again.",
                "Unsubscribe",
                UNSUBSCRIBE,
            ),
            not_found=PageWords(
                "This link is not valid", "A part of it may be missing: open it again from the message itself."
            ),
            try_again=PageWords("Please try again in a minute", "This page cannot save anything right now."),
            bad_request=PageWords(
                "This did not work", "Open the link again from the message itself, and press the button."
            ),
            sender="The sender",
            messages=MappingProxyType({"email": "e-mails", "whatsapp": "WhatsApp messages"}),
        ),
        HINDI: Words(
            ask=PageWords(
                "सदस्यता समाप्त करें?",
                "बटन दबाने के बाद {sender} की ओर से आपको प्रचार के {messages} नहीं भेजे जाएँगे।",
                "सदस्यता समाप्त करें",
                UNSUBSCRIBE,
            ),
            done=PageWords(
                "आपकी सदस्यता समाप्त हो गई है",
                "{sender} की ओर से आपको प्रचार के {messages} अब नहीं भेजे जाएँगे। जो पहले ही भेजा जा चुका है, वह पहुँच सकता है।",
                "वापस लें",
                UNDO,
            ),
            undone=PageWords(
                "आपकी सदस्यता फिर से चालू है",
                "{sender} की ओर से आपको प्रचार के {messages} फिर से भेजे जा सकते हैं।",
                "सदस्यता समाप्त करें",
                UNSUBSCRIBE,
            ),
            not_found=PageWords("यह लिंक मान्य नहीं है", "लिंक शायद अधूरा है। इसे सीधे संदेश से फिर से खोलें।"),
            try_again=PageWords("कृपया एक मिनट बाद फिर से कोशिश करें", "यह पेज अभी कुछ सहेज नहीं पा रहा है।"),
            bad_request=PageWords("यह नहीं हो सका", "लिंक को सीधे संदेश से फिर से खोलें और बटन दबाएँ।"),
            sender="प्रेषक",
            messages=MappingProxyType({"email": "ई-मेल", "whatsapp": "WhatsApp संदेश"}),
        ),
    }
)

_LANGUAGE = re.compile(r"([a-z]{1,8})(?:-[a-z0-9-]{1,30})?(?:;q=([01](?:\.[0-9]{0,3})?))?", re.IGNORECASE)
_MOST_LANGUAGES = 20  # that are looked at


def language_of(accept_language: str) -> str:
    """The one that the reader prefers (RFC 9110, section 12.5.4); English when it is neither."""
    best, weight = ENGLISH, 0.0
    for part in accept_language.replace(" ", "").split(",")[:_MOST_LANGUAGES]:
        found = _LANGUAGE.fullmatch(part)
        if found and found[1].lower() in WORDS and float(found[2] or 1) > weight:
            best, weight = found[1].lower(), float(found[2] or 1)
    return best
