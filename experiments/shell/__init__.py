"""What every command stands on: how it begins and ends, its flags, its files, and the catalogue of what there is."""
