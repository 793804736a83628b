"""Damaged blocks, hellos, acknowledgements, topics and policies: nothing crashes or is wrongly accepted.

Sound messages are changed at random: bits, bytes, cuts, pieces of others; half of the blocks behind their compression,
because nothing else gets past zstd's and msgpack's own checks. What is accepted has to be what it says: its numbers
ascend within its head's range, and encoded again it gives the same records.
"""

import random
from collections import Counter
from collections.abc import Callable

import msgspec
from backports import zstd
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldlm.core.errors import TrustError
from fieldlm.core.signing import key_id, sign
from fieldlm.formats import block, topics
from fieldlm.formats.policy import Policy, parse_policy, sign_policy
from fieldlm.formats.record import Record, WireError, pack
from fieldlm.formats.response_ids import ResponseIds

ID_KEY = b"0123456789abcdef"
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
TRUSTED = frozenset({key_id(KEY.public_key())})
POLICY = sign_policy(Policy(fleet="shop", version=3, patterns=(r"\bMB-\d{5}\b",), quiet_hours="22:00-06:00"), KEY)
INT64 = range(-(1 << 63), 1 << 63)


def sound_blocks(rng: random.Random) -> list[bytes]:
    made: list[bytes] = []
    for count in (1, 2, 5, 12):
        records = [
            Record(
                device="kiosk-1", epoch=7, stream="gen", seq=seq, kind="generation", wall_ms=10**12 + seq * 99,
                mono_ms=seq * 99, response=f"r-{rng.randbytes(4).hex()}", session=f"s{seq % 3}", outcome="stop",
                prompt_tokens=rng.randrange(500), ttft_ms=rng.randrange(900) / 10, duration_ms=rng.random(),
                answer="é" * seq, detail={"a": str(seq)},
            )
            for seq in range(1, count + 1)
        ]  # fmt: skip
        made.append(block.encode(records))
        ids = ResponseIds(ID_KEY)
        named = [
            msgspec.structs.replace(r, response=ids.next("chatcmpl-"), session=f"{r.seq // 2:016x}") for r in records
        ]
        made.append(block.encode(named, id_key=ID_KEY))
    return made


def mutate(data: bytes, other: bytes, rng: random.Random) -> bytes:
    made = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(made) + 1)
        match rng.randrange(6):
            case 0 if at < len(made):
                made[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(made):
                made[at] = rng.choice((0, 1, 0x7F, 0x80, 0xC0, 0xFF, rng.randrange(256)))
            case 2:
                made[at:at] = rng.randbytes(rng.randint(1, 9))
            case 3:
                del made[at : at + rng.randint(1, 9)]
            case 4:
                start = rng.randrange(len(other))
                made[at : at + 8] = other[start : start + rng.randint(1, 16)]
            case _:
                del made[at + rng.randrange(1 + len(made)) :]
    return bytes(made)


def try_block(message: bytes) -> bool:
    """Say whether the message was accepted; raises AssertionError when it should not have been."""
    try:
        head = block.parse(message)
        records = head.records()
    except WireError:
        return False
    assert len(records) == head.count
    seqs = [record.seq for record in records]
    assert seqs == sorted(set(seqs))
    assert head.first <= seqs[0]
    assert seqs[-1] == head.last
    assert all((r.device, r.epoch, r.stream) == (head.device, head.epoch, head.stream) for r in records)
    for record in records:
        assert all(value in INT64 for value in msgspec.structs.astuple(record) if isinstance(value, int))
        pack(record)
    assert block.parse(block.encode(records, first=head.first)).records() == records
    return True


def try_text(message: bytes) -> bool:
    """Read as a hello, an acknowledgement and a topic; each is refused with one kind of error, or comes back equal."""
    readers: tuple[Callable[[bytes], topics.Hello | topics.Ack], ...] = (topics.parse_hello, topics.parse_ack)
    accepted = False
    for read in readers:
        try:
            made = read(message)
        except WireError:
            continue
        accepted = True
        assert read(msgspec.json.encode(made)) == made
        assert made.epoch in range(1 << 63)
    topic = message.decode("utf-8", "replace")
    try:
        source = topics.parse_up(topic)
    except WireError:
        return accepted
    assert topics.up(source.fleet, source.device, source.part) == topic
    return True


def try_policy(message: bytes) -> bool:
    """Nothing but the signed bytes themselves may be accepted; what a trusted key signs has to be possible as well."""
    try:
        made = parse_policy(message, trusted=TRUSTED, fleet="shop")
    except (WireError, TrustError):
        return False
    assert parse_policy(sign_policy(made, KEY), trusted=TRUSTED, fleet="shop") == made
    return True


def changed_policy(rng: random.Random) -> bytes:
    """Return a policy changed behind its signature, or changed and then signed by the trusted key all the same."""
    if rng.random() < 0.5:
        return mutate(POLICY, POLICY, rng)
    inner = msgspec.json.decode(POLICY)["policy"].encode()
    text = mutate(inner, inner, rng).decode("utf-8", "replace")
    return msgspec.json.encode({"policy": text, "signature": sign(text.encode(), KEY)})


def run(inputs: int, seed: int) -> Counter[str]:
    """Try `inputs` changed messages; returns how many of each kind were accepted and refused."""
    rng = random.Random(seed)
    blocks = sound_blocks(rng)
    bodies = [zstd.decompress(block.parse(message).body) for message in blocks]
    texts = [
        msgspec.json.encode(topics.Hello(device="kiosk-1", epoch=7, first={"gen": 3}, last={"gen": 9}, nonce="ab")),
        msgspec.json.encode(topics.Ack(epoch=7, upto={"gen": 9, "fb": 1})),
        topics.block_topic("shop", "kiosk-1", "gen").encode(),
        topics.state_topic("shop", "kiosk-1").encode(),
    ]
    count = Counter[str]()
    for number in range(inputs):
        if number % 20 == 19:
            word, accepted = "policy", try_policy(changed_policy(rng))
        elif number % 3 == 2:
            word, accepted = "text", try_text(mutate(rng.choice(texts), rng.choice(texts), rng))
        elif number % 3 == 1:
            place = rng.randrange(len(blocks))
            body = zstd.compress(mutate(bodies[place], rng.choice(bodies), rng), level=1)
            head = msgspec.structs.replace(block.parse(blocks[place]), body=body)
            word, accepted = "body", try_block(msgspec.msgpack.encode(head))
        else:
            word, accepted = "block", try_block(mutate(rng.choice(blocks), rng.choice(blocks), rng))
        count[f"{word} {'accepted' if accepted else 'refused'}"] += 1
    return count
