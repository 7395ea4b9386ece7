"""Plain torch that two or more papers share; nothing here knows Lightning."""
