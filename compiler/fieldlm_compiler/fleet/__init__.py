"""All devices at once: what they report, a page of it, rollouts in waves with a sequential test, OTLP."""
