"""HTTP, MQTT and mDNS: servers and clients with bounds on what the other end may take, hold or say."""
