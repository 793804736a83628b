"""Records from MQTT into a store (Parquet, Delta Lake, Kafka): rows and watermark in one commit."""
