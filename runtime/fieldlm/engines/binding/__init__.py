"""llama-cpp-python's binding of llama.cpp: how its C API is imported, and what llama.cpp's log says."""
