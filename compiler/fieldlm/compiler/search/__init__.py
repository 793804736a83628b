"""Which type for which tensor: calibrate, price, walk the frontier, write, measure.

calibrate  what flows through each tensor, and how much the answer depends on it
price      what each legal type of each tensor costs in divergence and bytes
frontier   the best mixture for every size, in milliseconds
write      one of them as GGUF, rounded so that errors cancel
measure    what it really diverges, and how fast it is
"""
