"""A small language model as a ROS 2 node."""
