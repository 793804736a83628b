"""Customers at the kiosk: they talk to a running server, and correct the orders it got wrong.

A server that is away for a moment (it restarts, the machine sleeps) is asked again; every other failure counts.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from fieldlm.network.http_client import HttpClient
from fieldlm_compiler.demo.kiosk import Customer, Utterance
from fieldlm_compiler.demo.menu import SYSTEM_PROMPT
from fieldlm_compiler.learn.evaluate import Reply, ask, same_json

MAX_TOKENS = 72
STOP = ("\n", ". ", ", ", "'")
"""No call holds any of these: a model that starts to chat is cut off there."""
CONSENT = "kiosk-terms-2026-11"


@dataclass
class Tally:
    """What a stream of customers came to. Safe to add to from several threads."""

    asked: int = 0
    right: int = 0
    failed: int = 0
    corrected: int = 0
    generations: dict[str, int] = field(default_factory=dict[str, int])
    errors: list[str] = field(default_factory=list[str])
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, reply: Reply, *, is_right: bool) -> None:
        with self._lock:
            self.asked += 1
            self.right += is_right
            if reply.status != 200:
                self.failed += 1
                self.errors.append(f"HTTP {reply.status}: {reply.error[:200]}")
            else:
                self.generations[reply.generation] = self.generations.get(reply.generation, 0) + 1

    def heard(self, generation: str) -> int:
        """Return how many answers came from `generation`."""
        with self._lock:
            return self.generations.get(generation, 0)

    def add_correction(self) -> None:
        with self._lock:
            self.corrected += 1


def messages(utterance: Utterance) -> list[dict[str, str]]:
    return [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": utterance.text}]


def visit(server: HttpClient, customer: Customer, tally: Tally, *, corrects: bool = True) -> None:
    """One customer says everything and, with `corrects`, puts every wrong order right on the screen."""
    metadata = {"session": customer.session, "route": "kiosk"}
    if customer.has_consented:
        metadata["consent"] = CONSENT
    for utterance in customer.utterances:
        reply = ask(server, messages(utterance), max_tokens=MAX_TOKENS, stop=STOP, metadata=metadata)
        is_right = reply.status == 200 and same_json(reply.text, utterance.answer)
        tally.add(reply, is_right=is_right)
        if corrects and reply.status == 200:
            body = {"id": reply.id, "rating": "up"} if is_right else {"id": reply.id, "correction": utterance.answer}
            status, _ = server.post("/v1/feedback", body)
            if status == 200 and not is_right:
                tally.add_correction()


def serve_all(
    server: HttpClient,
    customers: Sequence[Customer],
    *,
    clients: int,
    on_done: Callable[[int, Customer, Tally], None],
) -> None:
    """Let `clients` customers talk at a time until all have been served.

    `on_done` hears of each that leaves: how many have left, who, and how it went; never from two threads at once.
    """
    count, lock = 0, threading.Lock()

    def one(customer: Customer) -> None:
        nonlocal count
        tally = Tally()
        visit(server, customer, tally)
        with lock:
            count += 1
            on_done(count, customer, tally)

    with ThreadPoolExecutor(clients) as pool:
        try:
            for _ in pool.map(one, customers):
                pass
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class Crowd:
    """Customers who keep coming from `start` until `stop`: the load under which an update has to go unnoticed."""

    def __init__(self, server: HttpClient, customers: Sequence[Customer], *, clients: int = 2) -> None:
        self.tally = Tally()
        self.latencies_s: list[tuple[float, float, str]] = []
        """(when it was asked in seconds since the epoch, how long it took, which generation answered)."""
        self._server = server
        self._customers = customers
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._come, args=(i, clients), daemon=True) for i in range(clients)]

    def __enter__(self) -> "Crowd":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _come(self, first: int, step: int) -> None:
        sentences = [u for customer in self._customers[first::step] for u in customer.utterances]
        while sentences and not self._stopping.is_set():
            for utterance in sentences:
                if self._stopping.is_set():
                    return
                asked_s = time.time()
                reply = ask(
                    self._server, messages(utterance), max_tokens=MAX_TOKENS, stop=STOP, metadata={"route": "crowd"}
                )
                self.latencies_s.append((asked_s, time.time() - asked_s, reply.generation))
                self.tally.add(reply, is_right=reply.status == 200 and same_json(reply.text, utterance.answer))
