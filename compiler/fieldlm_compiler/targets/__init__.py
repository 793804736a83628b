"""What can be compiled to: one module for each format, with everything in which it differs from the others."""
