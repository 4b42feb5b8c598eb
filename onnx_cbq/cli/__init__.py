"""The command line: a file per command; flags become settings, settings go through the jobs, errors exit codes."""
