"""From a checkpoint to an answer: what it takes, how it predicts images of any size, and what is written of them."""
