"""Names in scripts without capitals, and in a script that is not the sentence's own."""

import itertools
import re

from fieldlm.telemetry.redaction.known_names import is_given, is_name

_HAN = r"\u3400-\u9fff々"
_KANA = r"\u3040-\u30ff"
_HANGUL = r"\uac00-\ud7af"
_MARKS = r"\u064b-\u0652\u0900-\u0dff\u0e00-\u0eff"  # letters of Arabic, India and Thailand that are no \w
_UNSPACED = re.compile(rf"[{_HAN}{_KANA}{_HANGUL}{_MARKS}]")
_CHINESE = (
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林罗郑梁谢宋唐许韩冯邓曹彭曾肖田董袁潘于蒋蔡余杜叶程苏魏吕丁任沈姚卢姜崔钟谭陆汪范金石"
    "廖贾夏韦付方白邹孟熊秦邱江尹薛闫段雷侯龙史陶黎贺顾毛郝龚邵万钱严覃武戴莫孔向汤张劉陳楊黃趙吳孫馬鄭謝許韓馮鄧蕭葉蘇呂盧鍾譚陸賈"
)
_CALLED = re.compile(
    rf"(?:我叫|我是|名叫|叫做|姓名[:：]?|名字(?:是|叫)|请问|請問|见到了?|見到了?|遇到了?|联系|聯繫|告诉|告訴|找|问|問|跟|给)"
    rf"([{_CHINESE}][{_HAN}]{{1,2}})(?=先生|女士|小姐|老师|老師|医生|经理|同学|在|的|说|說|来|來|会|吗|嗎|\W|$)"
    rf"|([{_CHINESE}][{_HAN}]{{1,2}}?)(?=先生|女士|小姐|老师|老師|医生|經理|经理|同学)"
)
_JAPANESE = re.compile(rf"[{_HAN}]{{2,8}}(?: [{_HAN}{_KANA}]{{1,4}})?")
_HONOURED = re.compile(
    r"\s?(?:さん|様|さま|氏|くん|君|ちゃん|先生|です|と申|といいます|に|と|が|は|を|の|から|へ|[、。]|$)"
)
_KOREAN = re.compile(
    r"(?<![\uac00-\ud7af])([\uac00-\ud7af])([\uac00-\ud7af]{2})([\uac00-\ud7af]{0,4})(?=(?: ?(?:씨|님|선생))?)"
)
_KOREAN_NAMES = frozenset(
    "김이박최정강조윤장임한오서신권황안송류유홍전고문손양배백허남심노하곽성차주우구민진지엄채원천방공현함변염여추도소석선설마길연위표명기반왕금옥육인맹제모"
)
_BEHIND = frozenset(
    [
        "은",
        "는",
        "이",
        "가",
        "을",
        "를",
        "와",
        "과",
        "의",
        "도",
        "에게",
        "한테",
        "씨",
        "님",
        "씨는",
        "씨가",
        "씨에게",
        "입니다",
        "이에요",
        "예요",
        "이고",
        "이라고",
    ]
) | {""}
_ARABIC = re.compile(r"[\u0621-\u0652\u0671-\u06d3]{2,20}(?: [\u0621-\u0652\u0671-\u06d3]{2,20}){0,8}")
_OTHER = re.compile(
    r"[\u0370-\u1cff\u3040-\u9fff\uac00-\ud7af]{1,24}(?:[ \u30fb-][\u0370-\u1cff\u3040-\u9fff\uac00-\ud7af]{1,24}){0,3}"
)
_MY_NAME = ("اسمي", "إسمي")
_LATIN = re.compile(r"[A-Za-z]")


def is_unspaced(word: str) -> bool:
    """Say whether a word may touch others: Chinese, Japanese and Korean."""
    return bool(_UNSPACED.search(word))


def names_in_scripts(text: str) -> set[str]:
    """Return the names in `text`, which has letters that are not ASCII."""
    found: set[str] = set()
    others = list(_OTHER.finditer(text))
    if not others:
        return found
    if len(_LATIN.findall(text)) >= sum(len(match[0]) for match in others):
        # An English sentence with one word in another script quotes a name more than anything else.
        return {match[0] for match in others if _may_be_a_name(match, text)}
    found |= {match[1] or match[2] for match in _CALLED.finditer(text)}
    for match in _JAPANESE.finditer(text):
        found |= _japanese(match[0], text[match.end() : match.end() + 6])
    found |= {f"{m[1]}{m[2]}" for m in _KOREAN.finditer(text) if _is_korean(m, text)}
    for match in _ARABIC.finditer(text):
        found |= _arabic(match[0].split())
    return found


def _may_be_a_name(match: re.Match[str], text: str) -> bool:
    words = match[0].split()
    near = text[max(0, match.start() - 2) : match.start()] + text[match.end() : match.end() + 2]
    is_small = any(word[0].islower() for word in words)  # a script with capitals, and no name in them
    return not is_small and len(match[0]) > 1 and not any(c.isdigit() for c in near)


def _japanese(run: str, behind: str) -> set[str]:
    """Return the name in a run of characters: a known surname, and up to three characters of a given name."""
    family, _, given = run.partition(" ")
    for start in range(len(family) - 1):
        for size in (3, 2):
            surname, rest = family[start : start + size], family[start + size :]
            if len(surname) == size and is_name(surname) and len(rest) <= 3 and (given or _HONOURED.match(behind)):
                return (
                    {surname + rest, given} - {""} if len(given) != 1 else {f"{surname}{rest} {given}", surname + rest}
                )
    return (
        {f"{family} {given}"}
        if given and len(family) <= 3 and is_name(family[-1:] if len(family) == 1 else family)
        else set()
    )


def _is_korean(match: re.Match[str], text: str) -> bool:
    is_honoured = bool(re.match(r" ?(?:씨|님|선생)", text[match.end(2) :]))
    is_told = bool(re.search(r"(?:이름은|이름이|저는) ?$", text[: match.start()]))
    is_known = is_given(match[2]) or is_name(match[2])
    return match[1] in _KOREAN_NAMES and (is_honoured or is_told or (is_known and match[3] in _BEHIND))


def _arabic(words: list[str]) -> set[str]:
    """Two known names side by side are somebody's, and one with a family behind it ("… آل رفيع")."""
    found: set[str] = set()
    for place, (first, second) in enumerate(itertools.pairwise(words)):
        if first in _MY_NAME:
            found.add(" ".join(words[place + 1 : place + (4 if "آل" in words[place + 1 : place + 3] else 3)]))
        elif second in ("آل", "بن", "بنت", "أبو") and place + 2 < len(words):
            found.add(f"{first} {words[place + 2]}")
        elif is_name(first) and (is_name(second) or second.startswith("ال")):
            found.add(f"{first} {second}")
    return found
