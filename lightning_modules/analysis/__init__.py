"""What can be said of a network that is not trained by it: what its units see, and what they look at."""
