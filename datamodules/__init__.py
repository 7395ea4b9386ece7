"""One file a data set: how it is read, and the module that makes batches of it."""
