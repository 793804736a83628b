"""The workshop half of fieldlm: checkpoint to bundle to repository, and records to checkpoint."""

import logging

# PEFT imports bitsandbytes wherever it is installed, and that warns of a kernel which it would fetch from a hub.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
