"""What a command found, for people and for programs; nothing is computed here."""
