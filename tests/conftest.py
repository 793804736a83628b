"""What tests share: the real small model, and a bundle around it."""

import signal

pytest_plugins = ["tests.support.schedule", "tests.support.device_fixtures", "tests.support.workshop_fixtures"]

# A shell that runs the tests in the background has SIGINT ignored, by them and by all that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
