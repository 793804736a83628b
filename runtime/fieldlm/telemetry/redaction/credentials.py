"""Keys, tokens and passwords: by their makers' forms, by the word in front of them, and by how random they look."""

import re

from fieldlm.telemetry.redaction.first_names import NOT_NAMES
from fieldlm.telemetry.redaction.put import Put

_KEY = re.compile(
    r"\b(?:sk|pk|rk)[-_][A-Za-z0-9_-]{16,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"
    r"|\bAIza[\w-]{35}|\bxox[abprs]-[\w-]{10,}|\bhf_[A-Za-z0-9]{20,}|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}"
    r"|\bglpat-[\w-]{16,}|\bnpm_\w{20,}|\bpypi-[\w-]{20,}|\bSG\.[\w-]{16,}\.[\w-]{16,}|\bdop_v1_[0-9a-f]{20,}"
    r"|-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,30}PRIVATE KEY-----|\Z)",
    re.S,
)
_BEARER = re.compile(
    r"(\b(?:bearer|basic)\s{1,3}|\bauthorization\s{0,3}[:=]\s{0,3}(?:bearer\s{1,3}|basic\s{1,3}"
    r"|token\s{1,3})?)((?<=[Bb]earer )\S{8,}|[\w.~+/=-]{16,}|(?<=: )\S{12,})",
    re.I,
)
_URL_LOGIN = re.compile(r"(://[^\s:/@]{1,64}:)([^\s@/]{2,128})(?=@)")
# Before a word: no letter and no digit. An underscore may stand there: aws_secret_access_key.
_SECRET = re.compile(
    r"((?<![^\W_])(?:api[ _-]?key|(?:access|auth|refresh|bearer)?[ _-]?token|private[ _-]key|password|pwd"
    r"|passwd|passphrase|passcode"
    r"|secret(?:[ _-](?:access[ _-])?key)?"
    r"|passwort|kennwort|mot de passe|contraseña|clave de acceso|parola d['’]ordine|wachtwoord|senha|palavra-passe"
    r"|hasło|lösenord|heslo|şifre|пароль)"
    r"['\"]?(\s{0,3}[:=]\s{0,3}|['’]s\s{1,3}|\s{1,3}(?:is|lautet|ist|est|es|è|é|är|er|je"
    r"|(?<=hasło )to)\s{0,3}:?\s{1,3}))([^\s,;]{4,128})",
    re.I,
)
_PIN = re.compile(
    r"(\b(?:pin(?:[ -]?(?:code|nummer))?|cvc|cvv|tan)\b(?:\s{0,3}[:=]\s{0,3}|\s{1,3}(?:is|ist|est|es|è"
    r"|é)\s{1,3}))(\d{3,8})\b",
    re.I,
)
_SAID_OF_SECRETS = """
wrong correct incorrect invalid expired missing required needed empty weak strong there fine case safe secure public
falsch richtig abgelaufen ungültig nicht faux incorrecte incorrecta expiré incorrecto correcta sbagliata scaduta
fout verkeerd verlopen errada inválida printed written hidden stored kept known unknown reset changed being never
"""
_NO_SECRET = frozenset(_SAID_OF_SECRETS.split())

_LONG = 14
"""No maker's key is one word shorter than this."""
_RANDOM = re.compile(r"(?<![\w/.@-])(?:[0-9a-f]{32,128}|[A-Za-z0-9+_-]{24,256}={0,2})(?![\w/.@-])")
_MASHED = re.compile(
    r"(\b(?:password|passwd|passcode|pwd|pw|token|secret|passwort|kennwort|contraseña|senha|wachtwoord|hasło|lösenord|heslo|şifre"
    r"|пароль)\s{1,2})(?=\S{0,63}\d)(?=\S{0,63}[^\W\d_])(\S{6,64})(?<![.,;!?])",
    re.I,
)
_CJK_SECRET = re.compile(
    r"((?:密码|密碼|口令|密钥|パスワード|暗証番号|비밀번호|암호)\s{0,2}[是为為はが은는:：=]{0,2}\s{0,2})([!-~]{4,128})"
)


def mask_credentials(text: str, put: Put) -> str:
    """Return `text` without secrets."""
    words = text.split()
    longest = max(map(len, words), default=0)
    if "earer " in text or "uthorization" in text:
        text = _BEARER.sub(lambda found: f"{found[1]}{put('KEY', found[2])}", text)
    if longest >= _LONG:
        text = _KEY.sub(lambda found: put("KEY", found[0]), text)
        text = _BEARER.sub(lambda found: f"{found[1]}{put('KEY', found[2])}", text)
    elif "PRIVATE KEY-----" in text:
        text = _KEY.sub(lambda found: put("KEY", found[0]), text)
    if "://" in text:
        text = _URL_LOGIN.sub(lambda found: f"{found[1]}{put('KEY', found[2])}", text)
    if _says_secret(text):
        text = _SECRET.sub(lambda found: _if_secret(found, put), text)
        text = _MASHED.sub(lambda found: f"{found[1]}{put('KEY', found[2])}", text)
        text = _CJK_SECRET.sub(lambda found: f"{found[1]}{put('KEY', found[2])}", text)
    if longest >= 24:
        text = _RANDOM.sub(lambda found: put("KEY", found[0]) if _is_random(found[0]) else found[0], text)
    return text


def mask_pins(text: str, put: Put) -> str:
    """Return `text`, which has a digit somewhere, without the numbers that open something."""
    return _PIN.sub(lambda found: f"{found[1]}{put('KEY', found[2])}", text)


_SAID = (
    "key",
    "token",
    "pass",
    "secret",
    "kennwort",
    "contraseña",
    "clave",
    "parola",
    "wachtwoord",
    "senha",
    "palavra",
    "hasło",
    "lösenord",
    "heslo",
    "şifre",
    "парол",
    "pwd",
    "pw",
    "密",
    "口令",
    "パスワード",
    "暗証",
    "비밀번호",
    "암호",
)


def _says_secret(text: str) -> bool:
    low = text.casefold()
    return any(word in low for word in _SAID)


def _is_random(text: str) -> bool:
    """Say whether no person chose the letters: three kinds of them, or hexadecimal digits."""
    kinds = (any(c.isdigit() for c in text), any(c.isupper() for c in text), any(c.islower() for c in text))
    return all(kinds) or (kinds[0] and bool(re.fullmatch("[0-9a-f]{32,}", text)))


def _if_secret(match: re.Match[str], put: Put) -> str:
    """After ":" anything is a secret; after "is" not what one says about a password."""
    value = match[3].rstrip(".!?)\"'").casefold()
    is_spoken = not match[2].strip().startswith((":", "="))
    if value.startswith("<") or (is_spoken and (value in _NO_SECRET or value in NOT_NAMES)):
        return match[0]
    return f"{match[1]}{put('KEY', match[3])}"
