"""What can be said of a network without training it: the receptive fields of its units."""
