"""Mixed-precision search: which type for which tensor.

calibrate   what flows through each tensor, and how much the answer depends on it
price       what each legal type of each tensor costs in divergence and bytes
frontier    the best mixture for every size, in milliseconds
gguf_write  one of them as GGUF, rounded so that errors cancel
search      a few of them made and measured, the best one chosen
"""
