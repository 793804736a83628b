"""Request parameters by name: what is done with each that OpenAI or another server knows and that is no field here.

A parameter is honoured (it is a field of its request), refused by name, or harmless: it stands in one of these tables.
An answer must not go out free because its caller meant another server, or longer, or chosen in another way. So a name
that nobody here knows is refused too where it speaks of a form, a length or a choice, is one of ours spelt otherwise,
or holds one of those in what it says (NVIDIA's `nvext`, Google's `generationConfig`); any other changes no answer.
"""

import re
from collections.abc import Collection
from functools import cache
from typing import Any, cast

import msgspec
from msgspec import inspect

from fieldlm.network.json_api import ApiError

FORM = "use response_format (text.format in /v1/responses), regex or grammar"
LENGTH = "use max_tokens (max_output_tokens in /v1/responses)"
STOP = "use stop"
CHOICE = "use temperature, top_p, top_k, min_p, repeat_penalty, presence_penalty, frequency_penalty or logit_bias"
TEMPLATE = "the model's own chat template is used as it is"
THOUGHT = (
    "use reasoning_effort (reasoning.effort in /v1/responses), enable_thinking, thinking_token_budget "
    "or chat_template_kwargs"
)
SHOWN = "an answer has its text, its thought apart and, with logprobs, its tokens; nothing else is shown"
KEPT = "nothing is kept between requests here; send the whole conversation"
PROMPT = "use messages, prompt or input; a prompt is text and is not cut"
ABSENT = "not supported"
ELSEWHERE = "this endpoint does not take it"

_REFUSED = {
    FORM: """
        guided_json guided_regex guided_choice guided_grammar guided_whitespace_pattern
        guided_decoding_params structured_outputs structural_tag json_schema ebnf format text json_mode
        response_format regex grammar grammar_type grammar_triggers grammar_lazy
        response_schema response_mime_type json_object choices output_config
    """,
    LENGTH: """
        max_tokens max_completion_tokens max_output_tokens max_new_tokens max_gen_len max_length max_tokens_to_sample
        min_tokens min_new_tokens min_length num_predict n_predict n_keep n_discard n_indent t_max_predict_ms
        ignore_eos
    """,
    STOP: """
        stop_sequences stop_token_ids stop_regex stop_strings include_stop_str_in_output no_stop_trim end_id
        bad_words bad_words_ids early_stopping
    """,
    CHOICE: """
        best_of use_beam_search beam_width num_beams length_penalty do_sample repetition_penalty repeat_last_n
        penalize_nl no_repeat_ngram_size typical_p tfs_z top_a epsilon_cutoff eta_cutoff mirostat mirostat_tau
        mirostat_eta dry_multiplier dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers
        xtc_probability xtc_threshold dynatemp_range dynatemp_exponent samplers min_keep adaptive_target adaptive_decay
        allowed_token_ids logits_processors custom_logit_processor custom_params embedding_bias top_p_min top_p_decay
        repetition_detection sampling_params options parameters extra_body vllm_xargs lora lora_path adapter_id
        lora_request backend_sampling penalty_alpha random_seed
    """,
    TEMPLATE: """
        chat_template chat_format add_generation_prompt continue_final_message prefix template raw
        documents system add_special_tokens parse_tool_calls preserved_tokens
    """,
    THOUGHT: """
        reasoning thinking think thinking_forced_open verbosity reasoning_budget
    """,
    SHOWN: """
        echo suffix reasoning_format n_probs post_sampling_probs prompt_logprobs return_tokens return_token_ids
        return_tokens_as_token_ids return_hidden_states return_context_logits return_generation_logits return_full_text
        details decoder_input_details skip_special_tokens spaces_between_special_tokens detokenize response_fields
        return_text_in_logprobs_only top_n_tokens logprob_start_len
    """,
    KEPT: "store background background_options previous_response_id conversation context id_slot session_params",
    PROMPT: """
        inputs input_ids prompt_token_ids prompt_embeds input_embeds image_data images image truncate
        truncate_prompt_tokens prompt_ignore_length
    """,
    ABSENT: """
        audio moderation web_search_options context_management max_tool_calls access_programs
        watermark plugins transforms route models bot_id file_ids search_parameters mcp_servers container tool_config
    """,
    ELSEWHERE: """
        messages input prompt instructions functions function_call tools tool_choice parallel_tool_calls include
        truncation prediction modalities logprobs top_logprobs n reasoning_effort enable_thinking chat_template_kwargs
        thinking_token_budget
    """,
}
REFUSED = {name: why for why, names in _REFUSED.items() for name in names.split()}
"""Parameters that would change the answer and are not built, or have another name here: what to do instead."""
_HARMLESS = """
    user metadata safety_identifier service_tier prompt_cache_key prompt_cache_retention prompt_cache_options
    cache_prompt request_id rid timings_per_token return_progress stream_reasoning
    separate_reasoning include_reasoning kv_transfer_params mm_processor_kwargs data_parallel_rank
    disaggregated_params bootstrap_host bootstrap_port bootstrap_room provider usage extra_headers timeout
    guided_decoding_backend
"""
HARMLESS = frozenset(_HARMLESS.split())
"""Parameters that change no word of an answer: who asks, what is billed or cached, how a large server is laid out, and
which compiler it takes for a form."""
SAYS_NOTHING: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "background_options": ({},),
    "best_of": (1,),
    "dry_base": (1.75,),
    "ignore_eos": (False,),
    "length_penalty": (1,),
    "n_keep": (0,),
    "reasoning_effort": ("none",),
    "reasoning_format": ("auto", "deepseek"),
    "repeat_last_n": (-1,),
    "repetition_penalty": (1,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "tfs_z": (1,),
    "typical_p": (1,),
    "verbosity": ("medium",),
    "detokenize": (True,),
    "text": ({}, {"format": {"type": "text"}}),
    "num_beams": (1,),
    "beam_width": (1,),
    "add_special_tokens": (True, False),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "n": (1,),
    "parallel_tool_calls": (True,),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "truncation": ("disabled",),
}
"""Values of refused names that ask for what is done anyway; so do null, 0, false, and what is empty but no schema."""
_TELLING = re.compile(
    r"schema|grammar|regex|guided|json|ebnf|lark|format|constrain|structur|pattern"
    r"|token|length|predict|stop|eos|limit"
    r"|temp|top_|_p$|_k$|penal|sampl|seed|bias|mirostat|dry_|xtc_|logit|beam|greedy"
)
"""What stands in a name that speaks of an answer's form, its length, or how its words are chosen."""

_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
NEAR = 0.85
"""From which likeness on (difflib's ratio) a name is one of ours with a letter wrong."""
COMPARED = 32
"""So many unknown names, of so many characters, are looked at for that: it takes time, and a client may send more."""

_FLOAT = re.compile(rb"-?[0-9]+(\.[0-9]+([eE][+-]?[0-9]+)?|[eE][+-]?[0-9]+)")


def checked(body: bytes, kind: type) -> bytes:
    """Return `body`, a request of `kind`, with its whole numbers written as such (150 for 150.0).

    Raises ApiError for a parameter that is neither a field of `kind` nor harmless.
    """
    try:
        given = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body  # what is wrong with it is said by who reads it
    fields = _whole_by_name(kind)
    for count, name in enumerate(given.keys() - fields.keys() - HARMLESS):
        refusal = _refusal(name, msgspec.json.decode(given[name]), fields, may_compare=count < COMPARED)
        if refusal is not None:
            where, why = refusal
            raise ApiError(400, f"{where[:64]}: {why}", param=where[:64], code="unsupported_parameter")
    numbers = {
        name: msgspec.Raw(b"%d" % whole)
        for name in given
        if fields.get(name) and (whole := _whole(given[name])) is not None
    }
    return msgspec.json.encode({**given, **numbers}) if numbers else body


@cache
def _whole_by_name(kind: type) -> dict[str, bool]:
    """Return the fields of `kind`, and whether each is a whole number."""
    described = cast(inspect.StructType, inspect.type_info(kind))
    return {field.encode_name: _is_whole(field.type) for field in described.fields}


def _is_whole(kind: inspect.Type) -> bool:
    kinds = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    return any(isinstance(one, inspect.IntType) for one in kinds)


def _whole(number: msgspec.Raw) -> int | None:
    """Return the whole number that is written as 150.0 or 1.5e2; None for what is written otherwise.

    JSON has one kind of number (RFC 8259 §6), and some languages write all of them with a point.
    """
    text = bytes(number)
    if not _FLOAT.fullmatch(text):
        return None
    value = float(text)
    return int(value) if value.is_integer() else None


def _refusal(name: str, value: Any, fields: Collection[str], *, may_compare: bool) -> tuple[str, str] | None:
    """Return which name is refused, `name` or one within its `value`, and why; None where no answer changes by it."""
    known = _snake_case(name)
    if known in REFUSED or _TELLING.search(known):
        if not _says_something(known, value):
            return None
        ours = f"use {known}" if known in fields else f"nobody here knows it; {FORM}, or {LENGTH}"
        return name, REFUSED.get(known, ours)
    meant = known if known in fields else _near(known, fields) if may_compare else ""
    if meant and _says_something(meant, value):
        return name, f"use {meant}"
    if isinstance(value, dict):
        for inner, said in cast(dict[str, Any], value).items():
            known = _snake_case(inner)
            if _TELLING.search(known) and (known in REFUSED or known in fields) and _says_something(known, said):
                return f"{name}.{inner}", f"{REFUSED.get(known, f'use {known}')}, and not within another parameter"
    return None


def _near(name: str, fields: Collection[str]) -> str:
    """Return the one of `fields` that `name` is with a letter wrong; an empty text where there is none."""
    if len(name) > COMPARED:
        return ""
    from difflib import get_close_matches

    return next(iter(get_close_matches(name, fields, n=1, cutoff=NEAR)), "")


def _snake_case(name: str) -> str:
    return _HUMP.sub("_", name).lower()


def _says_something(name: str, value: Any) -> bool:
    is_empty_form = value == {} and REFUSED.get(name, FORM) == FORM  # a schema that any JSON is valid under
    return (bool(value) or is_empty_form) and value not in SAYS_NOTHING.get(name, ())
