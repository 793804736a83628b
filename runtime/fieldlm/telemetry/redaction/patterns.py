"""What identifies a person by its form: keys, e-mail, IBAN, card, address and phone numbers become placeholders.

Forms of a dozen countries, checksums where there are some, and the words around a number: "order 4155550132" is no
phone number, "call 4155550132" is one. Where form and words leave it open, a number goes.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping

from fieldlm.telemetry.redaction.first_names import NOT_NAMES

_KEY = re.compile(
    r"\b(?:sk|pk|rk)[-_][A-Za-z0-9_-]{16,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"
    r"|\bAIza[\w-]{35}|\bxox[abprs]-[\w-]{10,}|\bhf_[A-Za-z0-9]{20,}|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}"
    r"|\bglpat-[\w-]{16,}|\bnpm_\w{20,}|\bpypi-[\w-]{20,}|\bSG\.[\w-]{16,}\.[\w-]{16,}|\bdop_v1_[0-9a-f]{20,}"
    r"|-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,30}PRIVATE KEY-----|\Z)",
    re.S,
)
_BEARER = re.compile(r"(\b(?:bearer|basic)\s+)([\w.~+/=-]{16,})", re.I)
_URL_LOGIN = re.compile(r"(://[^\s:/@]{1,64}:)([^\s@/]{2,128})(?=@)")
# Before a word: no letter and no digit. An underscore may stand there: aws_secret_access_key.
_SECRET = re.compile(
    r"((?<![^\W_])(?:api[ _-]?key|access[ _-]token|auth[ _-]token|password|passwd|passphrase|passcode"
    r"|secret(?:[ _-](?:access[ _-])?key)?"
    r"|passwort|kennwort|mot de passe|contraseña|clave de acceso|parola d['’]ordine|wachtwoord|senha|palavra-passe"
    r"|hasło|lösenord)"
    r"['\"]?(\s*[:=]\s*|['’]s\s+|\s+(?:is|lautet|ist|est|es|è|é|to|är|er)\s*:?\s+))([^\s,;]{4,128})",
    re.I,
)
_PIN = re.compile(
    r"(\b(?:pin(?:[ -]?(?:code|nummer))?|cvc|cvv|tan)\b(?:\s*[:=]\s*|\s+(?:is|ist|est|es|è|é)\s+))(\d{3,8})\b", re.I
)
_SAID_OF_SECRETS = """
wrong correct incorrect invalid expired missing required needed empty weak strong there fine case safe secure public
falsch richtig abgelaufen ungültig nicht faux incorrecte incorrecta expiré incorrecto correcta sbagliata scaduta
fout verkeerd verlopen errada inválida printed written hidden stored kept known unknown reset changed being never
"""
_NO_SECRET = frozenset(_SAID_OF_SECRETS.split())

_EMAIL = re.compile(r"\b\w[\w.+%'’&-]{0,63}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")
_OPEN, _CLOSE = r"\s?[\[({]\s?", r"\s?[\])}]\s?"
_BRACKETED_EMAIL = re.compile(
    rf"\b[\w.+-]{{1,64}}{_OPEN}(?:at|@|ät){_CLOSE}[\w-]{{1,63}}(?:(?:\.|{_OPEN}(?:dot|punkt|punto|point){_CLOSE})[\w-]{{1,63}}){{1,4}}",
    re.I,
)
_DOT = r"(?:dot|punkt|punto|point|ponto|kropka)"
_DOTTED = rf"(?: {_DOT} [\w-]{{1,63}}){{0,3}}"
_SPOKEN_EMAIL = re.compile(
    rf"\b[\w.+-]{{1,64}}{_DOTTED} (?:at|ät|arroba|chiocciola|arobase) [\w-]{{1,63}}{_DOTTED} {_DOT} [a-z]{{2,6}}\b",
    re.I,
)

_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}", re.I)
_IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "BY": 28,
    "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18,
    "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22,
    "IL": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LI": 21, "LT": 20, "LU": 20, "LV": 21,
    "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MT": 31, "MU": 30, "NL": 18, "NO": 15, "PK": 24, "PL": 28, "PS": 29,
    "PT": 25, "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "TN": 24, "TR": 26,
    "UA": 29, "VA": 22, "XK": 20,
}  # fmt: skip
_CARD = re.compile(r"(?<![\d.])\d(?:[ .-]?\d){13,18}(?!\d)")
_CARD_FORMS = re.compile(r"3(?:0[0-5]|[689]\d)\d{11}|3[47]\d{13}|(?:4|5[0-8]|6|35|2[2-7])\d{14,15}|[46]\d{18}")

_MAC = re.compile(r"(?<![\w:-])(?:[0-9a-f]{2}[:-]){5}[0-9a-f]{2}(?![\w:-])", re.I)
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = re.compile(rf"(?<![\w.])(?<!version )(?<!release )(?<!firmware )(?:{_OCTET}\.){{3}}{_OCTET}(?!\w|\.\d)", re.I)
_IPV6 = re.compile(r"(?<![\w:.])(?=[0-9a-f:]*:[0-9a-f]*:)[0-9a-f:]{4,39}(?![\w:])", re.I)
_A_DATE = (
    r"(?:\d{1,4}[./-]\d{1,2}[./-]\d{1,4}|\d{1,2}(?:st|nd|rd|th|\.)?(?: of| de)? [^\W\d_]{3,12}\.?,?(?: de)? \d{4}"
    r"|[^\W\d_]{3,12}\.? \d{1,2}(?:st|nd|rd|th)?,? \d{4})"
)
_BORN = re.compile(
    r"(\b(?:born|birth(?:day|date)?|d\.?o\.?b|geboren|geburts(?:datum|tag)|née?|naissance|nacid[oa]|nacimiento"
    r"|nat[oa]|nascita|geboortedatum|nascid[oa]|nascimento|urodzon[ya]|urodzenia|född|födelsedatum)\b\.?"
    rf"[^\w\n]{{1,3}}(?:(?:is|was|on|in|am|ist|le|est|el|es|il|è|op|em|é|dn\.?) ){{0,2}})({_A_DATE})\b",
    re.I,
)
_NATIONAL_ID = re.compile(
    r"(\b(?:passport|pass(?:port)?nummer|reisepass|passeport|pasaporte|passaporto|paspoort|ssn|social security|dni|nie"
    r"|nif|national id|id (?:card|number)|personalausweis|ausweisnummer|codice fiscale|pesel|cpf|bsn|personnummer|nhs"
    r"|aadhaar|licen[cs]e plate|number plate|plate number|kennzeichen|matrícula|targa)\b"
    r"(?:[ .]{1,2}(?:number|no\.?|nr\.?|num(?:ber)?|nummer|card))?(?:\s*[:#=]\s*|\s+(?:(?:is|ist|est|es|è|é)\s+)?))"
    r"((?-i:[A-Z]{1,3}[ -]){1,2}\d{1,4}(?-i:[A-Z]{0,2})"
    r"|(?=[A-Z.-]{0,8}\d)[A-Z0-9](?:[.-]?[A-Z0-9]){4,17}(?: \d{2,6}){0,3})\b",
    re.I,
)

_CAP = r"(?-i:[A-ZÀ-ÖØ-ÞŁŚŻŹĆŃŠŽČ])[\w'’.-]{0,24}"
_OF = r"(?:(?:de|du|des|la|le|les|del|della|delle|dei|di|da|do|dos|das|san|santa|el|los|las) |l['’]|d['’])"
_UNIT = r"(?:,? (?:apt|apartment|suite|ste|unit|flat|floor)\b\.? ?#?\w{1,6})?"
_TOWN = (
    rf"(?:,? \d{{4,5}}(?: (?-i:[A-Z]{{2}}))? {_CAP}(?: {_CAP}){{0,2}}"
    rf"|(?:, {_CAP}(?: {_CAP}){{0,2}}){{1,2}}"
    r"(?:,? (?-i:[A-Z]{2}),? \d{5}(?:-\d{4})?|,? (?-i:[A-Z]{1,2}\d[\dA-Z]? ?\d[A-Z]{2})\b))?"
)
_END = rf"(?: (?-i:[NSEW]|NW|NE|SW|SE)\b)?{_UNIT}{_TOWN}"
_SURE = "street|avenue|ave|road|rd|boulevard|blvd|terrace|highway|hwy|crescent"
_UNSURE = "st|lane|ln|drive|dr|way|court|ct|square|sq|place|pl|row|close|gardens|hill"
_NUMBER_FIRST = re.compile(
    r"\b\d{1,4}[a-z]?(?: ?(?:bis|ter))?,? (?:rue|avenue|av\.|boulevard|bd|place|allée|chemin|impasse|quai|cours|route)"
    rf" (?:{_OF})*{_CAP}(?:[ -](?:{_OF})*{_CAP}){{0,3}}{_TOWN}"
    rf"|\b\d{{1,5}}[a-z]?,? (?P<between>(?:[\w'’.-]{{2,24}} ){{1,3}})(?P<way>{_SURE}|{_UNSURE})\b\.?{_END}",
    re.I,
)
_WAY_FIRST = re.compile(
    r"\b(?:calle|c/|avenida|avda?\.?|paseo|plaza|carrer|carretera|via|viale|corso|piazza|largo|strada|rua|travessa"
    rf"|praça|ul\.|ulica|aleja|al\.|plac) (?:{_OF})*{_CAP}(?: (?:{_OF})*{_CAP}){{0,3}},? (?:n[º°.]? ?)?"
    rf"\d{{1,5}}[a-z]?\b{_TOWN}",
    re.I,
)
_COMPOUND = re.compile(
    r"\b(?-i:[A-ZÄÖÜÅØÆ])[\wäöüß.-]{1,30}(?:straße|strasse|str\.|gasse|weg|platz|allee|damm|ufer|chaussee|straat|gracht"
    rf"|laan|plein|kade|singel|gatan|vägen|gade|vej|veien|gata) \d{{1,4}}[a-z]?\b{_TOWN}"
    r"|\b(?-i:[A-ZÄÖÜ])[\wäöüß-]{2,24} "
    r"(?-i:Straße|Strasse|Str\.|Allee|Weg|Platz|Ring|Gasse|Markt|Damm|Ufer|Chaussee|Landstraße)"
    rf" \d{{1,4}}[a-z]?\b{_TOWN}",
    re.I,
)
_BOX = re.compile(
    rf"\b(?:p\.? ?o\.? ?box|postfach|bo[iî]te postale|b\.?p\.?|apartado) \d[\d ]{{1,8}}\d\b(?:, {_CAP})?", re.I
)
_POSTCODE = re.compile(r"\b[A-Z]{1,2}\d[\dA-Z]? \d[ABD-HJLNP-UW-Z]{2}\b")
_MIDWORDS = "a an and by for from in more my of on or small medium large the to with your please coffee coffees drinks"
_NOT_IN_STREET = frozenset(_MIDWORDS.split())

# Chinese, Japanese and Korean put no space between a word and a number.
_CJK = r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
_LETTER = rf"(?!{_CJK})\w"
_PHONE = re.compile(
    rf"(?<![.,:/-])(?<!{_LETTER})(\+?\(?\d(?:[ .()/-]{{0,3}}\d){{6,14}})"
    r"(?:[ ,]{0,2}(?:x|ext\.?|extension)[ .:]?\d{1,6})?"
    rf"(?!{_LETTER}|[/:-]|[.,]\d)",
    re.I,
)
_ASKED = re.compile(
    r"\b(?:call|phone|mobile|cell|text|tel|fax|ring|reach|dial|whatsapp|sms|number is|my number|handy|telefon|nummer|"
    r"ruf|anruf|portable|appele|joign|móvil|movil|llam|teléfono|celular|cellulare|chiama|bel|telefoon|telemóvel|telefone|"
    r"ligue|komórk|zadzwoń|ring)\w*\.?[^.!?\d]{0,24}$"
    r"|(?:手机|手機|电话|電話|携帯|联系|聯繫|連絡|전화|휴대폰|핸드폰|연락)[^.!?。\d]{0,12}$",
    re.I,
)
_ORDERED = re.compile(
    r"\b(?:order|ticket|invoice|tracking|parcel|package|shipment|barcode|bar code|ean|upc|isbn|issn|sku|serial|article|"
    r"item|build|version|firmware|reference|ref|booking|case|doi|bestell|rechnung|sendung|artikel|auftrag|vorgang|commande|"
    r"facture|colis|pedido|factura|paquete|ordine|fattura|bestelling|factuur|encomenda|fatura|zamówieni)\w*[^.!?\d]{0,24}$"
    r"|[#№]\s?$",
    re.I,
)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}.*|\d{1,2}[./-]\d{1,2}[./-]\d{2,4}")
_DIGITS = (
    "zero|oh|one|two|three|four|five|six|seven|eight|nine|null|eins|zwei|zwo|drei|vier|fünf|sechs|sieben|acht|neun|zéro|un|"
    "deux|trois|quatre|cinq|sept|huit|neuf|cero|uno|dos|tres|cuatro|cinco|seis|siete|ocho|nueve|due|tre|quattro|cinque|"
    "sei|sette|otto|nove"
)
_SPOKEN_PHONE = re.compile(rf"\b(?:(?:double |triple )?(?:{_DIGITS})[\s,-]{{1,3}}){{6,15}}(?:{_DIGITS})\b", re.I)
_HAS_DIGIT = re.compile(r"\d")


def mask(text: str) -> str:
    """Return `text` with a placeholder for everything that has the form of an identifier."""
    text = _SECRET.sub(_if_secret, _KEY.sub("<KEY>", text))
    text = _MAC.sub("<MAC>", text)
    text = _URL_LOGIN.sub(r"\1<KEY>", _BEARER.sub(r"\1<KEY>", text))
    if "@" in text:
        text = _EMAIL.sub("<EMAIL>", text)
    # Most texts have no digits and spell nothing out; looking first halves the time of a request.
    if _spells_out(text):
        text = _SPOKEN_EMAIL.sub("<EMAIL>", _BRACKETED_EMAIL.sub("<EMAIL>", text))
    if _HAS_DIGIT.search(text):
        text = _PIN.sub(r"\1<KEY>", text)
        text = _NATIONAL_ID.sub(r"\1<ID>", _BORN.sub(r"\1<DATE>", text))
        text = _IPV6.sub(_if(_is_ipv6, "<IP>"), _IPV4.sub("<IP>", text))
        text = _IBAN.sub(_if_iban, text)
        text = _CARD.sub(_if(is_card, "<CARD>"), text)
        text = _NUMBER_FIRST.sub(_if_street, text)
        for pattern in (_WAY_FIRST, _COMPOUND, _BOX, _POSTCODE):
            text = pattern.sub("<ADDRESS>", text)
        text = _PHONE.sub(_if_phone, text)
    return _SPOKEN_PHONE.sub("<PHONE>", text)


def names_an_order(key: str) -> bool:
    """Say whether a number behind this word counts orders, versions or goods, and reaches nobody."""
    return bool(_ORDERED.search(f"{key.replace('_', ' ')}: "))


def is_card(text: str) -> bool:
    """Say whether the digits of `text` are a card's: a known form, and Luhn's checksum."""
    compact = "".join(c for c in text if c.isdigit())
    digits = [int(c) for c in compact][::-1]
    doubled = [sum(divmod(2 * d, 10)) for d in digits[1::2]]
    return bool(_CARD_FORMS.fullmatch(compact)) and (sum(digits[::2]) + sum(doubled)) % 10 == 0


def is_iban(compact: str) -> bool:
    """Say whether `compact`, capitals and digits only, has its country's length and the right checksum."""
    if len(compact) != _IBAN_LENGTHS.get(compact[:2]):
        return False
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def _is_ipv6(text: str) -> bool:
    try:
        return text.count(":") >= 2 and bool(ipaddress.IPv6Address(text))
    except ValueError:
        return False


def _spells_out(text: str) -> bool:
    low = text.lower()
    return any(
        word in low for word in (" dot ", " punkt ", " punto ", " point ", " ponto ", "at)", "at]", "at}", "[@", "(@")
    )


def _if(holds: Callable[[str], bool], placeholder: str) -> Callable[[re.Match[str]], str]:
    return lambda match: placeholder if holds(match[0]) else match[0]


def _if_secret(match: re.Match[str]) -> str:
    """After ":" anything is a secret; after "is" not what one says about a password."""
    value = match[3].rstrip(".!?)\"'").casefold()
    is_spoken = not match[2].strip().startswith((":", "="))
    if is_spoken and (value in _NO_SECRET or value in NOT_NAMES):
        return match[0]
    return f"{match[1]}<KEY>"


def _if_iban(match: re.Match[str]) -> str:
    """The match may have run on into the next words: the country says where it ends."""
    text, kept = match[0], ""
    size = _IBAN_LENGTHS.get(text[:2].upper(), 0)
    for end, letter in enumerate(text, 1):
        kept += letter.upper() if letter.isalnum() else ""
        if len(kept) == size:
            is_whole = not text[end : end + 1].isalnum()
            return f"<IBAN>{text[end:]}" if is_whole and is_iban(kept) else text
    return text


def _if_street(match: re.Match[str]) -> str:
    """A way, a drive or a place is a street only when its name is written as one."""
    parts: Mapping[str, str | None] = match.groupdict()
    between, way = (parts["between"] or "").split(), (parts["way"] or "").casefold()
    if way and _NOT_IN_STREET & {word.casefold() for word in between}:
        return match[0]
    if way in _UNSURE.split("|") and not all(word[0].isupper() or word[0].isdigit() for word in between):
        return match[0]
    return "<ADDRESS>"


def _if_phone(match: re.Match[str]) -> str:
    before = match.string[max(0, match.start() - 48) : match.start()]
    return "<PHONE>" if _is_phone(match[1], before) else match[0]


def _is_phone(text: str, before: str) -> bool:
    """Read the groups: what begins like a call abroad or a trunk call, or is grouped as some country does."""
    groups = re.findall(r"\d+", text)
    digits = "".join(groups)
    if _DATE.fullmatch(text) or _ORDERED.search(before) or re.fullmatch(r"\d+\.\d+|(?:\d{1,3}\.){3}\d{1,3}", text):
        return False
    if text[0] in "+(":
        return True
    if len(groups) >= 5 and all(len(group) <= 2 for group in groups) and text[0] != "0":
        return False  # somebody counts
    if _ASKED.search(before) or (text[0] == "0" and len(digits) >= 9):
        return True
    sizes = tuple(map(len, groups))
    is_american = bool(re.fullmatch(r"1?[2-9]\d{2}[2-9]\d{6}", digits))
    is_european = len(digits) == 9 and digits[0] in "56789" and sizes in ((3, 3, 3), (3, 2, 2, 2))
    return sizes == (3, 4) or (is_american and len(digits) >= 10) or is_european
