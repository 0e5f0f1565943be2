"""Ways to give an intrinsic reward to an agent: wrappers, replay buffers, and callbacks that log it."""
