"""Replace what identifies a person by a placeholder, before anything is written down.

<EMAIL> <IBAN> <CARD> <KEY> <ADDRESS> <PHONE> <ID> <DATE> (of birth) <IP> <MAC> <NAME>, and <CUSTOM> for a fleet's own
patterns: the same input gives the same output, and a text that holds nothing personal comes back unchanged, byte for
byte. Patterns, word lists and checksums only. `Numbered` counts the placeholders of a conversation. How much is found:
tests/telemetry/redaction, benchmarks/redaction.py.
"""
