"""What a compiled program costs on chips that need not be there: operations, bytes, collectives, and time bounds."""
