"""What ``tombola diagnose`` can do: a thin file for each diagnostic."""
