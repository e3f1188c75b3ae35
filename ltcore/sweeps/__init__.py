"""Many runs as one piece of work: jobs, the engine that trains them, and a look at them while they go."""
