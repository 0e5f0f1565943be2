"""One thread per worker: the networks are small, and the workers share the cores."""

import torch as th

th.set_num_threads(1)
