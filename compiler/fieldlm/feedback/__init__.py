"""Records in, checkpoint out: what devices tell becomes the next model.

The stages, in order: `collect` (MQTT → `store`), `curate` (filter, join, split by customer), `cluster` (recurring
tasks), `dataset` (a version named by its content), `tune` (a LoRA adapter), `evaluate`. Imports `fieldlm.formats`, and
of the runtime only the terminal; meets the compiler through files.
"""
