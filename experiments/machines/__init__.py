"""What a machine has and lacks, how training scales on several, and what that costs. Import from the defining file."""
