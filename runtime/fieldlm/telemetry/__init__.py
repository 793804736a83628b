"""Usage on its way home: recorder, redaction, spool, effective policy, data budget, MQTT sync, forgetting."""
