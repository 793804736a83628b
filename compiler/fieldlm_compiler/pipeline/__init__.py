"""Steps in processes of their own, cached by the digest of their inputs; the tools that they run."""
