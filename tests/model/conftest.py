"""One thread: the models here are small, and threads that wait for one another only slow them down."""

import torch

torch.set_num_threads(1)
