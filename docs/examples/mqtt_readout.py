"""What devices tell: python mqtt_readout.py [HOST] [PORT] prints every record that passes a broker, until Ctrl-C.

It reads beside the collector and takes nothing from it: devices send only while a `fieldlm collect` acknowledges.
"""

import sys
from typing import Any

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from fieldlm.formats import block
from fieldlm.formats.record import Record, WireError
from fieldlm.formats.topics import ROOT


def show(record: Record) -> None:
    print(
        f"{record.device} {record.stream}/{record.seq} {record.kind} {record.outcome or '–'}",
        f"{record.prompt_tokens}+{record.completion_tokens} tokens {record.duration_ms:.0f} ms",
        flush=True,
    )


def on_message(client: Client, _: Any, message: MQTTMessage) -> None:
    try:
        for record in block.parse(bytes(message.payload)).records():
            show(record)
    except WireError as error:  # anybody may publish anything
        print(f"{message.topic}: {error}", file=sys.stderr)


def on_connect(client: Client, *_: Any) -> None:
    client.subscribe(f"{ROOT}/+/+/+/t/+", qos=1)


def main(host: str, port: int) -> None:
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.on_connect = on_connect
    client.on_message = on_message
    client.connect(host, port)
    client.loop_forever()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1", int(sys.argv[2]) if len(sys.argv) > 2 else 1883)
