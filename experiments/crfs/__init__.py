"""CRFs behind a network: the search for their parameters, and what they cost beside others."""
