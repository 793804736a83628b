"""The large model beside the small one: who answers a request, what may leave the device for it, what it costs.

A request meets a plan (`policy`) before and after the small model has answered; `cascade` is the one answer that the
client sees, whoever wrote it; `large_model` speaks to an OpenAI-compatible endpoint and knows whether it can be
reached; `ledger` keeps who answered what, for how much.
"""
