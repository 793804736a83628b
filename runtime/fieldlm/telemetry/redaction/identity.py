"""Numbers that states give to people and cars, and dates of birth: by the word in front of them, and by their form.

A label ("passport", "Kennzeichen", "身份证") makes an id of any code behind it. Without one a form has to be rare
elsewhere: letters and digits as on passports and plates, a national id's groups, nine digits or more. What counts
orders, versions or goods ("order 4155550132") is none.
"""

import re
from collections.abc import Callable

from fieldlm.telemetry.redaction.put import Put
from fieldlm.telemetry.redaction.wording import CJK, ORDERED

_MONTHS = r"[^\W\d_]{3,14}"
_A_DATE = (
    r"(?:\d{1,4}[./-]\d{1,2}[./-]\d{1,4}"
    rf"|\d{{1,2}}(?:st|nd|rd|th|\.)?(?: of| de)? {_MONTHS}\.?,?(?: de)? \d{{4}}"
    rf"|{_MONTHS}\.? \d{{1,2}}(?:st|nd|rd|th)?,? \d{{4}}|\d{{2,4}}年\d{{1,2}}月\d{{1,2}}日"
    rf"|\d{{4}}년 ?\d{{1,2}}월 ?\d{{1,2}}일)"
)
_BORN_WORDS = (
    r"born|birth(?:day|date)?|d\.?o\.?b|geboren|geb\.|geburts(?:datum|tag)|née?|naissance|nac[íi]|nacid[oa]|nacimiento|nat[oa]"
    r"|nascita|geboortedatum|nasci|nascid[oa]|nascimento|urodz(?:ony|ona|enia)|födelse(?:datum|dag)|född|narozen[íaý]?"
    r"|narodil[a]?|doğum(?: tarihi\w*)?|рождения|родил(?:ся|ась)|народження|народи(?:вся|лася)|γέννησης"
    r"|γεννήθηκα|الميلاد|ميلاد"
)
_BORN = re.compile(
    rf"((?:\b(?:{_BORN_WORDS})\b\.?|(?:出生(?:日期|于|年月日)?|生年月日|誕生日|生日|생년월일|생일))"
    r"[^\w\n]{0,3}(?:(?:it['’]s|is|was|on|in|am|ist|le|est|el|es|il|è|op|em|é|dn\.?|den|to|στις|είναι|في|هو|是"
    r"|为|は|은|는)[ :]{0,2}){0,2})"
    rf"({_A_DATE})(?!\d)",
    re.I,
)

_LABELS = (
    r"passport|pass(?:port)?nummer|reisepass(?:nummer)?|passeport|pasaporte|passaporto|paspoort(?:nummer)?|passaporte"
    r"|paszport\w*|pas[uů]|pasaport\w*|ssn|social security(?: number)?|s\.?s\.?n|dni|nie|nif"
    r"|national(?: id(?:entity)?| insurance)?"
    r"(?: number| card)?|id (?:card|number|no)|identity (?:card|number)|tax id|tin|personalausweis"
    r"|ausweis(?:nummer)?|steuer-?id"
    r"|steuernummer|sozialversicherungsnummer|sécurité sociale|nir|seguridad social|codice fiscale|c\.f|pesel"
    r"|nip|cpf|cnpj|rg"
    r"|bsn|burgerservicenummer|personnummer|organisationsnummer|rodné číslo|rodného čísla|cnp|jmbg|oib|hetu"
    r"|henkilötunnus"
    r"|cpr(?:-nummer)?|fødselsnummer|nhs(?: number)?|aadhaar|aadhar|pan(?: card)?|medicare|ehic|nino"
    r"|kimlik (?:no|numara\w*)|t\.?c\.?"
    r"|инн|снилс|паспорт\w*|ипн|іпн|рнокпп|αμκα|αφμ|διαβατηρίου|ταυτότητας|الهوية|هويتي|الجواز|السفر|جواز"
    r"|driv(?:er|ing)['’]?s? licen[cs]e|driving licen[cs]e|driver licen[cs]e|führerschein(?:nummer)?|permis de conduire"
    r"|licen[cs]e plate|number plate|plate|plates|vehicle registration|registration|vin|kennzeichen"
    r"|nummernschild|plaque|immatriculation"
    r"|matrícula|matricula|targa|kenteken|placa|rejestracyjny|rejestracja|registreringsnummer|regnummer|spz|plaka\w*"
    r"|госномер|номерний знак|гос\. номер|πινακίδα|اللوحة|لوحة"
)
_CJK_LABELS = (
    r"身份证|身分證|护照|護照|车牌|車牌|驾照|驾驶证|社保|マイナンバー|個人番号|パスポート|旅券|ナンバー|免許証|保険証"
    r"|주민등록번호|주민번호|여권|차량번호|운전면허|외국인등록번호"
)
_FILL = (
    r"(?:number|numbers|no|nr|n|num|nummer|numéro|número|numero|номер|id|card|with|is|ist|lautet|est|es|è|é|to|är|je|le|la|el|av|do"
    r"|carro|coche|auto|d|of|του|μου|είναι|هو|رقم|numaram|numarası|numarasi|numara)"
)
_LETTERS = rf"(?:(?-i:[A-ZА-ЯІЇЄΑ-ΩÄÖÜÅ]{{1,4}})|[\u0621-\u064a]{{1,2}}|{CJK}{{1,2}})"
_CHUNK = r"[A-ZА-ЯΑ-Ω]{0,9}\d[A-ZА-ЯΑ-Ω\d]{0,19}"
_CODE = rf"(?:{_LETTERS}[ ./-]?){{0,3}}{_CHUNK}(?:[ ./·•-]{{0,2}}{_CHUNK}|[ ./•-]?{_LETTERS}(?![^\W\d_])){{0,5}}"
_LABELLED = re.compile(
    rf"(\b(?:{_LABELS})\b[.:#№°º]{{0,2}}(?:[^\w\n]{{1,4}}{_FILL}\b[.°º]?){{0,3}}[^\w\n]{{1,4}}"
    rf"|(?:{_CJK_LABELS})[号號码碼番証证번호\s]{{0,4}}[是为為はが은는의:：\s]{{0,3}})({_CODE})",
    re.I,
)

_ACCOUNT = re.compile(r"(\bIBAN\b[^\w\n]{0,3}(?:(?:is|ist|est|es|è) )?)([A-Z]{2}\d{2}(?: ?[A-Z0-9]){8,30})", re.I)

_SURE_FORMS = (
    r"\d{3}-\d{2}-\d{4}|\d{3} \d{2} \d{4}",  # United States, SSN
    r"[A-Z]{2} ?\d{2} ?\d{2} ?\d{2} ?[A-Z]",  # United Kingdom, NINO
    r"[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:[0-2]\d|3[01])\d{3}[\dX]",  # China
    r"[12] ?\d{2} ?\d{2} ?[\dAB]{2} ?\d{3} ?\d{3}(?: ?\d{2})?",  # France, NIR
    r"\d{6}[-+A]\d{3}[\dA-Y]|\d{8}-\d{4}|\d{6}-[1-8]\d{6}|\d{6}/\d{3,4}",  # Sweden, Finland, Denmark; Korea; Czechia
    r"[A-Z]{6}\d{2}[A-Z]\d{2}[A-Z]\d{3}[A-Z]",  # Italy
    r"\d{8}-?[A-HJ-NP-TV-Z]|[XYZ]-?\d{7}-?[A-Z]",  # Spain
    r"\d{3}\.\d{3}\.\d{3}-\d{2}|\d{4} \d{4} \d{4}(?! \d)|[A-Z]{5}\d{4}[A-Z]",  # Brazil; India
    r"\d{3}-\d{3}-\d{3} \d{2}",  # Russia, SNILS
    r"[A-Z]{1,3}\d{6,9}|\d{2} ?\d{2} \d{6}",  # passports
    r"[A-Z]{2}\d{2}(?=[A-Z]{0,20}\d)[A-Z\d]{11,30}",  # accounts that fail IBAN's checksum
)
_PLATE_FORMS = (
    r"[A-Z]{2}\d{2} ?[A-Z]{3}|[A-Z]{2} ?\d{3,4} ?[A-Z]{2}|[A-Z]{2}-\d{3}-[A-Z]{2}|\d{3}-[A-Z]{3}-\d{2}",
    r"\d{2}-[A-Z]{2,3}-\d{1,2}|\d{2}-[A-Z]{2}-[A-Z]{2}|[A-Z]{2}-\d{2}-\d{2}|\d{1,2}-[A-Z]{3}-\d{1,2}",
    r"[A-Z]{1,3}-[A-Z]{1,2}-\d{1,4}|\d{2} [A-Z]{1,3} \d{2,4}|\d{4} ?[B-DF-HJ-NP-TV-Z]{3}|[A-Z]{3}-\d[A-Z]\d{2}",
    r"[A-Z]{3} \d[A-Z\d]{2}[A-Z]?|[A-Z]{3} [A-Z]{1,2}\d{2,3}|[A-Z]{3}[ -]\d{3,4}|\d[A-Z]{3}\d{3}|\d{2}[A-Z] \d{4}",
    r"\d[A-Z]{2}\d{4}|\d[A-Z] [A-Z]{1,2}\d{3,4}|\d{2}-\d{4}[A-Z]|[A-Z]{1,2}[ -]?\d{3,4}[ -]?[A-Z]{1,2}"
    r"|[A-Z]{2}[ -]\d{4}",
    r"\d[A-Z]{2} \d{3}|\d{2}[A-Z] ?[A-Z]{2}\d{1,2}|[A-Z]{1,2}-\d{3}-[A-Z]{1,2}|\d[A-Z]{3} \d{2}"
    r"|[A-Z]{2} [A-Z]{2} \d{4}",
    r"[A-Z]{1,2}\d[A-Z\d]? [A-Z\d]{3,4}|\d{3}-[A-Z]{3}|\d{3} [A-Z]{3}|[A-Z]{2} \d{5}|[A-Z]{3}\d{3,4}"
    r"|\d{1,2}[A-Z]{2}\d{2,3}",
    r"[АВЕКМНОРСТУХ]\d{3}[АВЕКМНОРСТУХ]{2} ?\d{2,3}|[АВЕКМНОРСТУХ]{2}\d{4} \d{2}|\d{3}[A-ZА-Я]{2}\d \d{2}",
    rf"{CJK}{{1,4}} ?\d{{2,3}} ?{CJK} ?[・\d][・\d-]{{1,4}}|{CJK}[A-Z]-?[A-Z\d]{{5,6}}|\d{{2,3}}[가-힣] ?\d{{4}}",
    r"(?:[\u0621-\u064a] ){2,3}\d{3,4}",
    # Two groups of which one mixes letters and digits.
    r"(?=[A-Z]{0,3}\d|\d{1,3}[A-Z])(?=[A-Z\d -]{0,9}\d[A-Z\d -]{0,9}\d)(?=[A-Z\d]{0,3}(?:[A-Z]\d|\d[A-Z]))"
    r"[A-Z\d]{2,7}[ -][A-Z\d]{2,6}",
    r"[A-Z\d]{1,3}[ -](?=[A-Z\d]{0,4}(?:[A-Z]\d|\d[A-Z]))(?=[A-Z]{0,4}\d[A-Z]{0,4}\d)[A-Z\d]{3,6}|[A-Z]{3} \d{5}",
    r"[А-Я]{1,2}\d{3,4}[А-Я]{0,2} \d{2,3}|\d{4}[А-Я]{2} \d{2}|[A-ZА-Я]{2}\d{3} \d{2,3}",
)
_EDGE = r"(?<![\w./:@#$€£-])"
_FORM = re.compile(rf"{_EDGE}(?:{'|'.join(_SURE_FORMS)})(?![\w@%€$£]|[./:-]\w)")
_PLATE = re.compile(rf"(?<![A-Za-z\d./:@#$€£-])(?:{'|'.join(_PLATE_FORMS)})(?![A-Za-z\d@%€$£]|[./:-]\w)")
_UNITS = (
    r" ?(?:[a-zµ]{1,3}/|m|km|mm|nm|g|kg|mg|t|s|ms|[kmgt]?b|bytes?|bits?|[kmg]?hz|w|kw|mw|people|users|euros?"
    r"|dollars?|eur|usd|gbp"
    r"|points|tokens?|times|years|jahre|einwohner|habitants)\b| ?[€$£%°]"
)
_DIGITS = re.compile(rf"(?<![\w./:@#$€£+,-])\d{{9,19}}(?!(?i:{_UNITS})|[\w@]|[./:,-]\w)")
_NO_PLATE = frozenset(
    [
        "ISO",
        "UTF",
        "RFC",
        "DIN",
        "IEC",
        "SKU",
        "USB",
        "USD",
        "EUR",
        "GBP",
        "CHF",
        "JPY",
        "BTC",
        "CNY",
        "INR",
        "GMT",
        "UTC",
        "EST",
        "PST",
        "CET",
        "MHZ",
        "GHZ",
        "PSI",
        "RPM",
        "BMW",
        "BBC",
        "CNN",
        "NBA",
        "NFL",
        "MLB",
        "UFC",
        "GPT",
        "LTE",
        "CPU",
        "GPU",
        "RAM",
        "SSD",
        "API",
        "SQL",
        "PDF",
        "MP3",
        "MP4",
        "A4",
        "THE",
        "AND",
        "FOR",
        "YOU",
        "MAY",
        "JAN",
        "FEB",
        "MAR",
        "APR",
        "JUN",
        "JUL",
        "AUG",
        "SEP",
        "OCT",
        "NOV",
        "DEC",
        "PM",
        "AM",
        "KM",
        "MB",
        "GB",
        "TB",
        "KB",
        "ICE",
        "RE",
        "RB",
        "TGV",
    ]
)


def mask_identity(text: str, put: Put) -> str:
    """Return `text`, which has a digit somewhere, without dates of birth and numbers of people and cars."""
    text = _ACCOUNT.sub(lambda found: f"{found[1]}{put('ID', found[2])}", text)
    text = _BORN.sub(lambda found: f"{found[1]}{put('DATE', found[2])}", text)
    return _LABELLED.sub(lambda found: _labelled(found, put), text)


def mask_bare_identity(text: str, put: Put) -> str:
    """Return `text` without what has the form of an id; after everything that is known better by its form."""
    text = _FORM.sub(_unless_ordered(put), text)
    text = _DIGITS.sub(_unless_ordered(put), text)
    if text.isupper():  # where all is in capitals, two words and a number are no plate
        return text
    return _PLATE.sub(lambda found: found[0] if _is_model(found[0]) else _unless_ordered(put)(found), text)


def _labelled(found: re.Match[str], put: Put) -> str:
    code = found[2]
    digits, letters = sum(c.isdigit() for c in code), sum(c.isalpha() for c in code)
    is_code = digits >= 4 or (digits >= 2 and letters >= 1) or (digits == 3 and "-" in code)
    if not is_code or re.fullmatch(r"(?:19|20)\d\d", code):
        return found[0]
    return f"{found[1]}{put('ID', code)}"


def _is_model(text: str) -> bool:
    return any(part in _NO_PLATE for part in re.findall(r"[A-Z]+\d?", text))


def _unless_ordered(put: Put) -> Callable[[re.Match[str]], str]:
    def replaced(found: re.Match[str]) -> str:
        before = found.string[max(0, found.start() - 48) : found.start()]
        return found[0] if ORDERED.search(before) else put("ID", found[0])

    return replaced
