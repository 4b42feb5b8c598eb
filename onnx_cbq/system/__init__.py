"""The process and the machine: signals, temporary files, threads, the processor, time."""
