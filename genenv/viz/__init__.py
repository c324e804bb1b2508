"""Pictures of episodes, schedules and runs."""
