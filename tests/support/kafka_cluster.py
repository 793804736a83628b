"""The Kafka that the sinks' tests run on.

No broker comes from PyPI or Debian, so it is librdkafka's own mock cluster: brokers in a process of their own that
speak Kafka's protocol over sockets, with topics, partitions, idempotent producers and several clients, in memory and
without compaction. FIELDLM_KAFKA=HOST:PORT points the same tests at real brokers.
"""

import contextlib
import os
import subprocess
import sys
import uuid
from collections.abc import Generator
from typing import Any

from confluent_kafka import Consumer, KafkaError, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

_MOCK = """
import sys
from confluent_kafka import Producer
client = Producer({"test.mock.num.brokers": 3, "log_level": 0})
brokers = client.list_topics(timeout=60).brokers.values()
print(",".join(f"{each.host}:{each.port}" for each in brokers), flush=True)
sys.stdin.read()
"""
PARTITIONS = 4
"""What the mock cluster gives every topic."""


class Cluster:
    """Brokers, and what a reader finds at them."""

    def __init__(self, brokers: str, *, is_mock: bool) -> None:
        self.brokers = brokers
        self._is_mock = is_mock

    def new_topic(self) -> str:
        """Return a place that no test has used; a mock makes a topic when one asks for it by name."""
        topic = f"fieldlm-{uuid.uuid4().hex}"
        admin = AdminClient({"bootstrap.servers": self.brokers, "log_level": 0})
        if self._is_mock:
            admin.list_topics(topic, timeout=60)
        else:
            admin.create_topics([NewTopic(topic, num_partitions=PARTITIONS)])[topic].result(60)
        return f"{self.brokers}/{topic}"

    def messages(self, where: str) -> list[tuple[int, bytes]]:
        """Return the partition and value of every message of the topic."""
        return [(message.partition(), message.value()) for message in self._read(where)]

    def compacted(self, where: str) -> list[bytes]:
        """Return what compaction would leave: the last message of each key."""
        return list({message.key(): message.value() for message in self._read(where)}.values())

    def _read(self, where: str) -> list[Any]:
        topic = where.rsplit("/", 1)[1]
        consumer = Consumer({"bootstrap.servers": self.brokers, "group.id": "test", "enable.partition.eof": True})
        waiting = set(consumer.list_topics(topic, timeout=60).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, number, 0) for number in waiting])
        found: list[Any] = []
        while waiting:
            message: Any = consumer.poll(1)
            if message is None:
                continue
            if message.error() is None:
                found.append(message)
            else:
                assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
                waiting.discard(message.partition())
        consumer.close()
        return found


@contextlib.contextmanager
def cluster(*, own: bool = False) -> Generator[Cluster]:
    """Yield the brokers of FIELDLM_KAFKA, or of a mock cluster that ends with the context; `own` is always a mock."""
    brokers = os.environ.get("FIELDLM_KAFKA", "")
    if brokers and not own:
        yield Cluster(brokers, is_mock=False)
        return
    with subprocess.Popen([sys.executable, "-c", _MOCK], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdin
        try:
            yield Cluster(process.stdout.readline().decode().strip(), is_mock=True)
        finally:
            process.stdin.close()
            process.wait()
