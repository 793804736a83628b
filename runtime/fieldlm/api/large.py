"""The large model, as the API sees it: a request in OpenAI's words for it, and its reply in those of this device."""

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from fieldlm.api.chat_request import UNLIMITED, CompletionParams, Exchange
from fieldlm.api.forms.fitted import MisfitError, fitted
from fieldlm.api.output_contract import JSON_KINDS, OutputContract
from fieldlm.api.preparation import task_of
from fieldlm.api.tools import Toolbox
from fieldlm.engines import RunningAnswer
from fieldlm.escalation.cascade import Cascade, Consultation
from fieldlm.escalation.energy_shares import EnergyShare
from fieldlm.escalation.large_model import AskHandle
from fieldlm.escalation.large_reply import LargeModelError, LargeReply
from fieldlm.escalation.placeholders import Placeholders
from fieldlm.escalation.policy import Escalation, EscalationRequest
from fieldlm.escalation.verdict import Verdict
from fieldlm.formats.record import LARGE
from fieldlm.inference.chat_template import as_served
from fieldlm.inference.generations import Serving

_SAMPLING = ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "stop")


@dataclass(kw_only=True)
class LargeSide:
    """One request beside a large model: who answers it, and what came of that."""

    escalation: Escalation
    wanted: EscalationRequest
    asked: CompletionParams
    messages: list[dict[str, Any]]
    toolbox: Toolbox | None
    contract: OutputContract
    serving: Serving
    exchange: Exchange | None = None
    """What is told of the request; there before its first answer is started."""
    is_settled: bool = False
    verdicts: dict[int, Verdict] = field(default_factory=dict[int, Verdict])
    energy: EnergyShare | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def answer(self, start_small: Callable[[], RunningAnswer] | None, *, is_at_hand: bool = False) -> RunningAnswer:
        """Begin one answer; `start_small` has the small model begin, None where it cannot answer this.

        One that `is_at_hand` needs nobody to answer beside it.
        """
        escalation, wanted = self.escalation, self.wanted
        first, why = escalation.first(wanted)
        if not escalation.has_small:
            start_small = None
        if start_small is None:
            first, why = "large", why or "too long"
        index = len(self.verdicts)
        self.energy = self.energy or escalation.energy.begin()
        self.verdicts[index] = Verdict(by=first, why=why)

        def decided(verdict: Verdict) -> None:
            with self._lock:
                self.verdicts[index] = verdict
                is_late = self.is_settled
            if is_late:  # the client had left before the reply, which is paid for all the same
                self.escalation.count_late(verdict, wanted=self.wanted)
            if self.exchange is not None and verdict.by == "large" and not index:
                self.exchange.model = escalation.model.label

        def withheld() -> str:
            return escalation.withheld(wanted)

        def doubt(timings: Any, outcome: Any) -> str:
            return escalation.doubt(self.serving, timings, outcome) if escalation.is_option(wanted) else ""

        terms = Consultation(
            first=first,
            why=why,
            ask=self._ask,
            fit=self._fit,
            doubt=doubt,
            withheld=withheld,
            start_small=start_small,
            on_decided=decided,
            hedge=escalation.hedge(wanted) if first == "small" and not is_at_hand else "",
            can_stream=bool(self.asked.stream) and self.contract.rule is None and not escalation.must_redact(wanted),
        )
        return Cascade(terms, escalation.run)

    def withheld(self) -> str:
        """Return why the large model may not answer this, or nothing."""
        if not self.escalation.is_option(self.wanted) and self.escalation.first(self.wanted)[0] == "small":
            return "it was not asked for"
        return self.escalation.withheld(self.wanted)

    def settle(self) -> None:
        """Tell of the answers, which have ended: in the exchange, and in the ledger."""
        exchange = self.exchange
        assert exchange, "it was there before the first answer"
        with self._lock:
            verdicts = [self.verdicts[index] for index in sorted(self.verdicts)]
            self.is_settled = True
        exchange.verdict = verdicts[0]  # as `exchange.answer` is the first one's
        if exchange.verdict.by == "large":
            exchange.route = LARGE
        is_failed = exchange.outcome not in ("stop", "length")
        self.escalation.count(
            verdicts,
            model=self.serving.called,
            wanted=self.wanted,
            is_failed=is_failed,
            response=exchange.id,
            joules=self.escalation.energy.end(self.energy) if self.energy else 0.0,
        )

    def _ask(self, say: Callable[[str], None], handle: AskHandle) -> LargeReply:
        if why := self.escalation.withheld(self.wanted):
            raise LargeModelError(why)
        messages: Sequence[dict[str, Any]] = self.messages
        hidden = Placeholders(self.escalation.patterns())
        must_redact = self.escalation.must_redact(self.wanted)
        if must_redact:
            messages = hidden.hide(self.messages)
        system = self.serving.bundle.manifest.system_prompt
        body = large_body(self.asked, as_served(list(messages), system), self.toolbox)
        if must_redact:
            rest = {key: value for key, value in body.items() if key != "messages"}
            body |= hidden.hide_body(rest)
        reply = self.escalation.model.ask(body, within_s=self._left_s(), on_text=say, handle=handle)
        reply.text = hidden.show(
            reply.text, is_json=any(rule.kind in JSON_KINDS for rule in self.asked.rules().values())
        )
        for call in reply.calls.values():
            call["arguments"] = hidden.show(call["arguments"], is_json=True)
        return reply

    def _left_s(self) -> float | None:
        """Return how long the large model may take: before the deadline the small one needs its time, if it has to."""
        left_s, stands_in = self.wanted.left_s(), self.escalation.first(self.wanted)[0] == "large"
        if left_s is None or not stands_in or not self.escalation.has_small:
            return left_s
        return max(0.0, left_s - self.escalation.small_s())

    def _fit(self, reply: LargeReply) -> str:
        if reply.outcome == "length" and self.contract.rule is not None and self.escalation.has_small:
            raise LargeModelError("the large model's answer was cut off, and has not the form that was asked for")
        calls = [(call["name"], call["arguments"]) for _, call in sorted(reply.calls.items())]
        is_cut = reply.outcome == "length"
        try:
            return fitted(reply.text, calls, self.contract, self.toolbox, self.asked, is_cut=is_cut)
        except MisfitError as error:
            raise LargeModelError(f"the large model {error}") from error


def wanted_of(
    asked: CompletionParams, escalation: Escalation, came_s: float, *, serving: Serving, question: str
) -> EscalationRequest:
    """Return what `asked`, which came at `came_s` by the monotonic clock, says of the large model."""
    task, is_unknown = task_of(asked, serving, question)
    return EscalationRequest(
        wish=asked.large or "auto",
        names_large=asked.model is not None and escalation.is_named(asked.model),
        session=asked.label("session") or "",
        task=task,
        is_unknown=is_unknown,
        can_be_told=asked.wanted().logprobs is None and _is_sayable(asked),
        due_s=None if asked.deadline_ms is None else came_s + asked.deadline_ms / 1000,
    )


def _is_sayable(asked: CompletionParams) -> bool:
    """Whether OpenAI has a word for the form that is asked for, if there is one."""
    return all(rule.kind in JSON_KINDS for rule in asked.rules().values())


def large_body(asked: CompletionParams, messages: Sequence[dict[str, Any]], toolbox: Toolbox | None) -> dict[str, Any]:
    """Return the chat completion that `asked` is, for an endpoint that knows OpenAI's words and no others.

    A form that it has no word for is not asked for: `fitted` holds the answer to it.
    """
    body: dict[str, Any] = {"messages": [_as_sent(message, i) for i, message in enumerate(messages)]}
    if (most := asked.wanted().max_tokens) < UNLIMITED:  # endpoints refuse more than they can
        body["max_tokens"] = most
    body |= {name: value for name in _SAMPLING if (value := getattr(asked, name)) is not None}
    for rule in asked.rules().values():
        if rule.kind == "json_object":
            body["response_format"] = {"type": "json_object"}
        elif rule.kind == "json_schema":
            schema = {"name": "answer", "schema": json.loads(rule.text)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if toolbox is not None:
        body["tools"] = toolbox.plain
        body["tool_choice"] = "required" if toolbox.must else "auto"
        body["parallel_tool_calls"] = toolbox.several
    return body


def _as_sent(message: dict[str, Any], index: int) -> dict[str, Any]:
    """Return a message as OpenAI spells it: the arguments of a call are its JSON there, and every call has an id."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    sent: list[dict[str, Any]] = []
    for place, call in enumerate(cast(list[dict[str, Any]], calls)):
        function = cast(dict[str, Any], call["function"])
        arguments = function.get("arguments")
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        made = {"name": function["name"], "arguments": text}
        sent.append({"id": call.get("id") or f"call_{index}_{place}", "type": "function", "function": made})
    return {**message, "tool_calls": sent}
