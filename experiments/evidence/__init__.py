"""What finished cells say: reads them, checks them, and computes intervals, tests and effects of factors."""
