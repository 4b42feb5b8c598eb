"""What is found out about a file: held against what it was made from, and run."""
