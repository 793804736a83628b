"""What was redacted, at home: a second pass with today's rules, and stand-ins in the place of placeholders."""
