"""What a fleet's owner may order from afar: signed commands on the device, and who sends them."""
