"""On the device: serve a bundle, record what happens, send it home, take updates.

`cli` finds the command, `service` is the one place that wires the parts: `engines` (llama, onnx) behind one Protocol,
`server` and `openai` (the HTTP surface), `spool` and `sync` (usage on its way home), `trust`, `update` and `slots`
(new generations), `discovery`, `hardware`. Imports `fieldlm.formats` and nothing of the compiler.
"""
