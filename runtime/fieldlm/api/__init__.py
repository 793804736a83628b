"""The HTTP API: OpenAI's chat completions, responses and embeddings, tool calls, metrics, the dashboard."""
