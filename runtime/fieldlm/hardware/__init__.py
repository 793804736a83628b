"""What this machine is: board, processors, memory and its limits, temperature, memory bandwidth, its clock."""
